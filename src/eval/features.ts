/** Frozen features of images: a backbone's maps, pooled as the benchmarks pool them (docs/method.md, Features). */
import { imagesOf } from '../run/backbone.js'
import { Loader } from '../data/loader.js'
import type { Pipeline } from '../data/pipelines.js'
import { orderedBatches } from '../data/sampler.js'
import type { Item } from '../data/source.js'
import { evaluation } from '../nn/layers.js'
import type { Backbone } from '../nn/backbone.js'
import { concat } from '../ops/concat.js'
import { reshape } from '../ops/elementwise.js'
import { adaptiveAvgPool2d, avgPool2d } from '../ops/pool2d.js'
import { slice } from '../ops/slice.js'
import { type ComputeOptions, withCompute } from '../tensor/compute.js'
import { fail } from '../tensor/errors.js'
import { scope, Tensor } from '../tensor/tensor.js'
import { evaluationCompute } from './compute.js'

/**
 * `pooled`: the mean of the last map. feature5 is the last map, feature4 the one before it, and so on: on a ResNet feature1 is the
 * stem before its pooling, and feature2 to feature5 are the stages.
 */
export const featureNames = ['pooled', 'feature1', 'feature2', 'feature3', 'feature4', 'feature5'] as const
/** The name of a feature that the benchmarks pool (docs/method.md, Features). */
export type FeatureName = (typeof featureNames)[number]

/** The windows that give about 9,000 values each from the maps of 224 pixels: size of the map, kernel, stride, padding, grid. */
const windows = [
  { map: 112, kernel: 10, stride: 10, padding: 4, grid: 12 },
  { map: 56, kernel: 16, stride: 8, padding: 0, grid: 6 },
  { map: 28, kernel: 13, stride: 5, padding: 0, grid: 4 },
  { map: 14, kernel: 8, stride: 3, padding: 0, grid: 3 },
  { map: 7, kernel: 6, stride: 1, padding: 0, grid: 2 },
] as const

/**
 * A feature [N, grid, grid, C] of the stages' maps; of bf16 maps it is f32, and a constant to a tape. Maps of another size than 224 pixels
 * give are averaged into the same grids, or the map itself where that is smaller.
 */
export function poolFeature(stages: readonly Tensor[], name: FeatureName): Tensor {
  const level = name === 'pooled' ? windows.length - 1 : Number(name.slice(-1)) - 1
  const map =
    stages.at(level - windows.length) ??
    fail(
      'CONFIG',
      `features: expected one of pooled, ${featureNames.slice(-stages.length).join(', ')}, as the backbone ` +
        `has ${stages.length} maps, but received ${name}`,
    )
  const { map: expected, grid, kernel, stride, padding } = windows[level]!
  const [, height, width] = map.shape as [number, number, number, number]
  return averaged(map, (x) => {
    if (name === 'pooled') return adaptiveAvgPool2d(x, 1)
    if (height === expected && width === expected) return avgPool2d(x, { kernel, stride, padding })
    return adaptiveAvgPool2d(x, [Math.min(grid, height), Math.min(grid, width)])
  })
}

/** Images whose maps in bf16 are averaged at a time: all of them in f32 would take twice the memory of the maps. */
const averagedAtOnce = 16

/** What `average` makes of a map [N, H, W, C], in f32 of one in bf16. */
function averaged(map: Tensor, average: (x: Tensor) => Tensor): Tensor {
  if (map.dtype !== 'bf16') return average(map)
  const count = map.shape[0]!
  return scope(() => {
    const firsts = Array.from({ length: Math.ceil(count / averagedAtOnce) }, (_, part) => part * averagedAtOnce)
    const parts = firsts.map((first) => scope(() => average(slice(map, [[first, Math.min(count, first + averagedAtOnce)]]).to('f32'))))
    return concat(parts, 0)
  })
}

/** Features of images x [N, H, W, inputs], each f32 [N, grid, grid, C], with running statistics. */
export function pooledFeatures(backbone: Backbone, x: Tensor, names: readonly FeatureName[]): Tensor[] {
  return scope(() => {
    const stages = backbone.stages(backbone.input(x), evaluation)
    return names.map((name) => poolFeature(stages, name))
  })
}

/** How images are read for frozen features. */
export interface ExtractOptions {
  imageSize: number
  /** `centre` for classification, `square` for VOC07. */
  pipeline?: Extract<Pipeline, 'centre' | 'square'>
  workers?: number
  batchSize?: number
  maxBroken?: number
  /** Is filled with the images that could not be read, by name with the reason, before those of a batch; they count as black ones. */
  broken?: Map<string, string>
  /** Settings to compute with; evaluationCompute() says what holds without them. */
  compute?: ComputeOptions | undefined
  /** Called after every batch. */
  progress?: (done: number) => void
}

/** Images that pass through the network at a time unless told otherwise. */
export const extractBatch = 64

/** The maps of all images in order, with running statistics; `body` gets the stages' maps of some images and where these are. */
export async function overImages(
  backbone: Backbone,
  items: Item[],
  options: ExtractOptions,
  body: (stages: Tensor[], first: number, count: number) => void,
): Promise<void> {
  const { imageSize, batchSize = extractBatch, maxBroken = 0.01, workers = 0, pipeline = 'centre', progress } = options
  const compute = evaluationCompute(backbone.device, options.compute)
  const loader = new Loader({ items, imageSize, batchSize, views: pipeline, seed: 0, images: imagesOf(backbone), workers, maxBroken })
  const tell = (): void => {
    for (const [name, reason] of loader.broken) options.broken?.set(name, reason)
  }
  try {
    for await (const batch of loader.batches(orderedBatches(items.length, batchSize))) {
      const [x] = batch.views() as [Tensor]
      const first = batch.indices[0]!
      tell()
      try {
        withCompute(compute, () => scope(() => body(backbone.stages(backbone.input(x), evaluation), first, batch.indices.length)))
      } finally {
        x.dispose()
      }
      progress?.(first + batch.indices.length)
    }
  } finally {
    tell()
    await loader.close()
  }
}

/** Rows [N, dim] of a feature, flattened. */
export async function featureRows(
  backbone: Backbone,
  items: Item[],
  name: FeatureName,
  options: ExtractOptions,
): Promise<{ values: Float32Array; dim: number }> {
  let values = new Float32Array(0)
  let dim = 0
  await overImages(backbone, items, options, (stages, first, count) => {
    const pooled = poolFeature(stages, name)
    dim = pooled.size / count
    if (values.length === 0) values = new Float32Array(items.length * dim)
    values.set(reshape(pooled, [count, dim]).data(), first * dim)
  })
  return { values, dim }
}

/** The labels of items, which all must have one. */
export const labelsOf = (items: readonly Item[], what: string): Int32Array =>
  Int32Array.from(items, (item) => item.label ?? fail('DATA', `${what}: ${item.name} has no label`))
