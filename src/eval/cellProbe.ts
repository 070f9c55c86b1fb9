/** A linear classifier of the cells of a map, on frozen features; and what is said of its scores. */
import { Tape } from '../autograd/tape.js'
import { smallNormal } from '../nn/classifier.js'
import { Linear } from '../nn/layers.js'
import { disposeState } from '../nn/module.js'
import { crossEntropy } from '../ops/losses.js'
import { Adam } from '../optim/adam.js'
import { epochOrder } from '../data/sampler.js'
import { Random } from '../tensor/random.js'
import { scope, Tensor } from '../tensor/tensor.js'

/** Cells with their classes: features [count, dim], labels [count], and the place of each in its window. */
export interface Cells {
  features: Float32Array
  dim: number
  labels: Uint8Array
  places: Int32Array
}

/** How the classifier is trained: enough for it to stop moving on some ten thousand cells. */
const training = { epochs: 20, batchSize: 1024, lr: 3e-3, weightDecay: 1e-4 } as const

/** Mean and deviation of each feature of the training cells, by which both sets are shifted and scaled in place. */
export function standardise(train: Cells, test: Cells): void {
  const { dim, features } = train
  const count = features.length / dim
  const [mean, square] = [new Float64Array(dim), new Float64Array(dim)]
  for (let i = 0; i < features.length; ++i) {
    mean[i % dim]! += features[i]! / count
    square[i % dim]! += features[i]! ** 2 / count
  }
  const scale = square.map((value, c) => 1 / Math.sqrt(Math.max(value - mean[c]! ** 2, 1e-12)))
  for (const cells of [features, test.features])
    for (let i = 0; i < cells.length; ++i) cells[i] = (cells[i]! - mean[i % dim]!) * scale[i % dim]!
}

/** How many cells have each class. */
export function classCounts(labels: Uint8Array, classes: number): Float64Array {
  const counts = new Float64Array(classes)
  for (const label of labels) counts[label]! += 1
  return counts
}

/**
 * Logits [count, classes] that a linear classifier of the training cells gives the test cells; with `balanced` each class weighs the same
 * in training, however rare it is. The same for any number of threads.
 */
export function probeLogits(
  train: Cells,
  test: Cells,
  classes: number,
  { seed, balanced }: { seed: number; balanced: boolean },
): Float32Array {
  const { dim, labels } = train
  const { epochs, batchSize, lr, weightDecay } = training
  const random = new Random(seed, 89)
  const count = labels.length
  return scope(() => {
    const linear = new Linear({ random, dtype: 'f32' }, dim, classes, smallNormal)
    const { parameters } = linear.state()
    const adam = new Adam(parameters, { weightDecay })
    const shares = classCounts(labels, classes)
    const present = shares.filter((share) => share > 0).length
    // Sums of the weights of all cells stay what they are without weights.
    const weight = Tensor.from(
      shares.map((share) => (!balanced ? 1 : share === 0 ? 0 : count / present / share)),
      [classes],
      'f32',
    )
    try {
      const steps = Math.ceil(count / batchSize)
      for (let epoch = 0; epoch < epochs; ++epoch) {
        const order = epochOrder(seed, epoch, count)
        for (let step = 0; step < steps; ++step) {
          const rows = order.subarray(step * batchSize, Math.min(count, (step + 1) * batchSize))
          const rate = 0.5 * lr * (1 + Math.cos((Math.PI * (epoch * steps + step)) / (epochs * steps)))
          scope(() => {
            const tape = new Tape().watch([...parameters.values()])
            const [x, target] = [
              Tensor.from(rowsOf(train, rows), [rows.length, dim]),
              Tensor.from(
                rows.map((row) => labels[row]!),
                [rows.length],
                'i32',
              ),
            ]
            const loss = tape.record(() => crossEntropy(linear.forward(x), target, { weight }))
            adam.step(tape.backward(loss, [...parameters.values()]), rate)
          })
        }
      }
      return Float32Array.from(linear.forward(Tensor.from(test.features, [test.labels.length, dim])).data())
    } finally {
      adam.dispose()
      disposeState(linear.state())
    }
  })
}

function rowsOf({ features, dim }: Cells, rows: Int32Array): Float32Array {
  const out = new Float32Array(rows.length * dim)
  rows.forEach((row, at) => out.set(features.subarray(row * dim, (row + 1) * dim), at * dim))
  return out
}

/**
 * Logits [count, classes] of the test cells by their place in the window alone: how often the training cells there have each class, one
 * more of each than there are; with `balanced` over how often the class is anywhere.
 */
export function placeLogits(train: Cells, test: Cells, classes: number, { balanced }: { balanced: boolean }): Float32Array {
  const places = Math.max(largestOf(train.places), largestOf(test.places)) + 1
  const counts = new Float64Array(places * classes).fill(1)
  train.labels.forEach((label, at) => (counts[train.places[at]! * classes + label]! += 1))
  const shares = classCounts(train.labels, classes)
  return Float32Array.from({ length: test.labels.length * classes }, (_, i) => {
    const [at, label] = [Math.floor(i / classes), i % classes]
    const here = counts[test.places[at]! * classes + label]!
    if (!balanced) return Math.log(here)
    return shares[label] === 0 ? -Infinity : Math.log(here / (shares[label]! + places))
  })
}

const largestOf = (values: Int32Array): number => values.reduce((most, value) => Math.max(most, value), 0)

/** The class with the largest logit of each row, the first of equals. */
export function predictedClasses(logits: Float32Array, classes: number): Uint8Array {
  return Uint8Array.from({ length: logits.length / classes }, (_, row) => {
    let best = 0
    for (let c = 1; c < classes; ++c) if (logits[row * classes + c]! > logits[row * classes + best]!) best = c
    return best
  })
}

/** For each row the logarithm of the odds that it is any class but the first: what tells object from background. */
export function objectScores(logits: Float32Array, classes: number): Float64Array {
  return Float64Array.from({ length: logits.length / classes }, (_, row) => {
    const own = logits.subarray(row * classes, (row + 1) * classes)
    let most = -Infinity
    for (let c = 1; c < classes; ++c) most = Math.max(most, own[c]!)
    let sum = 0
    for (let c = 1; c < classes; ++c) sum += Math.exp(own[c]! - most)
    return most + Math.log(sum) - own[0]!
  })
}

/**
 * The area under the ROC curve of scores: the share of pairs of a positive and a negative in which the positive has the higher score, equal
 * ones counting half. NaN where either is missing.
 */
export function areaUnderRoc(scores: Float64Array, positive: (at: number) => boolean): number {
  const order = Array.from(scores.keys()).sort((a, b) => scores[a]! - scores[b]!)
  let [ranks, positives] = [0, 0]
  for (let first = 0; first < order.length;) {
    let last = first
    while (last + 1 < order.length && scores[order[last + 1]!] === scores[order[first]!]) last += 1
    // Equal scores share the mean of their ranks.
    const rank = (first + last) / 2 + 1
    for (let i = first; i <= last; ++i)
      if (positive(order[i]!)) {
        ranks += rank
        positives += 1
      }
    first = last + 1
  }
  const negatives = order.length - positives
  return (ranks - (positives * (positives + 1)) / 2) / (positives * negatives)
}
