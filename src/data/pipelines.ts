/**
 * What becomes of an image on its way into a network: the transforms of pre-training and of each benchmark (docs/method.md),
 * as functions of its pixels and a random stream.
 */
import type { Random } from '../tensor/random.js'
import {
  type AugmentOptions,
  colourImages,
  imagenetDeviation,
  type ImageFormat,
  mocoV2Augmentation,
  randomView,
  renderChannels,
  wholeImage,
} from './augment.js'
import type { Pixels } from './decode.js'

/**
 * - `augmented`: two random views; on a GPU they are made there, from `pixels`
 * - `crop`: one random view, of which lighting noise may be a part
 * - `shifted`: short side to 256, central square, random square of 224, flip (Places205)
 * - `centre`: short side to 256, central square of 224 (testing)
 * - `square`: short side to 256, then all of it squeezed to 224 x 224 (the VOC07 SVM protocol)
 *
 * Sizes are those for an image size of 224 and scale with it.
 */
export type Pipeline = 'augmented' | 'crop' | 'shifted' | 'centre' | 'square'

/** Random resized crop of 8 to 100 % and flip, nothing else: the training transform of the linear protocols. */
export const cropAndFlip: AugmentOptions = { ...mocoV2Augmentation, cropScale: [0.08, 1], jitter: 0, hue: 0, grayscale: 0, blur: 0 }

/** One view as `pipeline` makes it, normalised as `images` says: f32 [size * size * channels]. */
export function renderPipeline(
  pipeline: Exclude<Pipeline, 'augmented'>,
  pixels: Pixels,
  size: number,
  random: Random,
  options: { augment: AugmentOptions; lighting: number; images?: ImageFormat },
): Float32Array {
  const { images = colourImages } = options
  switch (pipeline) {
    case 'crop': {
      const view = randomView(random, pixels.width, pixels.height, options.augment)
      const values = renderChannels(pixels, view, { height: size, width: size }, images)
      if (options.lighting > 0 && images.channels === 3) addLighting(values, random, options.lighting)
      return values
    }
    case 'shifted': {
      const margin = shortSide(size) - size
      const place = { top: random.below(margin + 1), left: random.below(margin + 1) }
      return centralSquare(pixels, size, images, place, random.uniform() < 0.5)
    }
    case 'centre':
      return centralSquare(pixels, size, images)
    case 'square': {
      const small = shortSideTo(pixels, shortSide(size), images)
      return renderChannels(small, wholeImage(small), { height: size, width: size }, images)
    }
  }
}

const shortSide = (size: number): number => Math.round((size * 256) / 224)

/** The size of an image whose short side becomes `side`; the long one is rounded down, as torchvision does. */
function resized({ width, height }: Pixels, side: number): [height: number, width: number] {
  const other = (long: number, short: number): number => Math.floor((side * long) / short)
  return width < height ? [other(height, width), side] : [side, other(width, height)]
}

/** Half of a margin, halves to the even neighbour as Python rounds. */
function half(margin: number): number {
  const down = Math.floor(margin / 2)
  return margin % 2 === 0 || down % 2 === 0 ? down : down + 1
}

/** A square of the image with its short side at 256/224 of `size`: the central one, or at `place` of the central square of that. */
function centralSquare(
  pixels: Pixels,
  size: number,
  images: ImageFormat,
  place?: { top: number; left: number },
  flip = false,
): Float32Array {
  const { channels } = images
  const side = shortSide(size)
  const [height, width] = resized(pixels, side)
  const values = renderChannels(pixels, wholeImage(pixels), { height, width }, images)
  const within = place === undefined ? size : side
  const top = half(height - within) + (place?.top ?? 0)
  const left = half(width - within) + (place?.left ?? 0)
  const out = new Float32Array(size * size * channels)
  for (let y = 0; y < size; ++y) {
    const row = ((top + y) * width + left) * channels
    const pixel = (x: number): Float32Array => values.subarray(row + channels * x, row + channels * (x + 1))
    if (!flip) out.set(values.subarray(row, row + size * channels), y * size * channels)
    else for (let x = 0; x < size; ++x) out.set(pixel(size - 1 - x), (y * size + x) * channels)
  }
  return out
}

/** Pixels with their short side at `side`, rounded to bytes as an image library does between two resizings. */
function shortSideTo(pixels: Pixels, side: number, images: ImageFormat): Pixels {
  const [height, width] = resized(pixels, side)
  const values = renderChannels(pixels, wholeImage(pixels), { height, width }, images, false)
  return { height, width, channels: images.channels, data: Uint8Array.from(values, (value) => 255 * value + 0.5) }
}

/** Colours of ImageNet's pixels: principal axes (rows of RGB, one column an axis) and their variances (Krizhevsky et al., 2012). */
const principalAxes = [
  [-0.5675, 0.7192, 0.4009],
  [-0.5808, -0.0045, -0.814],
  [-0.5836, -0.6948, 0.4203],
] as const
const principalValues = [0.2175, 0.0188, 0.0045] as const

/** Adds one colour to a whole normalised view: each principal axis times its variance times a normal number of deviation `lighting`. */
function addLighting(values: Float32Array, random: Random, lighting: number): void {
  const strength = principalValues.map((value) => value * lighting * random.normal())
  const shift = principalAxes.map((row, c) => row.reduce((sum, axis, i) => sum + axis * strength[i]!, 0) / imagenetDeviation[c]!)
  for (let i = 0; i < values.length; ++i) values[i]! += shift[i % 3]!
}
