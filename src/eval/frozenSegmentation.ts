/**
 * Segmentation by frozen features: windows of images are seen by the backbone as it is, and a linear classifier says the class of each
 * cell of its last two maps. Nothing but that classifier is trained, so the scores are the features'.
 */
import { Loader } from '../data/loader.js'
import { ignoredLabel } from '../data/masks.js'
import type { SegmentationSource } from '../data/segmentationSources.js'
import type { SegmentationAugment } from '../data/segmentationView.js'
import type { Backbone } from '../nn/backbone.js'
import { evaluation } from '../nn/layers.js'
import { type ComputeOptions, withCompute } from '../tensor/compute.js'
import { fail } from '../tensor/errors.js'
import { scope, type Tensor } from '../tensor/tensor.js'
import { areaUnderRoc, type Cells, objectScores, placeLogits, predictedClasses, probeLogits, standardise } from './cellProbe.js'
import { evaluationCompute } from './compute.js'
import { ConfusionMatrix } from './meanIou.js'

export interface FrozenOptions {
  /** Side of the windows in pixels, and how many are drawn of each image. */
  window: number
  windows: number
  /** Images are scaled to fit into it; as they are where absent. */
  scale?: SegmentationAugment['scale']
  seed?: number
  workers?: number
  maxBroken?: number
  /** How many of the last maps are scored, two when absent. */
  maps?: 1 | 2
  /** False leaves out the balanced recall, which is NaN then: it wants a classifier of its own. */
  balanced?: boolean
  /** Scores are means of two ways: trained on the cells of `train` and tested on those of `val`, and the other way round. */
  bothWays?: boolean
  compute?: ComputeOptions | undefined
}

/** Scores of cells, as shares. */
export interface CellScores {
  meanIou: number
  /** Mean share of the cells of each class that a classifier finds in whose training all classes weigh the same. */
  balancedRecall: number
  /** Area under the ROC curve of object against background, which is the first class; NaN where either is missing. */
  objectAuc: number
}

/** What a map scores, and what its places score without a look at it. */
export interface FrozenScores {
  grid: number
  cells: { train: number; val: number }
  features: CellScores
  position: CellScores
}

/** Windows that pass through the network at a time. */
export const batchSizeOf = ({ items }: SegmentationSource): number => Math.min(16, items.length)

/** Scores the last maps of a backbone, the last first, with running statistics. Throws DATA where no cell has a class. */
export async function frozenSegmentation(
  backbone: Backbone,
  { train, val }: { train: SegmentationSource; val: SegmentationSource },
  options: FrozenOptions,
): Promise<FrozenScores[]> {
  const [known, asked] = [await cellsOf(backbone, train, options, 0), await cellsOf(backbone, val, options, 1)]
  const classes = train.classes.length
  const compute = evaluationCompute(backbone.device, options.compute)
  const { seed = 0, bothWays = false, balanced: wanted = true } = options
  return known.map((cells, level) => {
    const test = asked[level]!
    if (cells.labels.length === 0 || test.labels.length === 0)
      fail('DATA', 'frozen segmentation: expected windows with labelled pixels but none of these has any; try a larger --window')
    const ways = (bothWays ? [0, 1] : [0]).map((way) => {
      const [train, val] = way === 0 ? [cells, test] : [test, cells]
      standardise(train, val)
      return {
        features: withCompute(compute, () =>
          scoresOf(val, classes, wanted, (balanced) => probeLogits(train, val, classes, { seed, balanced })),
        ),
        position: scoresOf(val, classes, wanted, (balanced) => placeLogits(train, val, classes, { balanced })),
      }
    })
    return {
      grid: cells.grid,
      cells: { train: cells.labels.length, val: test.labels.length },
      features: meanScores(ways.map(({ features }) => features)),
      position: meanScores(ways.map(({ position }) => position)),
    }
  })
}

function meanScores(all: readonly CellScores[]): CellScores {
  const mean = (of: (scores: CellScores) => number): number => all.reduce((sum, scores) => sum + of(scores), 0) / all.length
  return {
    meanIou: mean(({ meanIou }) => meanIou),
    balancedRecall: mean(({ balancedRecall }) => balancedRecall),
    objectAuc: mean(({ objectAuc }) => objectAuc),
  }
}

