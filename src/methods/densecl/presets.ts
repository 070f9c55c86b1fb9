/** Named configurations. Published names carry the published settings (docs/method.md, Configurations), over the defaults. */
import type { Preset } from '../method.js'
import type { DenseCLConfig } from './options.js'

/** The authors' settings; mmselfsup's names are of the same with its own way of drawing weights. */
const imagenet: Partial<DenseCLConfig> = { depth: 50, batchSize: 256, normGroups: 8, lr: 0.03, epochs: 200 }
const mmselfsup: Partial<DenseCLConfig> = { ...imagenet, init: 'mmselfsup' }
const coco: Partial<DenseCLConfig> = { ...imagenet, lr: 0.3, epochs: 800, checkpointEvery: 40 }

/** The presets by name, each with a description and what it sets. */
export const presets = {
  'densecl_resnet50_8xb32-coslr-200e_in1k': {
    describe: 'DenseCL on ImageNet, the configuration of mmselfsup (8x32 as 8 groups on one device)',
    config: mmselfsup,
  },
  'mocov2_resnet50_8xb32-coslr-200e_in1k': {
    describe: 'MoCo v2: the same with dense weight 0, the baseline',
    config: { ...mmselfsup, denseWeight: 0 },
  },
  densecl_imagenet_200ep: { describe: "the authors' configuration, which draws weights in another way", config: imagenet },
  densecl_coco_800ep: { describe: "DenseCL on COCO train2017, the authors' configuration", config: coco },
  densecl_coco_1600ep: {
    describe: 'the same for 1600 epochs: weights are published, their settings are inferred',
    config: { ...coco, epochs: 1600 },
  },
  densecl_imagenet_r101_200ep: {
    describe: 'ResNet-101 on ImageNet: weights are published, their settings are inferred',
    config: { ...imagenet, depth: 101 },
  },
  small: {
    describe: 'some thousand images on a CPU: ResNet-18 of 32 channels at 64 pixels (docs/learning.md says why these values)',
    config: {
      depth: 18,
      baseChannels: 32,
      imageSize: 64,
      batchSize: 128,
      normGroups: 8,
      queueLength: 2048,
      keyMomentum: 0.99,
      temperature: 0.1,
      denseWeight: 0.3,
      lr: 0.06,
      warmupSteps: 100,
      scheduleBy: 'step',
      blur: 0,
      epochs: 100,
      knnEvery: 10,
    },
  },
  quick: {
    describe: 'two minutes on two cores on the built-in scenes: to see everything work',
    config: {
      data: 'scenes:2048',
      depth: 18,
      baseChannels: 16,
      imageSize: 48,
      batchSize: 128,
      normGroups: 8,
      queueLength: 512,
      keyMomentum: 0.99,
      temperature: 0.1,
      denseWeight: 0.3,
      lr: 0.06,
      warmupSteps: 50,
      scheduleBy: 'step',
      cropScale: [0.4, 1],
      blur: 0,
      grayscale: 0.5,
      hue: 0.5,
      epochs: 45,
      logEvery: 80,
      knnEvery: 15,
      knnImages: 2048,
    },
  },
} satisfies Record<string, Preset & { config: Partial<DenseCLConfig> }>
