/**
 * Weighted k-nearest-neighbour classification of frozen features (Wu et al., arXiv:1805.01978): cosine similarity of pooled
 * features, each of the k nearest votes exp(similarity / T).
 */
import type { Item } from '../data/source.js'
import { Group } from '../distributed/group.js'
import type { Backbone } from '../nn/backbone.js'
import { reshape } from '../ops/elementwise.js'
import { linear } from '../ops/linear.js'
import { l2Normalize } from '../ops/similarity.js'
import { withCompute } from '../tensor/compute.js'
import { fail } from '../tensor/errors.js'
import { stopIfInterrupted } from '../tensor/interruption.js'
import { scope, Tensor } from '../tensor/tensor.js'
import { evaluationCompute } from './compute.js'
import { type ExtractOptions, labelsOf, overImages, poolFeature } from './features.js'
import { partOf } from './shares.js'
import { largest } from '../tensor/numbers.js'

/** Features of labelled images, normalised. */
export interface Features {
  /** [N, C], unit rows */
  values: Float32Array
  dim: number
  labels: Int32Array
}

/** Globally average-pooled, normalised features of the images' centres, with running statistics. */
export async function extractFeatures(backbone: Backbone, items: Item[], options: ExtractOptions): Promise<Features> {
  const dim = backbone.channels
  const values = new Float32Array(items.length * dim)
  await overImages(backbone, items, options, (stages, first, count) => {
    values.set(l2Normalize(reshape(poolFeature(stages, 'pooled'), [count, dim])).data(), first * dim)
  })
  return { values, dim, labels: labelsOf(items, 'kNN') }
}

/** Settings of a kNN classification. */
export interface KnnOptions {
  k: number
  temperature?: number
}

/** Predicted labels of `queries` from the labelled `bank`. */
export function knnPredict(bank: Features, queries: Features, { k, temperature = 0.07 }: KnnOptions): Int32Array {
  if (bank.dim !== queries.dim) fail('SHAPE', `kNN: the bank has features of ${bank.dim} channels but the queries of ${queries.dim}`)
  const count = bank.labels.length
  const classes = bank.labels.reduce((most, label) => Math.max(most, label), 0) + 1
  const neighbours = Math.min(k, count)
  const predicted = new Int32Array(queries.labels.length)
  scope(() => {
    const keys = Tensor.from(bank.values, [count, bank.dim])
    for (let first = 0; first < predicted.length; first += queryBlock) {
      stopIfInterrupted()
      const rows = Math.min(queryBlock, predicted.length - first)
      const block = queries.values.subarray(first * bank.dim, (first + rows) * bank.dim)
      const similarities = scope(() => linear(Tensor.from(block, [rows, bank.dim]), keys).data())
      for (let q = 0; q < rows; ++q)
        predicted[first + q] = vote(similarities.subarray(q * count, (q + 1) * count), bank.labels, classes, neighbours, temperature)
    }
  })
  return predicted
}

const queryBlock = 64

/** The class with most votes among the most similar; of equally similar ones the first are taken. */
function vote(similarity: ArrayLike<number>, labels: Int32Array, classes: number, neighbours: number, temperature: number): number {
  const threshold = Float64Array.from(similarity).sort()[labels.length - neighbours]!
  const votes = new Float64Array(classes)
  let above = 0
  for (let i = 0; i < labels.length; ++i) {
    if (similarity[i]! <= threshold) continue
    votes[labels[i]!]! += Math.exp(similarity[i]! / temperature)
    above += 1
  }
  for (let i = 0; i < labels.length && above < neighbours; ++i) {
    if (similarity[i]! !== threshold) continue
    votes[labels[i]!]! += Math.exp(threshold / temperature)
    above += 1
  }
  return votes.indexOf(largest(votes))
}

export function accuracy(predicted: Int32Array, labels: Int32Array): number {
  return predicted.reduce((sum, label, i) => sum + Number(label === labels[i]), 0) / labels.length
}

/**
 * The share of queries whose class is right. Of several processes, which all call it with the same, each looks at its part of the images
 * and classifies its part of the queries.
 */
export async function knnAccuracy(
  backbone: Backbone,
  bank: Item[],
  queries: Item[],
  options: KnnOptions & Pick<ExtractOptions, 'imageSize' | 'workers' | 'maxBroken' | 'compute'>,
  group = Group.single,
): Promise<number> {
  const own = await extractFeatures(backbone, partOf(bank, group), options)
  const known = { ...own, values: gathered(own, bank.length, group), labels: labelsOf(bank, 'kNN') }
  const unknown = await extractFeatures(backbone, partOf(queries, group), options)
  const compute = evaluationCompute(backbone.device, options.compute)
  const predicted = withCompute(compute, () => knnPredict(known, unknown, options))
  const right = predicted.filter((label, i) => label === unknown.labels[i]).length
  return group.sum([right])[0]! / queries.length
}

/** The rows of all processes, of which there are `count`. */
function gathered({ values, dim }: Features, count: number, group: Group): Float32Array {
  if (group.size === 1) return values
  return scope(() => {
    const rows = Math.ceil(count / group.size)
    const padded = new Float32Array(rows * dim)
    padded.set(values)
    return (group.allGather(Tensor.from(padded, [rows, dim], 'f32', 'cpu')).data() as Float32Array).slice(0, count * dim)
  })
}
