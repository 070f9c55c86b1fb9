/**
 * A training sample of segmentation (docs/method.md, Segmentation): random scale, random crop of which no class may fill too much, flip,
 * photometric distortion, normalisation, padding - of an image and its mask together.
 */
import type { Random } from '../tensor/random.js'
import { imagenetDeviation, imagenetMean } from './augment.js'
import type { Pixels } from './decode.js'
import { ignoredLabel, type Mask } from './masks.js'
import { largest } from '../tensor/numbers.js'

/** What a training view of segmentation is drawn from (docs/method.md, Segmentation). */
export interface SegmentationAugment {
  /** Side of the square crops in pixels. */
  crop: number
  /** The image is scaled to fit into long x short, times a factor from `ratio`; `own` takes its size as it is. */
  scale: readonly [long: number, short: number] | 'own'
  ratio: readonly [number, number]
  /** A crop in which one class has more than this share is drawn anew, up to ten times. */
  mostOfAClass: number
  flip: number
  /** Brightness, contrast, saturation and hue, each with probability one half. */
  distort: boolean
}

/** How an image is scaled and cut. */
export interface Placement {
  /** Size of the whole scaled image. */
  height: number
  width: number
  top: number
  left: number
  flip: boolean
}

/** The size of an image that is scaled to fit into long x short, as mmcv's rescale_size rounds it. */
export function scaledSize(width: number, height: number, long: number, short: number): { width: number; height: number } {
  const factor = Math.min(long / Math.max(width, height), short / Math.min(width, height))
  return { width: Math.max(1, Math.floor(width * factor + 0.5)), height: Math.max(1, Math.floor(height * factor + 0.5)) }
}

/** Draws scale, place and flip; the crop is limited to the scaled image, what remains is padding. */
export function drawPlacement(random: Random, mask: Mask, { crop, scale, ratio, mostOfAClass, flip }: SegmentationAugment): Placement {
  const factor = random.uniform(...ratio)
  const { width, height } =
    scale === 'own' ? mask : scaledSize(mask.width, mask.height, Math.floor(scale[0] * factor), Math.floor(scale[1] * factor))
  const draw = (): Placement => ({
    height,
    width,
    top: random.below(Math.max(0, height - crop) + 1),
    left: random.below(Math.max(0, width - crop) + 1),
    flip: false,
  })
  let placement = draw()
  for (let attempt = 0; attempt < 10 && mostOfAClass < 1 && largestShare(mask, placement, crop) >= mostOfAClass; ++attempt)
    placement = draw()
  return { ...placement, flip: random.uniform() < flip }
}

/** Positions of crop pixels in the original, for the nearest neighbour: floor(i * from / to). */
const nearest = (first: number, count: number, from: number, to: number): Int32Array =>
  Int32Array.from({ length: count }, (_, i) => Math.min(from - 1, Math.floor(((first + i) * from) / to)))

/** The share of the most frequent class of a crop among its labelled pixels; 1 where there are fewer than two classes. */
function largestShare(mask: Mask, { height, width, top, left }: Placement, crop: number): number {
  const ys = nearest(top, Math.min(crop, height), mask.height, height)
  const xs = nearest(left, Math.min(crop, width), mask.width, width)
  const counts = new Float64Array(256)
  for (const y of ys) for (const x of xs) counts[mask.labels[y * mask.width + x]!]! += 1
  const known = counts.subarray(0, ignoredLabel).filter((count) => count > 0)
  return known.length < 2 ? 1 : largest(known) / known.reduce((a, b) => a + b)
}

/** The labels of a crop x crop view; what lies outside of the image is ignored. */
export function cropLabels(mask: Mask, { height, width, top, left, flip }: Placement, crop: number): Uint8Array {
  const out = new Uint8Array(crop * crop).fill(ignoredLabel)
  const [rows, columns] = [Math.min(crop, height), Math.min(crop, width)]
  const ys = nearest(top, rows, mask.height, height)
  const xs = nearest(left, columns, mask.width, width)
  for (let y = 0; y < rows; ++y)
    for (let x = 0; x < columns; ++x) out[y * crop + (flip ? columns - 1 - x : x)] = mask.labels[ys[y]! * mask.width + xs[x]!]!
  return out
}

/** Two neighbours and the weight of the second, for a bilinear resize without antialiasing. */
function taps(first: number, count: number, from: number, to: number): { low: Int32Array; high: Int32Array; weight: Float64Array } {
  const at = Float64Array.from({ length: count }, (_, i) => Math.min(from - 1, Math.max(0, ((first + i + 0.5) * from) / to - 0.5)))
  const low = Int32Array.from(at, Math.floor)
  return { low, high: low.map((value) => Math.min(from - 1, value + 1)), weight: at.map((value, i) => value - low[i]!) }
}

