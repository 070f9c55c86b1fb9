/**
 * Whether dense features find the same place again: two random views of each image, whose crops are known, and for each position of the
 * one the most similar position of the other. No labels, no training. "Always the same place" is what a network scores that knows
 * positions and nothing else.
 */
import { imagesOf } from '../run/backbone.js'
import { type AugmentOptions, mocoV2Augmentation } from '../data/augment.js'
import { Loader } from '../data/loader.js'
import { partnersByCrops } from '../data/partners.js'
import { orderedBatches } from '../data/sampler.js'
import type { Item } from '../data/source.js'
import type { Backbone } from '../nn/backbone.js'
import { evaluation } from '../nn/layers.js'
import { reshape } from '../ops/elementwise.js'
import { denseMatch } from '../ops/similarity.js'
import { type ComputeOptions, withCompute } from '../tensor/compute.js'
import { fail } from '../tensor/errors.js'
import { Random } from '../tensor/random.js'
import { scope, type Tensor } from '../tensor/tensor.js'
import { evaluationCompute } from './compute.js'

/** Shares of the positions that both views show. */
export interface Hits {
  /** The right position, and it or one of its eight neighbours. */
  exact: number
  near: number
}

/** What the features of a map score. */
export interface Correspondence {
  /** Side of the map. */
  grid: number
  /** Positions that both views of an image show, of all images. */
  positions: number
  found: Hits
  samePlace: Hits
}

export interface CorrespondenceOptions {
  /** Side of the views in pixels. */
  imageSize: number
  /** Of the crops. */
  seed?: number
  /** How views are drawn; crops, flips and colours of training without blur when absent. */
  augment?: AugmentOptions
  workers?: number
  batchSize?: number
  maxBroken?: number
  broken?: Map<string, string>
  compute?: ComputeOptions | undefined
  progress?: (done: number) => void
}

/** At most so many of the items, drawn by the seed, in their order. */
export function drawnItems(items: Item[], most: number, seed: number): Item[] {
  if (items.length <= most) return items
  const chosen = new Random(seed, 79)
    .permutation(items.length)
    .slice(0, most)
    .sort((a, b) => a - b)
  return Array.from(chosen, (at) => items[at]!)
}

/** The views: crops, flips and colours of training, no blur, which takes from small views what there is to see. */
const usualViews: AugmentOptions = { ...mocoV2Augmentation, grayscale: 0, blur: 0 }

/**
 * Scores the last two maps of a backbone (the last first) on two views of each image, frozen, with running statistics. The views are the
 * same for every backbone, size of a map and device. Throws DATA where no position is shown by both views of any image.
 */
export async function correspondence(backbone: Backbone, items: Item[], options: CorrespondenceOptions): Promise<Correspondence[]> {
  const { imageSize, seed = 0, augment = usualViews, batchSize = 32, maxBroken = 0.01, workers = 0, progress } = options
  const compute = evaluationCompute(backbone.device, options.compute)
  // Views of the CPU: their number may be any, and they are the same bits everywhere.
  const loader = new Loader({
    items,
    imageSize,
    batchSize,
    views: 'augmented',
    augment,
    images: imagesOf(backbone),
    seed,
    workers,
    maxBroken,
  })
  const tallies: Tally[] = []
  try {
    for await (const batch of loader.batches(orderedBatches(items.length, batchSize))) {
      const pair = batch.views() as [Tensor, Tensor]
      const crops = batch.crops()
      withCompute(compute, () =>
        scope(() => {
          const [query, key] = pair.map((view) => backbone.stages(backbone.input(view), evaluation).slice(-2).reverse()) as [
            Tensor[],
            Tensor[],
          ]
          query.forEach((map, level) => {
            const tally = (tallies[level] ??= new Tally(map.shape[1]!))
            const { index } = denseMatch(positions(map), positions(key[level]!))
            tally.add(index.data(), partnersByCrops(crops, tally.grid))
          })
        }),
      )
      for (const view of pair) view.dispose()
      progress?.(batch.indices[0]! + batch.indices.length)
    }
  } finally {
    for (const [name, reason] of loader.broken) options.broken?.set(name, reason)
    await loader.close()
  }
  return tallies.map((tally) => tally.scores())
}

/** [N, S, S, C] as [N, S * S, C] */
const positions = (map: Tensor): Tensor => reshape(map, [map.shape[0]!, map.shape[1]! * map.shape[2]!, map.shape[3]!])

/** Hits on a grid, counted. */
class Tally {
  #shown = 0
  readonly #found = { exact: 0, near: 0 }
  readonly #same = { exact: 0, near: 0 }

  constructor(readonly grid: number) {}

  /** Matches of views [N, P] and the right ones, -1 where there is none. */
  add(matches: ArrayLike<number>, partners: Int32Array): void {
    const side = this.grid
    const count = (hits: Hits, answer: number, right: number): void => {
      const apart = Math.max(Math.abs((answer % side) - (right % side)), Math.abs(Math.floor(answer / side) - Math.floor(right / side)))
      hits.exact += Number(apart === 0)
      hits.near += Number(apart <= 1)
    }
    partners.forEach((right, at) => {
      if (right < 0) return
      this.#shown += 1
      count(this.#found, matches[at]!, right)
      count(this.#same, at % (side * side), right)
    })
  }

  scores(): Correspondence {
    const shown = this.#shown
    if (shown === 0) fail('DATA', 'correspondence: expected two views of an image that share a place, but none of these images has them')
    const shares = ({ exact, near }: Hits): Hits => ({ exact: exact / shown, near: near / shown })
    return { grid: this.grid, positions: shown, found: shares(this.#found), samePlace: shares(this.#same) }
  }
}
