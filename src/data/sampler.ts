import { Random } from '../nn/random.js'

/** Order of the images in an epoch: a function of seed and epoch alone, so that a run can continue anywhere. */
export function epochOrder(seed: number, epoch: number, count: number): Int32Array {
  return new Random(seed, 11, epoch).permutation(count)
}

/** The images of one batch; the incomplete last batch of an epoch is dropped, as in the original. */
export function batchIndices(order: Int32Array, batchSize: number, step: number): Int32Array {
  return order.slice(step * batchSize, (step + 1) * batchSize)
}

export const stepsPerEpoch = (count: number, batchSize: number): number => Math.floor(count / batchSize)