/** The colours of a crop, 0 to 255, as f32 [rows, columns, 3] of what of it lies in the image. */
function cropColours(
  pixels: Pixels,
  { height, width, top, left, flip }: Placement,
  crop: number,
): { colours: Float32Array; rows: number; columns: number } {
  const [rows, columns] = [Math.min(crop, height), Math.min(crop, width)]
  const vertical = taps(top, rows, pixels.height, height)
  const horizontal = taps(left, columns, pixels.width, width)
  const colours = new Float32Array(rows * columns * 3)
  for (let y = 0; y < rows; ++y) {
    const [upper, lower, down] = [vertical.low[y]! * pixels.width, vertical.high[y]! * pixels.width, vertical.weight[y]!]
    for (let x = 0; x < columns; ++x) {
      const [l, r, right] = [horizontal.low[x]!, horizontal.high[x]!, horizontal.weight[x]!]
      const to = (y * columns + (flip ? columns - 1 - x : x)) * 3
      for (let c = 0; c < 3; ++c) {
        const above = pixels.data[(upper + l) * 3 + c]! * (1 - right) + pixels.data[(upper + r) * 3 + c]! * right
        const below = pixels.data[(lower + l) * 3 + c]! * (1 - right) + pixels.data[(lower + r) * 3 + c]! * right
        colours[to + c] = above * (1 - down) + below * down
      }
    }
  }
  return { colours, rows, columns }
}

/** The random numbers of a photometric distortion; 1 and 0 leave things as they are. */
interface Distortion {
  brightness: number
  contrast: number
  /** Contrast before the colours are changed, or after. */
  contrastFirst: boolean
  saturation: number
  /** Shift of the hue, in turns. */
  hue: number
}

export function drawDistortion(random: Random): Distortion {
  const perhaps = (draw: () => number, otherwise: number): number => (random.uniform() < 0.5 ? draw() : otherwise)
  return {
    brightness: perhaps(() => random.uniform(-32, 32), 0),
    contrastFirst: random.uniform() < 0.5,
    contrast: perhaps(() => random.uniform(0.5, 1.5), 1),
    saturation: perhaps(() => random.uniform(0.5, 1.5), 1),
    // 18 of the 180 steps that 8-bit hues have.
    hue: perhaps(() => random.uniform(-0.1, 0.1), 0),
  }
}

const clip = (value: number): number => Math.min(255, Math.max(0, value))

/** Changes colours of 0 to 255 in place; each step is clipped, as bytes are. */
export function distort(colours: Float32Array, { brightness, contrast, contrastFirst, saturation, hue }: Distortion): void {
  const turns = saturation !== 1 || hue !== 0
  for (let i = 0; i < colours.length; i += 3) {
    let [r, g, b] = [clip(colours[i]! + brightness), clip(colours[i + 1]! + brightness), clip(colours[i + 2]! + brightness)]
    if (contrastFirst) [r, g, b] = [clip(r * contrast), clip(g * contrast), clip(b * contrast)]
    if (turns) {
      const value = Math.max(r, g, b)
      const chroma = value - Math.min(r, g, b)
      const sector = chroma === 0 ? 0 : value === r ? (g - b) / chroma : value === g ? 2 + (b - r) / chroma : 4 + (r - g) / chroma
      const least = value * (1 - Math.min(1, value === 0 ? 0 : (chroma / value) * saturation))
      // Distances from the sectors of red, green and blue give each its share of the chroma.
      const turned = (((sector / 6 + hue) % 1) + 1) % 1
      const share = (n: number): number => {
        const k = (n + turned * 6) % 6
        return value - (value - least) * Math.max(0, Math.min(k, 4 - k, 1))
      }
      ;[r, g, b] = [share(5), share(3), share(1)]
    }
    if (!contrastFirst) [r, g, b] = [clip(r * contrast), clip(g * contrast), clip(b * contrast)]
    colours[i] = r
    colours[i + 1] = g
    colours[i + 2] = b
  }
}

/** Image f32 [crop, crop, 3], normalised and padded with zeros, and labels [crop, crop], padded with `ignoredLabel`. */
export function renderSegmentation(
  pixels: Pixels,
  mask: Mask,
  random: Random,
  augment: SegmentationAugment,
): { image: Float32Array; labels: Uint8Array } {
  const { crop } = augment
  const placement = drawPlacement(random, mask, augment)
  const { colours, rows, columns } = cropColours(pixels, placement, crop)
  if (augment.distort) distort(colours, drawDistortion(random))
  const image = new Float32Array(crop * crop * 3)
  for (let y = 0; y < rows; ++y) {
    for (let x = 0; x < columns * 3; ++x)
      image[y * crop * 3 + x] = (colours[y * columns * 3 + x]! / 255 - imagenetMean[x % 3]!) / imagenetDeviation[x % 3]!
  }
  return { image, labels: cropLabels(mask, placement, crop) }
}
