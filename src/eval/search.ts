/** The images, or the regions of images, that are most like a query, by the cosine of their features. */
import type { Box } from '../data/boxes.js'
import type { Item } from '../data/source.js'
import type { Backbone } from '../nn/backbone.js'
import { fail } from '../tensor/errors.js'
import { type ExtractOptions, overImages } from './features.js'

/** What is looked for, and how. */
export interface SearchOptions extends Pick<ExtractOptions, 'imageSize' | 'workers' | 'compute' | 'progress'> {
  /** A part of the query as shares of its sides, [left, top, right, bottom]; the whole of it when absent. */
  region?: Box | undefined
  /** Hits that are wanted. */
  top?: number
}

/** An image like the query. */
export interface Hit {
  item: Item
  /** Cosine of the means of features, -1 to 1. */
  similarity: number
  /** The part of the image that is like the region, as shares of its sides. */
  box: Box
}

/** The map of an image, f32 [rows, columns, channels]. */
interface FeatureMap {
  rows: number
  columns: number
  channels: number
  values: Float32Array
}

/** What was found, the likest first, and the images that could not be read, by name with the reason. */
export interface SearchResult {
  hits: Hit[]
  broken: Map<string, string>
}

/**
 * Looks for a query in images, all squeezed to squares. A region of the query is compared, as the mean of its cells of the last map, with
 * every window of as many cells, of which an image's best counts. Throws DATA for a query that cannot be read.
 */
export async function searchImages(backbone: Backbone, query: Item, items: readonly Item[], options: SearchOptions): Promise<SearchResult> {
  const { region = [0, 0, 1, 1], top = 12, ...read } = options
  const broken = new Map<string, string>()
  const hits: Hit[] = []
  let wanted: { mean: Float64Array; cells: [number, number] } | undefined
  await overImages(backbone, [query, ...items], { ...read, pipeline: 'square', maxBroken: 1, broken }, (stages, first, count) => {
    const last = stages.at(-1)!
    const [, rows, columns, channels] = last.shape as [number, number, number, number]
    const values = last.to('f32').data() as Float32Array
    for (let i = 0; i < count; ++i) {
      const map = { rows, columns, channels, values: values.subarray(i * rows * columns * channels, (i + 1) * rows * columns * channels) }
      const item = first + i === 0 ? query : items[first + i - 1]!
      if (first + i === 0) {
        if (broken.has(query.name)) fail('DATA', `search: the query cannot be read: ${broken.get(query.name)}`)
        const [x, y, width, height] = cellsOf(region, map)
        wanted = { mean: windowMean(integral(map), map, x, y, width, height), cells: [width, height] }
      } else if (!broken.has(item.name)) hits.push({ item, ...bestWindow(map, wanted!) })
    }
  })
  return { hits: hits.sort((a, b) => b.similarity - a.similarity).slice(0, top), broken }
}

/** The cells that a region covers: of each axis those whose centres lie in it, at least the one that its own centre is in. */
function cellsOf([left, top, right, bottom]: Box, { rows, columns }: FeatureMap): [x: number, y: number, width: number, height: number] {
  const covered = (from: number, to: number, count: number): [number, number] => {
    const [first, last] = [Math.ceil(from * count - 0.5), Math.floor(to * count - 0.5)]
    if (last >= first) return [Math.max(0, first), Math.min(count - 1, last) - Math.max(0, first) + 1]
    return [Math.min(count - 1, Math.floor(((from + to) / 2) * count)), 1]
  }
  const [[x, width], [y, height]] = [covered(left, right, columns), covered(top, bottom, rows)]
  return [x, y, width, height]
}

/** Sums [rows + 1, columns + 1, channels] of all cells above and to the left. */
function integral({ rows, columns, channels, values }: FeatureMap): Float64Array {
  const across = (columns + 1) * channels
  const sums = new Float64Array((rows + 1) * across)
  for (let y = 0; y < rows; ++y)
    for (let x = 0; x < columns; ++x)
      for (let c = 0; c < channels; ++c) {
        const at = (y + 1) * across + (x + 1) * channels + c
        sums[at] = values[(y * columns + x) * channels + c]! + sums[at - across]! + sums[at - channels]! - sums[at - across - channels]!
      }
  return sums
}

function windowMean(
  sums: Float64Array,
  { columns, channels }: FeatureMap,
  x: number,
  y: number,
  width: number,
  height: number,
): Float64Array {
  const corner = (row: number, column: number): number => (row * (columns + 1) + column) * channels
  const [a, b, c, d] = [corner(y, x), corner(y, x + width), corner(y + height, x), corner(y + height, x + width)]
  return Float64Array.from({ length: channels }, (_, i) => (sums[d + i]! - sums[b + i]! - sums[c + i]! + sums[a + i]!) / (width * height))
}

function bestWindow(map: FeatureMap, { mean, cells: [width, height] }: { mean: Float64Array; cells: [number, number] }): Omit<Hit, 'item'> {
  const sums = integral(map)
  let best = { similarity: -Infinity, x: 0, y: 0 }
  for (let y = 0; y + height <= map.rows; ++y)
    for (let x = 0; x + width <= map.columns; ++x) {
      const similarity = cosine(mean, windowMean(sums, map, x, y, width, height))
      if (similarity > best.similarity) best = { similarity, x, y }
    }
  const { similarity, x, y } = best
  const box: Box = [x / map.columns, y / map.rows, (x + width) / map.columns, (y + height) / map.rows]
  return { similarity, box }
}

/** 0 where either is all zeros. */
function cosine(a: Float64Array, b: Float64Array): number {
  let [product, aa, bb] = [0, 0, 0]
  for (let i = 0; i < a.length; ++i) {
    product += a[i]! * b[i]!
    aa += a[i]! ** 2
    bb += b[i]! ** 2
  }
  return aa === 0 || bb === 0 ? 0 : product / Math.sqrt(aa * bb)
}
