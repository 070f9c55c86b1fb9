/** Two pictures to compare: random views of one image as training sees them, or two photographs. */
import { mocoV2Augmentation, pixelTensor, randomView, renderView, type ViewParameters, wholeImage } from '../data/augment.js'
import type { Pixels } from '../data/decode.js'
import { evaluation } from '../nn/layers.js'
import { Random } from '../tensor/random.js'
import type { Backbone } from '../nn/backbone.js'
import { reshape } from '../ops/elementwise.js'
import { resizeBilinear } from '../ops/resizeBilinear.js'
import { l2Normalize } from '../ops/similarity.js'
import { scope, Tensor } from '../tensor/tensor.js'

/** An image as pictures draw it. */
export interface Picture {
  width: number
  height: number
  /** Interleaved RGB. */
  rgb: Uint8Array
}

/** A picture with its dense features. */
export interface Seen {
  picture: Picture
  grid: readonly [rows: number, columns: number]
  /** Unit vectors f32 [rows * columns, channels], row-major. */
  features: Float32Array
  channels: number
}

/** What the network makes of a view of an image at a size. */
function see(backbone: Backbone, pixels: Pixels, view: ViewParameters, height: number, width: number): Seen {
  return scope(() => {
    const source = pixelTensor(pixels)
    const render = (normalise: boolean): Tensor => {
      const x = Tensor.empty([1, height, width, 3], 'f32', 'cpu')
      renderView(x, 0, source, view, normalise)
      return x
    }
    const map = backbone.forward(backbone.input(render(true)), evaluation)
    const [, rows, columns, channels] = map.shape as [number, number, number, number]
    // Of a map in bf16 only the map is rounded, not its unit vectors.
    const features = l2Normalize(reshape(map.to('f32'), [rows * columns, channels])).data() as Float32Array
    const colours = render(false).data()
    const rgb = new Uint8Array(colours.length)
    for (let i = 0; i < rgb.length; ++i) rgb[i] = Math.round(255 * colours[i]!)
    return { picture: { width, height, rgb }, grid: [rows, columns], features, channels }
  })
}

/** Two crops of at least half the area, with colours as in training, drawn from `seed`. */
export function seeViews(backbone: Backbone, pixels: Pixels, { size, seed }: { size: number; seed: number }): [Seen, Seen] {
  const options = { ...mocoV2Augmentation, cropScale: [0.5, 1] as const, grayscale: 0, blur: 0 }
  return [0, 1].map((view) =>
    see(backbone, pixels, randomView(new Random(seed, 31, view), pixels.width, pixels.height, options), size, size),
  ) as [Seen, Seen]
}

/** An image as it is, its short side at `size`. */
export function seeImage(backbone: Backbone, pixels: Pixels, size: number): Seen {
  const scale = size / Math.min(pixels.width, pixels.height)
  return see(backbone, pixels, wholeImage(pixels), Math.round(pixels.height * scale), Math.round(pixels.width * scale))
}

/** Cosine similarities of one position with every position of a picture. */
export function similarities(feature: Float32Array, { features, channels }: Seen): Float32Array {
  return Float32Array.from({ length: features.length / channels }, (_, position) => {
    let sum = 0
    for (let c = 0; c < channels; ++c) sum += feature[c]! * features[position * channels + c]!
    return sum
  })
}

/** Values of a grid at every pixel of a picture, bilinear between the centres of the cells. */
export function spread(
  values: ArrayLike<number>,
  [rows, columns]: readonly [number, number],
  { width, height }: Pick<Picture, 'width' | 'height'>,
  channels = 1,
): Float32Array {
  return scope(() => {
    const grid = Tensor.from(Float32Array.from(values), [1, rows, columns, channels], 'f32', 'cpu')
    return resizeBilinear(grid, [height, width]).data() as Float32Array
  })
}
