/**
 * The augmentation of MoCo v2 and DenseCL (docs/method.md, Views): the random parameters of a view, drawn here from a stream of
 * the image and epoch, and the pixels, computed by one native function (native/cpu/augment.cpp).
 */
import type { Random } from '../tensor/random.js'
import { fail } from '../tensor/errors.js'
import { native, runNative } from '../tensor/native.js'
import { describe, scope, Tensor } from '../tensor/tensor.js'
import { channelsOf, type Pixels } from './decode.js'

/** What a random view is drawn from: ranges and probabilities of each step of the augmentation (docs/method.md, Views). */
export interface AugmentOptions {
  /** Smallest and largest share of the image's area that a crop covers. */
  cropScale: readonly [number, number]
  /** The same of the second of two views, where it is another. */
  keyCropScale?: readonly [number, number] | null
  /** Smallest and largest width over height of a crop. */
  cropRatio: readonly [number, number]
  /** Probability that the four colour adjustments are made, in random order. */
  jitter: number
  /** Factors are drawn from 1 - x .. 1 + x, the hue shift (in turns) from -x .. x. */
  brightness: number
  contrast: number
  saturation: number
  hue: number
  grayscale: number
  /** Probability of a Gaussian blur and the range of its standard deviation in output pixels. */
  blur: number
  blurSigma: readonly [number, number]
  flip: number
}

/** The augmentation of MoCo v2 and DenseCL (docs/method.md, Views). */
export const mocoV2Augmentation: AugmentOptions = {
  cropScale: [0.2, 1],
  cropRatio: [3 / 4, 4 / 3],
  jitter: 0.8,
  brightness: 0.4,
  contrast: 0.4,
  saturation: 0.4,
  hue: 0.1,
  grayscale: 0.2,
  blur: 0.5,
  blurSigma: [0.1, 2],
  flip: 0.5,
}

export const imagenetMean = [0.485, 0.456, 0.406] as const
export const imagenetDeviation = [0.229, 0.224, 0.225] as const

/** A rectangle of an image, in pixels. */
export interface Crop {
  top: number
  left: number
  height: number
  width: number
}

/** One colour adjustment of a view: a factor, or for `hue` a shift in turns. */
export interface Adjustment {
  kind: 'brightness' | 'contrast' | 'saturation' | 'hue'
  value: number
}
const adjustments = ['brightness', 'contrast', 'saturation', 'hue'] as const

/** Everything that decides a view. */
export interface ViewParameters {
  crop: Crop
  adjust: Adjustment[]
  grayscale: boolean
  /** Standard deviation in output pixels, 0 for none; the kernel reaches 3 sigma. */
  sigma: number
  flip: boolean
}

/** A crop of random area and aspect ratio (log-uniform), up to 10 tries, then the largest central one of a legal ratio. */
export function randomCrop(
  random: Random,
  width: number,
  height: number,
  scale: readonly [number, number],
  ratio: readonly [number, number],
): Crop {
  for (let attempt = 0; attempt < 10; ++attempt) {
    const area = width * height * random.uniform(...scale)
    const aspect = Math.exp(random.uniform(Math.log(ratio[0]), Math.log(ratio[1])))
    const w = Math.round(Math.sqrt(area * aspect))
    const h = Math.round(Math.sqrt(area / aspect))
    if (w > 0 && h > 0 && w <= width && h <= height)
      return { top: random.below(height - h + 1), left: random.below(width - w + 1), height: h, width: w }
  }
  const w = Math.min(width, Math.max(1, Math.round(height * ratio[1])))
  const h = Math.min(height, Math.max(1, Math.round(width / ratio[0])))
  const [cropWidth, cropHeight] = width / height < ratio[0] ? [width, h] : width / height > ratio[1] ? [w, height] : [width, height]
  return { top: Math.floor((height - cropHeight) / 2), left: Math.floor((width - cropWidth) / 2), height: cropHeight, width: cropWidth }
}

/** Where the views of a batch lie in their images: of each of its images a row of cropColumns for every view. */
export interface ViewCrops {
  /** Left edge, top edge, width and height as shares of the image's sides, and 1 for a mirrored view: f64 [2, N, 5]. */
  values: Float64Array
  images: number
}
export const cropColumns = 5

/** Draws the parameters of a view of an image of width x height pixels. */
export function randomView(random: Random, width: number, height: number, options: AugmentOptions): ViewParameters {
  const crop = randomCrop(random, width, height, options.cropScale, options.cropRatio)
  const adjust: Adjustment[] = []
  if (random.uniform() < options.jitter) {
    for (const i of random.permutation(4)) {
      const kind = adjustments[i]!
      const reach = options[kind]
      if (reach > 0)
        adjust.push({ kind, value: kind === 'hue' ? random.uniform(-reach, reach) : random.uniform(Math.max(0, 1 - reach), 1 + reach) })
    }
  }
  const grayscale = random.uniform() < options.grayscale
  const sigma = random.uniform() < options.blur ? random.uniform(...options.blurSigma) : 0
  return { crop, adjust, grayscale, sigma, flip: random.uniform() < options.flip }
}

