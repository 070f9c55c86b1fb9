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
import { topK } from '../ops/topK.js'
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
  const [{ dim, labels }, count] = [bank, queries.labels.length]
  const classes = labels.reduce((most, label) => Math.max(most, label), 0) + 1
  const predicted = new Int32Array(count)
  scope(() => {
    const parts = Array.from({ length: Math.ceil(labels.length / bankBlock) }, (_, part) => ({
      first: part * bankBlock,
      keys: Tensor.from(...rowsOf(bank, part * bankBlock, bankBlock)),
    }))
    for (let first = 0; first < count; first += queryBlock) {
      const block = Tensor.from(...rowsOf(queries, first, queryBlock))
      const nearest = new Nearest(block.shape[0]!, Math.min(k, labels.length))
      for (const { first: row, keys } of parts) {
        stopIfInterrupted()
        scope(() => {
          const { values, index } = topK(linear(block, keys), Math.min(k, keys.shape[0]!))
          nearest.take(values.data() as Float32Array, index.data() as Int32Array, row)
        })
      }
      block.dispose()
      for (let q = 0; q < block.shape[0]!; ++q) predicted[first + q] = vote(nearest.of(q), labels, classes, temperature)
    }
  })
  return predicted

  function rowsOf({ values }: Features, first: number, most: number): [Float32Array, [number, number]] {
    const rows = Math.min(most, values.length / dim - first)
    return [values.subarray(first * dim, (first + rows) * dim), [rows, dim]]
  }
}

// The similarities of a block to a part of the bank are 64 MiB; each part is packed for the product once for so many queries.
const [queryBlock, bankBlock] = [1024, 16_384]

/** The bytes that features of so many images take, and a classification of them: the bank twice, and similarities of a block. */
export const knnBytes = (bank: number, queries: number, channels: number): number =>
  4 * ((2 * bank + queries) * channels + Math.min(queries, queryBlock) * Math.min(bank, bankBlock))

/** The most similar rows of the bank for each query: of equally similar ones the first. */
class Nearest {
  #values: Float32Array
  #rows: Int32Array
  /** How many there are for each query. */
  #count = 0

  constructor(
    readonly queries: number,
    readonly most: number,
  ) {
    this.#values = new Float32Array(0)
    this.#rows = new Int32Array(0)
  }

  /** Takes those of a later part of the bank, which begins with `first`: similarities in descending order [queries, n], and places. */
  take(values: Float32Array, index: Int32Array, first: number): void {
    const added = values.length / this.queries
    const count = Math.min(this.most, this.#count + added)
    const [merged, rows] = [new Float32Array(this.queries * count), new Int32Array(this.queries * count)]
    for (let q = 0; q < this.queries; ++q) {
      let [old, next] = [q * this.#count, q * added]
      const [oldEnd, nextEnd] = [old + this.#count, next + added]
      for (let at = q * count; at < (q + 1) * count; ++at) {
        const stays = next >= nextEnd || (old < oldEnd && this.#values[old]! >= values[next]!)
        merged[at] = stays ? this.#values[old]! : values[next]!
        rows[at] = stays ? this.#rows[old++]! : first + index[next++]!
      }
    }
    this.#values = merged
    this.#rows = rows
    this.#count = count
  }

  *of(query: number): Generator<{ similarity: number; row: number }> {
    for (let at = query * this.#count; at < (query + 1) * this.#count; ++at) yield { similarity: this.#values[at]!, row: this.#rows[at]! }
  }
}

/** The class with most votes among the most similar, nearest first: votes are relative to the first, so that none overflows. */
function vote(nearest: Iterable<{ similarity: number; row: number }>, labels: Int32Array, classes: number, temperature: number): number {
  const votes = new Float64Array(classes)
  let highest: number | undefined
  for (const { similarity, row } of nearest) votes[labels[row]!]! += Math.exp((similarity - (highest ??= similarity)) / temperature)
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
