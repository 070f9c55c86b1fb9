/** The published settings of detection (docs/method.md, Detection). */
import type { DetectorForm } from '../detection/detector.js'
import type { DetectionStyleName } from '../detection/styles.js'

/** How a detector is trained and tested. */
export interface DetectionProtocol {
  describe: string
  form: DetectorForm
  iterations: number
  batchSize: number
  lr: number
  /** Iterations in which the rate rises from a thousandth. */
  warmup: number
  /** Iterations from which on it is a tenth, and a hundredth. */
  steps: readonly number[]
  /** Short sides of training images, of which one is drawn, and of test images; the limit of the long side, all in pixels. */
  scales: readonly number[]
  testScale: number
  longest: number
  /** Regions of an image that are trained on, and those that are classified in a test image, at most. */
  regions: number
  testRegions: number
  /** Channels of a pyramid and of the convolutions of its heads, whose linear layers are four times as wide; 0 in the form without. */
  channels: number
  /** Whether batch norms of the backbone keep statistics, scales and shifts, in a form with a pyramid. */
  frozenNorms?: boolean
}

/** A protocol, and what of it a style has otherwise. */
export type PublishedProtocol = DetectionProtocol & { styles?: Partial<Record<DetectionStyleName, Partial<DetectionProtocol>>> }

/** The published detection protocols by name. */
export const detectionProtocols: Record<string, PublishedProtocol> = {
  'voc0712-c4': {
    describe: 'Faster R-CNN C4 on VOC 2007 and 2012 trainval, tested on VOC 2007 test: 24,000 iterations of 16 images',
    form: 'c4',
    iterations: 24_000,
    batchSize: 16,
    lr: 0.02,
    warmup: 100,
    steps: [18_000, 22_000],
    scales: [480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800],
    testScale: 800,
    longest: 1333,
    regions: 512,
    testRegions: 1000,
    channels: 0,
  },
  'coco-fpn-1x': {
    describe: 'Mask R-CNN with a feature pyramid on COCO train2017, tested on val2017: 90,000 iterations of 16 images',
    form: 'fpn',
    iterations: 90_000,
    batchSize: 16,
    lr: 0.02,
    warmup: 1000,
    steps: [60_000, 80_000],
    scales: [640, 672, 704, 736, 768, 800],
    testScale: 800,
    longest: 1333,
    regions: 512,
    testRegions: 1000,
    channels: 256,
    // Twelve epochs of the 117,266 images with objects, a tenth after eight of them and after eleven.
    styles: { mmdet: { iterations: 87_960, steps: [58_640, 80_630] } },
  },
}

/** A published protocol as a style has it. */
export function protocolOf({ styles, ...protocol }: PublishedProtocol, style: DetectionStyleName): DetectionProtocol {
  return { ...protocol, ...styles?.[style] }
}

/** The rest, which protocols share. */
export const detectionTraining = { momentum: 0.9, weightDecay: 1e-4, rateTenth: 0.1, warmupFrom: 0.001 } as const

/** The learning rate of an iteration, the first of which is 0. */
export function detectionRate({ lr, warmup, steps }: Pick<DetectionProtocol, 'lr' | 'warmup' | 'steps'>, iteration: number): number {
  const { rateTenth, warmupFrom } = detectionTraining
  const reached = steps.filter((step) => iteration >= step).length
  const rate = lr * rateTenth ** reached
  return iteration < warmup ? rate * (warmupFrom * (1 - iteration / warmup) + iteration / warmup) : rate
}

/** A protocol of another length: rates fall at the same shares of it, and no more than a tenth of it is warm-up. */
export function ofLength(protocol: DetectionProtocol, iterations: number): DetectionProtocol {
  if (iterations === protocol.iterations) return protocol
  return {
    ...protocol,
    iterations,
    warmup: Math.min(protocol.warmup, Math.floor(iterations / 10)),
    steps: protocol.steps.map((step) => Math.round((step / protocol.iterations) * iterations)),
  }
}

/**
 * Batches of which batch norms get their statistics after `iterations` of training, where `published` were taken: a tenth of a short
 * training, but not fewer than running statistics of momentum 0.1 are a mean of, unless the training itself had fewer.
 */
export const preciseBatchesOf = (published: number, iterations: number): number =>
  Math.min(published, iterations, Math.max(20, Math.round(iterations / 10)))