/** What the images of a network are: channels, and by which mean and deviation, of values in 0..1, each is normalised. */
export interface ImageFormat {
  channels: number
  mean: readonly number[]
  deviation: readonly number[]
}
/** What the channels are, in a word or two. */
export const channelWords = (channels: number): string => (channels === 3 ? 'RGB' : channels === 1 ? 'grey' : `${channels} channels`)
/** RGB, normalised as ImageNet's. */
export const colourImages: ImageFormat = { channels: 3, mean: imagenetMean, deviation: imagenetDeviation }
/** Grey, normalised by the mean of ImageNet's means and deviations. */
export const greyImages: ImageFormat = { channels: 1, mean: [0.449], deviation: [0.226] }

/** Pixels as a tensor u8 [H, W, 3], for any number of views. */
export function pixelTensor({ width, height, data }: Pixels): Tensor {
  return Tensor.from(data, [height, width, 3], 'u8')
}

/** A view to render: its parameters, and where its image lies in the pixels. */
export interface PlacedView {
  view: ViewParameters
  /** Where the image [height, width, 3] begins, in bytes. */
  offset: number
  height: number
  width: number
}

/** Columns of the table that the native function reads (native/cpu/augment.cpp names them). */
export const tableColumns = 25

/** The largest standard deviation of a blur: a kernel of a GPU holds 63 weights on either side. */
export const maxBlurSigma = 21

/** A view's row of the table. Throws RANGE when its crop leaves its image, or its blur exceeds maxBlurSigma. */
export function tableRow({ view, offset, height, width }: PlacedView, normalise: boolean | Omit<ImageFormat, 'channels'>): number[] {
  const { crop, adjust, grayscale, sigma, flip } = view
  if (!(
    crop.top >= 0 &&
    crop.left >= 0 &&
    crop.height > 0 &&
    crop.width > 0 &&
    crop.top + crop.height <= height &&
    crop.left + crop.width <= width
  )) {
    fail(
      'RANGE',
      `augment: the crop ${crop.height}x${crop.width} at ${crop.top},${crop.left} lies outside of its image of ${height}x${width} pixels`,
    )
  }
  if (!(sigma <= maxBlurSigma)) fail('RANGE', `augment: a blur of standard deviation ${sigma}: expected at most ${maxBlurSigma}`)
  const { mean, deviation } =
    typeof normalise === 'object' ? normalise : normalise ? colourImages : { mean: [0, 0, 0], deviation: [1, 1, 1] }
  const pairs = [0, 1, 2, 3].flatMap((i) => (adjust[i] === undefined ? [-1, 0] : [adjustments.indexOf(adjust[i].kind), adjust[i].value]))
  return [
    offset,
    height,
    width,
    crop.top,
    crop.left,
    crop.height,
    crop.width,
    Number(flip),
    Number(grayscale),
    sigma,
    Math.ceil(3 * sigma),
    ...mean,
    ...deviation,
    ...pairs,
  ]
}

/** Of a view's row of the table the row of ViewCrops. */
export function cropRow(row: ArrayLike<number>): [left: number, top: number, width: number, height: number, flip: number] {
  const [height, width] = [row[1]!, row[2]!]
  return [row[4]! / width, row[3]! / height, row[6]! / width, row[5]! / height, row[7]!]
}

/**
 * Writes views `first`.. of `out` [N, OH, OW, 3] from `pixels` u8 [bytes], which may hold many images, normalised by
 * ImageNet's mean and deviation. Of two outputs the second takes the latter half of the views. One kernel on a GPU, where they
 * may be bf16.
 */
export function renderViews(
  out: Tensor | readonly [Tensor, Tensor],
  first: number,
  pixels: Tensor,
  views: readonly PlacedView[],
  normalise: boolean | Omit<ImageFormat, 'channels'> = true,
): void {
  scope(() => {
    for (const { offset, height, width } of views) {
      if (!(offset >= 0 && offset + height * width * 3 <= pixels.size))
        fail('RANGE', `augment: an image of ${height}x${width} pixels at byte ${offset} reaches beyond pixels ${describe(pixels)}`)
    }
    const table = Tensor.from(
      Float64Array.from(views.flatMap((placed) => tableRow(placed, normalise))),
      [views.length, tableColumns],
      'f64',
      pixels.device,
    )
    renderTable(out, first, pixels, table)
  })
}

