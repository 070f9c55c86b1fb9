/** How large a study is: what is pre-trained, and what its measures cost. */
import type { SegmentationProtocol } from '../eval/segmentationProtocols.js'

export interface StudySize {
  describe: string
  /** Settings of all arms. */
  config: Readonly<Record<string, unknown>>
  seeds: number
  /** ArmBase.equalTime */
  equalTime: number
  /** Images and side of the views of correspondence. */
  correspondence: { images: number }
  /** Windows of frozen segmentation: of trees that have a background, and of those where every pixel has a class. */
  objects: Windows
  scenes: Windows
  /** What --also asks for. */
  linearEpochs: number
  segmentation: Pick<SegmentationProtocol, 'iterations' | 'batchSize' | 'crop' | 'scale'>
}

export interface Windows {
  window: number
  windows: number
}

/** A grid of 8 x 8 at 64 pixels, a batch in groups of 16, lambda 0.5. */
const cpu = {
  depth: 18,
  baseChannels: 16,
  strides: [1, 2, 1, 1],
  imageSize: 64,
  batchSize: 64,
  normGroups: 4,
  queueLength: 2048,
  keyMomentum: 0.99,
  temperature: 0.1,
  denseWeight: 0.5,
  lr: 0.12,
  warmupSteps: 50,
  scheduleBy: 'step',
  blur: 0,
  epochs: 30,
  denseEvery: 5,
  knnEvery: 10,
  checkpointEvery: 1000,
}
const onCpu = {
  seeds: 3,
  // Steps of 446 ms against 403, 413 against 316, 446 against 425 and 623 against 537 on a machine with other work.
  equalTime: 1.25,
  correspondence: { images: 400 },
  objects: { window: 192, windows: 2 },
  scenes: { window: 128, windows: 2 },
  linearEpochs: 20,
  segmentation: { iterations: 600, batchSize: 8, crop: 160, scale: [480, 180] },
} as const

export const studySizes: Record<string, StudySize> = {
  smoke: {
    describe: 'to see it work: size cpu with 6 epochs and one seed, some minutes a run',
    ...onCpu,
    seeds: 1,
    config: { ...cpu, epochs: 6, denseEvery: 2, knnEvery: 0 },
  },
  cpu: {
    describe: 'a night on two cores: ResNet-18 of 16 base channels, 64 px, grid 8x8, 30 epochs of some thousand images, 3 seeds',
    ...onCpu,
    config: cpu,
  },
  gpu: {
    describe: 'meant for 20 minutes of an H100 with two or three arms: ResNet-18 of 64 base channels, 128 px, grid 8x8, 60 epochs',
    ...onCpu,
    config: {
      ...cpu,
      baseChannels: 64,
      strides: [1, 2, 2, 1],
      imageSize: 128,
      batchSize: 128,
      normGroups: 8,
      queueLength: 2048,
      warmupSteps: 100,
      epochs: 60,
      knnEvery: 20,
      denseEvery: 10,
    },
    objects: { window: 320, windows: 2 },
    scenes: { window: 224, windows: 2 },
    segmentation: { iterations: 400, batchSize: 16, crop: 320, scale: [960, 360] },
  },
}
