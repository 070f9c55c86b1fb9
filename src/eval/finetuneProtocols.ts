/** The published settings of fine-tuning a classifier (docs/method.md, Classifiers). */

/** How a classifier is fine-tuned. */
export interface FinetuneProtocol {
  describe: string
  /** Share of the training images whose labels are used, in %. */
  percent: number
  epochs: number
  /** Epochs after which the learning rate is multiplied by `decay`. */
  steps: readonly number[]
  decay: number
  batchSize: number
  weightDecay: number
  /** Learning rates of the backbone that are tried, and by what that of the last layer is multiplied. */
  lrs: readonly number[]
  headMultipliers: readonly number[]
}

const semiSupervised = {
  epochs: 20,
  steps: [12, 16],
  decay: 0.2,
  batchSize: 256,
  lrs: [0.1, 0.01, 0.001],
  headMultipliers: [1, 10, 100],
} as const

/** The published protocols of fine-tuning by name. */
export const finetuneProtocols: Record<string, FinetuneProtocol> = {
  'imagenet-1percent': {
    describe: '1 % of the labels, 20 epochs, the best of 9 learning rates',
    percent: 1,
    ...semiSupervised,
    weightDecay: 5e-4,
  },
  'imagenet-10percent': {
    describe: '10 % of the labels, 20 epochs, the best of 9 learning rates',
    percent: 10,
    ...semiSupervised,
    weightDecay: 1e-4,
  },
  'imagenet-full': {
    describe: 'all labels, 90 epochs, learning rate 0.1',
    percent: 100,
    epochs: 90,
    steps: [30, 60],
    decay: 0.1,
    batchSize: 256,
    weightDecay: 1e-4,
    lrs: [0.1],
    headMultipliers: [1],
  },
}

/** The name of the protocol for a share of the labels: that of the next larger published share. */
export const protocolOfPercent = (percent: number): string =>
  Object.entries(finetuneProtocols).find(([, protocol]) => percent <= protocol.percent)![0]

/** The protocol for another number of epochs: its steps keep their places in it. */
export const finetuneOfLength = (protocol: FinetuneProtocol, epochs: number): FinetuneProtocol => ({
  ...protocol,
  epochs,
  steps: protocol.steps.map((step) => Math.round((step * epochs) / protocol.epochs)),
})

/** The least images of a batch that batch norm is trained with. */
const leastBatch = 8

/**
 * The batch size of a protocol for some number of labelled images: the published one, of fewer than 16 such batches a 16th of the images
 * and at least 8, as 20 epochs of one batch are too few steps to learn anything in.
 */
export const batchSizeFor = ({ batchSize }: Pick<FinetuneProtocol, 'batchSize'>, images: number): number =>
  Math.min(batchSize, Math.max(leastBatch, Math.ceil(images / 16)))

/** A learning rate, and by what that of the last layer is multiplied. */
export interface FinetuneSetting {
  lr: number
  headMultiplier: number
}

/** All combinations of a protocol's learning rates and multipliers. */
export const settingsOfProtocol = ({ lrs, headMultipliers }: FinetuneProtocol): FinetuneSetting[] =>
  lrs.flatMap((lr) => headMultipliers.map((headMultiplier) => ({ lr, headMultiplier })))

/** What the learning rates of an epoch, counted from 0, are of those at the start. */
export const finetuneDecay = ({ steps, decay }: Pick<FinetuneProtocol, 'steps' | 'decay'>, epoch: number): number =>
  decay ** steps.filter((step) => step <= epoch).length