/** renderViews with the rows of its table [views, tableColumns] f64 on the device already, for a step that is recorded. */
export function renderTable(out: Tensor | readonly [Tensor, Tensor], first: number, pixels: Tensor, table: Tensor): void {
  const [target, second] = out instanceof Tensor ? [out, undefined] : out
  for (const tensor of second === undefined ? [target] : [target, second]) expectViews(tensor)
  runNative('augment', { views: target, second, pixels, table }, { first })
}

function expectViews(out: Tensor): void {
  if (out.shape.length !== 4 || out.shape[3] !== 3) fail('SHAPE', `augment: expected out [N,H,W,3] but received ${describe(out)}`)
  if (out.dtype !== 'f32' && out.dtype !== 'bf16') fail('DTYPE', `augment: expected out of dtype f32 or bf16 but received ${describe(out)}`)
}

/** Writes view `index` of `out` from one image u8 [H, W, 3]. */
export function renderView(out: Tensor, index: number, pixels: Tensor, view: ViewParameters, normalise = true): void {
  renderViews(out, index, pixels, [{ view, offset: 0, height: pixels.shape[0]!, width: pixels.shape[1]! }], normalise)
}

/**
 * A view [height, width, C] of an image of any number of channels. Crop, size, blur, flip and normalisation are those of RGB; of colour
 * adjustments a grey image has brightness and contrast, one of other channels brightness, since the others mean colours.
 */
export function renderChannels(
  pixels: Pixels,
  view: ViewParameters,
  { height, width }: { height: number; width: number },
  format: ImageFormat,
  normalise = true,
): Float32Array {
  const { channels } = format
  const own = channelsOf(pixels)
  if (own !== channels) fail('SHAPE', `augment: expected pixels of ${channels} channels but received ${own}`)
  if (channels === 3) return rendered(pixels, view, height, width, normalise && format)
  const kept: readonly string[] = channels === 1 ? ['brightness', 'contrast'] : ['brightness']
  const plain = { ...view, adjust: view.adjust.filter(({ kind }) => kept.includes(kind)), grayscale: false }
  const [area, out] = [pixels.width * pixels.height, new Float32Array(height * width * channels)]
  // Three channels at a time pass as if they were red, green and blue; a grey one as all three.
  for (let first = 0; first < channels; first += 3) {
    const group = [0, 1, 2].map((c) => Math.min(first + c, channels - 1)) as [number, number, number]
    const data = new Uint8Array(3 * area)
    for (let i = 0; i < area; ++i) for (let c = 0; c < 3; ++c) data[3 * i + c] = pixels.data[i * channels + group[c]!]!
    const part = (values: readonly number[]): number[] => group.map((c) => values[c]!)
    const values = rendered(
      { width: pixels.width, height: pixels.height, data },
      plain,
      height,
      width,
      normalise && { mean: part(format.mean), deviation: part(format.deviation) },
    )
    const count = Math.min(3, channels - first)
    for (let i = 0; i < height * width; ++i) for (let c = 0; c < count; ++c) out[i * channels + first + c] = values[3 * i + c]!
  }
  return out
}

/** Writes a view of RGB pixels to `out`, f32 [height * width * 3], which may be a part of shared memory. Throws RANGE as tableRow(). */
export function renderInto(
  out: Float32Array,
  pixels: Pixels,
  view: ViewParameters,
  { height, width }: { height: number; width: number },
  normalise: boolean | Omit<ImageFormat, 'channels'> = true,
): void {
  const row = tableRow({ view, offset: 0, height: pixels.height, width: pixels.width }, normalise)
  native.renderView(out, [height, width], pixels.data, Float64Array.from(row))
}

/** A view of RGB pixels, f32 [height * width * 3]. */
function rendered(
  pixels: Pixels,
  view: ViewParameters,
  height: number,
  width: number,
  normalise: boolean | Omit<ImageFormat, 'channels'>,
): Float32Array {
  const values = new Float32Array(height * width * 3)
  renderInto(values, pixels, view, { height, width }, normalise)
  return values
}

/** The whole image, untouched but for size. */
export const wholeImage = (pixels: Pixels): ViewParameters => ({
  crop: { top: 0, left: 0, height: pixels.height, width: pixels.width },
  adjust: [],
  grayscale: false,
  sigma: 0,
  flip: false,
})

/** An image as networks take it: [1, height, width, 3], normalised as ImageNet's; at its own size, or resized. */
export function imageTensor(pixels: Pixels, { height = pixels.height, width = pixels.width } = {}): Tensor {
  return scope(() => {
    const x = Tensor.empty([1, height, width, 3])
    renderView(x, 0, pixelTensor(pixels), wholeImage(pixels))
    return x
  })
}
