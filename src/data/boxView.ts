/** What becomes of an image with boxes on its way into a detector: a size, perhaps a flip. */
import type { Random } from '../tensor/random.js'
import { imagenetDeviation, imagenetMean } from './augment.js'
import { type Box, boxHeight, boxWidth } from './boxes.js'
import type { Pixels } from './decode.js'
import { type Resampling, resizeBytes } from './resizeBytes.js'

/** The size that an image is given, and whether it is mirrored. */
export interface BoxView {
  height: number
  width: number
  flip: boolean
}

/** Short sides to choose from, and a limit of the long one, in pixels. */
export interface BoxScales {
  short: readonly number[]
  long: number
}

/**
 * How a size is rounded. Both round to the nearest, which differs where a side is at a half: detectron2 scales the sides to the short one
 * first, then to the limit, mmdetection by the smaller of both factors.
 */
export type SizeRounding = 'detectron2' | 'mmdet'

/** The size of an image whose short side becomes `short`, or less where the long one would be above `long`. */
export function detectionSize(
  { width, height }: { width: number; height: number },
  short: number,
  long: number,
  rounding: SizeRounding,
): { width: number; height: number } {
  const rounded = (value: number): number => Math.max(1, Math.floor(value + 0.5))
  if (rounding === 'mmdet') {
    const factor = Math.min(short / Math.min(height, width), long / Math.max(height, width))
    return { height: rounded(height * factor), width: rounded(width * factor) }
  }
  const factor = short / Math.min(height, width)
  let [h, w] = height < width ? [short, factor * width] : [factor * height, short]
  if (Math.max(h, w) > long) {
    const limit = long / Math.max(h, w)
    ;[h, w] = [h * limit, w * limit]
  }
  return { height: rounded(h), width: rounded(w) }
}

/** Draws a view for training: one of the short sides, and a flip in one of two cases. */
export function drawBoxView(random: Random, image: { width: number; height: number }, scales: BoxScales, rounding: SizeRounding): BoxView {
  const short = scales.short[random.below(scales.short.length)]!
  return { ...detectionSize(image, short, scales.long, rounding), flip: random.uniform() < 0.5 }
}

/** A box of the original image in a view of it, clipped to that; undefined where nothing of it is left. */
export function boxInView(box: Box, original: { width: number; height: number }, { width, height, flip }: BoxView): Box | undefined {
  const [across, down] = [width / original.width, height / original.height]
  const xs = [box[0] * across, box[2] * across].map((x) => (flip ? width - x : x))
  const clip = (value: number, most: number): number => Math.min(most, Math.max(0, value))
  const placed: Box = [
    clip(flip ? xs[1]! : xs[0]!, width),
    clip(box[1] * down, height),
    clip(flip ? xs[0]! : xs[1]!, width),
    clip(box[3] * down, height),
  ]
  // As detectron2: what is thinner than this has no size that could be learnt.
  return boxWidth(placed) > 1e-5 && boxHeight(placed) > 1e-5 ? placed : undefined
}

/** How the images of a batch enter a detector: all padded with zeros, below and to the right, to one height and width. */
export interface BoxBatch {
  height: number
  width: number
  resampling: Resampling
  /** Of each image, beside the size that its annotation states. */
  views: (BoxView & { original: { width: number; height: number } })[]
}

/** Writes an image as a view shows it, normalised, into `out`, f32 [batch.height, batch.width, 3]; what is beside it becomes zero. */
export function writeBoxView(out: Float32Array, pixels: Pixels, view: BoxView, batch: Pick<BoxBatch, 'width' | 'resampling'>): void {
  const { data } = resizeBytes(pixels, view.width, view.height, batch.resampling)
  out.fill(0)
  for (let y = 0; y < view.height; ++y)
    for (let x = 0; x < view.width; ++x) {
      const from = (y * view.width + (view.flip ? view.width - 1 - x : x)) * 3
      const to = (y * batch.width + x) * 3
      for (let c = 0; c < 3; ++c) out[to + c] = (data[from + c]! / 255 - imagenetMean[c]!) / imagenetDeviation[c]!
    }
}
