/** The published settings of semantic segmentation with FCN R50-D8 (docs/method.md, Segmentation). */

export interface SegmentationProtocol {
  describe: string
  /** Side of the training crops. */
  crop: number
  /** Images are scaled to fit into long x short; in training times a factor of 0.5 to 2. */
  scale: readonly [long: number, short: number]
  iterations: number
  batchSize: number
  lr: number
  alignCorners: boolean
  /** Test windows of the crop's size at this stride; 0 tests whole images. */
  slide: number
}

/** The published segmentation protocols by name. */
export const segmentationProtocols: Record<string, SegmentationProtocol> = {
  voc12aug: {
    describe: 'VOC 2012 and its additional masks, 512 x 512, 20,000 iterations, whole images',
    crop: 512,
    scale: [2048, 512],
    iterations: 20_000,
    batchSize: 16,
    lr: 0.01,
    alignCorners: false,
    slide: 0,
  },
  cityscapes: {
    describe: 'Cityscapes, 769 x 769, 40,000 iterations, sliding windows',
    crop: 769,
    scale: [2049, 1025],
    iterations: 40_000,
    batchSize: 8,
    lr: 0.01,
    alignCorners: true,
    slide: 513,
  },
}

/** The rest, which the protocols share. */
export const segmentationTraining = {
  momentum: 0.9,
  weightDecay: 5e-4,
  power: 0.9,
  leastRate: 1e-4,
  ratio: [0.5, 2],
  mostOfAClass: 0.75,
  flip: 0.5,
} as const

/** The learning rate of an iteration: from lr down to leastRate by a power of what is left. */
export function polyRate({ lr, iterations }: Pick<SegmentationProtocol, 'lr' | 'iterations'>, iteration: number): number {
  const { power, leastRate } = segmentationTraining
  const least = Math.min(leastRate, lr)
  return (lr - least) * (1 - iteration / iterations) ** power + least
}
