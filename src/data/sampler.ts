import { Random } from '../tensor/random.js'

/** Order of the images in an epoch: a function of seed and epoch alone, so that a run can continue anywhere. */
export function epochOrder(seed: number, epoch: number, count: number): Int32Array {
  return new Random(seed, 11, epoch).permutation(count)
}

/** The images of one batch; the incomplete last batch of an epoch is dropped, as in the original. */
export function batchIndices(order: Int32Array, batchSize: number, step: number): Int32Array {
  return order.slice(step * batchSize, (step + 1) * batchSize)
}

/** The whole batches of an epoch; what remains is left out. */
export const stepsPerEpoch = (count: number, batchSize: number): number => Math.floor(count / batchSize)

/** The batches of epochs `from` (0) to `until`, shuffled anew in each: what a Loader is asked for. */
export function* epochBatches({
  count,
  batchSize,
  until,
  from = 0,
  seed = 0,
}: {
  count: number
  batchSize: number
  until: number
  from?: number
  seed?: number
}): Generator<{ epoch: number; indices: Int32Array }> {
  for (let epoch = from; epoch < until; ++epoch) {
    const order = epochOrder(seed, epoch, count)
    for (let step = 0; step < stepsPerEpoch(count, batchSize); ++step) yield { epoch, indices: batchIndices(order, batchSize, step) }
  }
}

/** The batches of all images once, in their order; the last one may be smaller. */
export function* orderedBatches(count: number, batchSize: number): Generator<{ epoch: number; indices: Int32Array }> {
  for (let first = 0; first < count; first += batchSize)
    yield { epoch: 0, indices: Int32Array.from({ length: Math.min(batchSize, count - first) }, (_, i) => first + i) }
}

/** Batches of `count` images, those of the steps `from` to `until`. */
interface BatchRange {
  seed: number
  count: number
  batchSize: number
  from: number
  until: number
}

/** The images of iterations `from` to `until`: shuffled epochs one after the other, batches reaching across their ends. */
export function* iterationBatches({ seed, count, batchSize, from, until }: BatchRange): Generator<{ epoch: number; indices: Int32Array }> {
  let drawn: { epoch: number; order: Int32Array } | undefined
  for (let iteration = from; iteration < until; ++iteration) {
    const indices = Int32Array.from({ length: batchSize }, (_, i) => {
      const place = iteration * batchSize + i
      const epoch = Math.floor(place / count)
      if (drawn?.epoch !== epoch) drawn = { epoch, order: epochOrder(seed, epoch, count) }
      return drawn.order[place % count]!
    })
    yield { epoch: iteration, indices }
  }
}

/** The batches of an epoch that leave no image out, each of `least` images or more where there are so many. */
export const evenStepsPerEpoch = (count: number, batchSize: number, least = 1): number =>
  Math.min(Math.ceil(count / batchSize), Math.max(1, Math.floor(count / least)))

/** Images that room is needed for in such a batch. */
export const mostOfEvenBatch = (count: number, batchSize: number, least: number): number =>
  Math.max(batchSize, Math.ceil(count / evenStepsPerEpoch(count, batchSize, least)))

/**
 * The batches of steps `from` to `until` in shuffled epochs, no larger than `batchSize` and of sizes that differ by one at most: batch norm
 * never sees the few images that whole batches would leave. Those of `least` images or more may have one more than `batchSize`.
 */
export function* evenBatches({ least, ...range }: BatchRange & { least?: number }): Generator<{ epoch: number; indices: Int32Array }> {
  const { seed, count, batchSize, from, until } = range
  const steps = evenStepsPerEpoch(count, batchSize, least)
  let drawn: { epoch: number; order: Int32Array } | undefined
  for (let step = from; step < until; ++step) {
    const [epoch, place] = [Math.floor(step / steps), step % steps]
    if (drawn?.epoch !== epoch) drawn = { epoch, order: epochOrder(seed, epoch, count) }
    yield { epoch, indices: drawn.order.slice(Math.floor((place * count) / steps), Math.floor(((place + 1) * count) / steps)) }
  }
}
