/** Features of images for whoever asks: rows for a file, or the dense map of one image. */
import { readFileSync } from 'node:fs'

import { imageTensor } from '../data/augment.js'
import { decode } from '../data/decode.js'
import type { Item } from '../data/source.js'
import type { Backbone } from '../nn/backbone.js'
import { evaluation } from '../nn/layers.js'
import { reshape } from '../ops/elementwise.js'
import { withCompute } from '../tensor/compute.js'
import { fail, systemReason } from '../tensor/errors.js'
import { scope, type Tensor, withDevice } from '../tensor/tensor.js'
import { evaluationCompute } from './compute.js'
import { type ExtractOptions, type FeatureName, featureNames, overImages, poolFeature } from './features.js'

/** What a row holds: a feature as evaluations pool it, or `dense`, the last map as it is. */
export type Embedding = FeatureName | 'dense'
export const embeddings: readonly Embedding[] = [...featureNames, 'dense']

/**
 * Gives the features of images to `row`, in their order, with the shape of one: [C] of `pooled`, else [rows, columns, C]. Images that
 * cannot be read are passed over; gives their names with the reasons.
 */
export async function embedImages(
  backbone: Backbone,
  items: Item[],
  what: Embedding,
  options: Omit<ExtractOptions, 'broken' | 'maxBroken'>,
  row: (image: string, values: Float32Array, shape: readonly number[]) => void,
): Promise<Map<string, string>> {
  const broken = new Map<string, string>()
  await overImages(backbone, items, { ...options, maxBroken: 1, broken }, (stages, first, count) => {
    const map = what === 'dense' ? stages.at(-1)! : poolFeature(stages, what)
    const shape = what === 'pooled' ? [map.shape[3]!] : map.shape.slice(1)
    const size = map.size / count
    const values = Float32Array.from(reshape(map, [count, size]).to('f32').data())
    for (let i = 0; i < count; ++i) {
      const { name } = items[first + i]!
      if (!broken.has(name)) row(name, values.subarray(i * size, (i + 1) * size), shape)
    }
  })
  return broken
}

/** How denseFeatures() sees an image. */
export interface DenseFeatureOptions {
  /** The short side that the image is resized to, in pixels, 224 by default; both sides become multiples of the backbone's stride. */
  shortSide?: number
}

/**
 * The last map f32 [H / stride, W / stride, C] of a whole image, given as a path or as the bytes of a file, for any use of dense features.
 * Throws FILE and DECODE for what cannot be read. The caller owns the tensor.
 */
export async function denseFeatures(
  backbone: Backbone,
  image: string | Uint8Array,
  { shortSide = 224 }: DenseFeatureOptions = {},
): Promise<Tensor> {
  if (!Number.isInteger(shortSide) || shortSide < backbone.stride)
    fail(
      'ARGUMENT',
      `denseFeatures: expected shortSide to be an integer of at least the stride ${backbone.stride} but received ${shortSide}`,
    )
  const name = typeof image === 'string' ? image : 'image'
  const pixels = await decode(typeof image === 'string' ? readImage(image) : Buffer.from(image), name)
  const factor = shortSide / Math.min(pixels.width, pixels.height)
  const side = (length: number): number => backbone.stride * Math.max(1, Math.round((length * factor) / backbone.stride))
  return withDevice(backbone.device, () =>
    withCompute(evaluationCompute(backbone.device), () =>
      scope(() => {
        const x = imageTensor(pixels, { height: side(pixels.height), width: side(pixels.width) })
        const map = backbone.forward(backbone.input(x), evaluation).to('f32')
        return reshape(map, map.shape.slice(1))
      }),
    ),
  )
}

function readImage(path: string): Buffer {
  try {
    return readFileSync(path)
  } catch (error) {
    return fail('FILE', `${path}: cannot be read (${systemReason(error)})`)
  }
}
