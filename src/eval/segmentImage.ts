/** The class of each pixel of an image: whole, or window by window. */
import { imagenetDeviation, imagenetMean } from '../data/augment.js'
import type { Pixels } from '../data/decode.js'
import { scaledSize } from '../data/segmentationView.js'
import type { Fcn } from '../nn/fcn.js'
import { resizeBilinear } from '../ops/resizeBilinear.js'
import { scope, Tensor } from '../tensor/tensor.js'
import type { SegmentationProtocol } from './segmentationProtocols.js'

/** Predicted classes [height * width] of an image, by the protocol's scale and windows. */
export function segmentImage(
  model: Fcn,
  pixels: Pixels,
  { scale, crop, slide }: Pick<SegmentationProtocol, 'scale' | 'crop' | 'slide'>,
): Uint8Array {
  return scope(() => {
    const { width, height } = scaledSize(pixels.width, pixels.height, ...scale)
    const whole = Tensor.from(pixels.data, [1, pixels.height, pixels.width, 3])
    const x = normalised(resizeBilinear(whole, [height, width]))
    const logits = slide === 0 ? model.logits(model.backbone.input(x)) : slidingLogits(model, x, crop, slide)
    const full =
      height === pixels.height && width === pixels.width ? logits : resizeBilinear(logits, [pixels.height, pixels.width], model.options)
    return largest(full.data(), model.classes)
  })
}

function normalised(x: Tensor): Tensor {
  const values = x.data() as Float32Array
  for (let i = 0; i < values.length; ++i) values[i] = (values[i]! / 255 - imagenetMean[i % 3]!) / imagenetDeviation[i % 3]!
  return Tensor.from(values, x.shape)
}

/** The places where windows of `size` begin that cover `length` at `stride`; the last ends where the image does. */
export function windowStarts(length: number, size: number, stride: number): number[] {
  const count = Math.floor(Math.max(length - size + stride - 1, 0) / stride) + 1
  return Array.from({ length: count }, (_, i) => Math.max(0, Math.min(i * stride, length - size)))
}

/** The mean of the logits of all windows that hold a pixel: [1, H, W, classes]. */
function slidingLogits(model: Fcn, x: Tensor, size: number, stride: number): Tensor {
  const [, height, width] = x.shape as [number, number, number, number]
  const { classes } = model
  const values = x.data()
  const sums = new Float32Array(height * width * classes)
  const counts = new Uint8Array(height * width)
  const [rows, columns] = [Math.min(size, height), Math.min(size, width)]
  for (const top of windowStarts(height, size, stride)) {
    for (const left of windowStarts(width, size, stride)) {
      const part = new Float32Array(rows * columns * 3)
      for (let y = 0; y < rows; ++y)
        part.set(values.subarray(((top + y) * width + left) * 3, ((top + y) * width + left + columns) * 3), y * columns * 3)
      const logits = scope(() => model.logits(model.backbone.input(Tensor.from(part, [1, rows, columns, 3]))).data())
      for (let y = 0; y < rows; ++y) {
        for (let x0 = 0; x0 < columns; ++x0) {
          const to = (top + y) * width + left + x0
          counts[to]! += 1
          for (let c = 0; c < classes; ++c) sums[to * classes + c]! += logits[(y * columns + x0) * classes + c]!
        }
      }
    }
  }
  for (let i = 0; i < sums.length; ++i) sums[i]! /= counts[Math.floor(i / classes)]!
  return Tensor.from(sums, [1, height, width, classes], 'f32', model.backbone.device)
}

/** The first of the largest of each `classes` values. */
function largest(values: ArrayLike<number>, classes: number): Uint8Array {
  const out = new Uint8Array(values.length / classes)
  for (let i = 0; i < out.length; ++i) {
    let best = 0
    for (let c = 1; c < classes; ++c) if (values[i * classes + c]! > values[i * classes + best]!) best = c
    out[i] = best
  }
  return out
}
