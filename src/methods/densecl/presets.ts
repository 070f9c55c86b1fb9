/** Named configurations. Published names carry the published settings (docs/method.md, Configurations), over the defaults. */
import type { Preset } from '../method.js'
import type { DenseCLConfig } from './options.js'

/** The authors' settings; mmselfsup's names are of the same with its own way of drawing weights. */
const imagenet: Partial<DenseCLConfig> = { depth: 50, batchSize: 256, normGroups: 8, lr: 0.03, epochs: 200 }
const mmselfsup: Partial<DenseCLConfig> = { ...imagenet, init: 'mmselfsup' }
const coco: Partial<DenseCLConfig> = { ...imagenet, lr: 0.3, epochs: 800, checkpointEvery: 40 }

/**
 * What small images learn from: on their grids, at a low temperature and with a short queue, the published dense loss is solved by a table
 * of positions (docs/learning.md). The learning rate is MoCo v2's 0.06 / (1 - lambda): the global loss moves the network as far.
 */
const variant: Partial<DenseCLConfig> = {
  depth: 18,
  strides: [1, 2, 1, 1],
  denseWeight: 0.5,
  denseMatch: 'geometry',
  denseNegatives: 'local',
  denseKeys: 4,
  denseInImage: 0.5,
  lr: 0.12,
  keyMomentum: 0.99,
  temperature: 0.1,
  scheduleBy: 'step',
  blur: 0,
}

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
    describe:
      'some thousand images on a CPU: a variant of DenseCL (partners by the known crops, local negatives) with a ResNet-18 at 64 pixels',
    config: {
      ...variant,
      imageSize: 64,
      batchSize: 64,
      normGroups: 4,
      queueLength: 2048,
      warmupSteps: 100,
      epochs: 30,
      knnEvery: 5,
      denseEvery: 5,
    },
  },
  few: {
    describe: 'some hundred images on a CPU: the variant of preset small with a short queue, small batches and a narrow ResNet-18',
    config: {
      ...variant,
      baseChannels: 16,
      imageSize: 64,
      batchSize: 32,
      normGroups: 2,
      queueLength: 128,
      denseQueueLength: 512,
      lr: 0.06,
      warmupSteps: 50,
      epochs: 100,
      knnEvery: 25,
      denseEvery: 25,
    },
  },
  quick: {
    describe: 'two minutes on two cores on the built-in scenes, to see everything work: the variant of preset small at 48 pixels',
    config: {
      ...variant,
      data: 'scenes:2048',
      baseChannels: 16,
      imageSize: 48,
      batchSize: 64,
      normGroups: 4,
      queueLength: 512,
      warmupSteps: 50,
      cropScale: [0.4, 1],
      grayscale: 0.5,
      hue: 0.5,
      epochs: 14,
      logEvery: 100,
      knnEvery: 7,
      denseEvery: 7,
      knnImages: 2048,
    },
  },
} satisfies Record<string, Preset & { config: Partial<DenseCLConfig> }>