function scoresOf({ labels }: Cells, classes: number, wanted: boolean, logitsOf: (balanced: boolean) => Float32Array): CellScores {
  const matrixOf = (logits: Float32Array): ConfusionMatrix => {
    const matrix = new ConfusionMatrix(classes)
    matrix.add(labels, predictedClasses(logits, classes))
    return matrix
  }
  const plain = logitsOf(false)
  return {
    meanIou: matrixOf(plain).scores().meanIou,
    balancedRecall: wanted ? matrixOf(logitsOf(true)).scores().meanAccuracy : NaN,
    objectAuc: areaUnderRoc(objectScores(plain, classes), (at) => labels[at] !== 0),
  }
}

/** The labelled cells of the last two maps in windows of all images, the last map first. `stream` tells sets apart. */
async function cellsOf(
  backbone: Backbone,
  source: SegmentationSource,
  { window, windows, scale, seed = 0, workers = 0, maxBroken = 0.01, maps: levels = 2, compute: given }: FrozenOptions,
  stream: number,
): Promise<(Cells & { grid: number })[]> {
  const augment: SegmentationAugment = { crop: window, scale: scale ?? 'own', ratio: [1, 1], mostOfAClass: 1, flip: 0, distort: false }
  const segmentation = { augment, classes: source.classes.length, ...(source.map === undefined ? {} : { map: source.map }) }
  const batchSize = batchSizeOf(source)
  const loader = new Loader({
    items: source.items,
    imageSize: window,
    batchSize,
    views: 'segmentation',
    segmentation,
    seed,
    workers,
    maxBroken,
  })
  const compute = evaluationCompute(backbone.device, given)
  const parts: { grid: number; dim: number; features: Float32Array[]; labels: number[]; places: number[] }[] = []
  try {
    for await (const batch of loader.batches(windowBatches(source.items.length, batchSize, windows, stream))) {
      const [x, labels] = batch.views() as [Tensor, Tensor]
      const truth = labels.data() as Int32Array
      withCompute(compute, () =>
        scope(() => {
          const maps = backbone.stages(backbone.input(x), evaluation).slice(-levels).reverse()
          maps.forEach((map, level) => {
            const [count, grid, , dim] = map.shape as [number, number, number, number]
            const part = (parts[level] ??= { grid, dim, features: [], labels: [], places: [] })
            const values = map.to('f32').data() as Float32Array
            const cells = Array.from({ length: count * grid * grid }, (_, cell) => ({ cell, label: majority(truth, cell, grid, window) }))
            const labelled = cells.filter(({ label }) => label !== ignoredLabel)
            const features = new Float32Array(labelled.length * dim)
            labelled.forEach(({ cell, label }, at) => {
              features.set(values.subarray(cell * dim, (cell + 1) * dim), at * dim)
              part.labels.push(label)
              part.places.push(cell % (grid * grid))
            })
            part.features.push(features)
          })
        }),
      )
      for (const tensor of [x, labels]) tensor.dispose()
    }
  } finally {
    await loader.close()
  }
  return parts.map(({ grid, dim, features, labels, places }) => {
    const joined = new Float32Array(labels.length * dim)
    let at = 0
    // A piece is gone when the next is taken: what is joined is not held twice.
    for (let piece = features.shift(); piece !== undefined; piece = features.shift()) {
      joined.set(piece, at)
      at += piece.length
    }
    return { grid, dim, features: joined, labels: Uint8Array.from(labels), places: Int32Array.from(places) }
  })
}

/** All images once for each window; the epoch names the random stream that the window is drawn from. */
function* windowBatches(
  count: number,
  batchSize: number,
  windows: number,
  stream: number,
): Generator<{ epoch: number; indices: Int32Array }> {
  for (let w = 0; w < windows; ++w)
    for (let first = 0; first < count; first += batchSize)
      yield { epoch: 2 * w + stream, indices: Int32Array.from({ length: Math.min(batchSize, count - first) }, (_, i) => first + i) }
}

/** The most frequent class of the pixels of a cell, the lowest of equals; none where none of them has one. */
function majority(labels: Int32Array, cell: number, grid: number, window: number): number {
  const [image, i, j] = [Math.floor(cell / (grid * grid)), Math.floor((cell % (grid * grid)) / grid), cell % grid]
  const edge = (at: number): number => Math.floor((at * window) / grid)
  const counts = new Uint32Array(256)
  for (let y = edge(i); y < edge(i + 1); ++y)
    for (let x = edge(j); x < edge(j + 1); ++x) counts[labels[(image * window + y) * window + x]!]! += 1
  let best = ignoredLabel
  let most = 0
  for (let label = 0; label < ignoredLabel; ++label) if (counts[label]! > most) [best, most] = [label, counts[label]!]
  return best
}
