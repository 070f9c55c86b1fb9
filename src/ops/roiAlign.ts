import { apply } from '../autograd/tape.js'
import { defineOp, expectDType, expectElements, expectFloats, expectInteger, expectRank, expectShape, type Inputs } from '../autograd/op.js'
import { fail } from '../tensor/errors.js'
import { runNative } from '../tensor/native.js'
import { type Shape, Tensor } from '../tensor/tensor.js'
import { readersCompute } from './fusion.js'

/** How RoIAlign places its samples. */
export interface RoiAlignOptions {
  /** Bins along each side of the result, or [height, width]. */
  size: number | readonly [number, number]
  /** Cells of the map for a unit of the boxes' coordinates: 1 / 16 for boxes in the image and a map of stride 16. 1 by default. */
  scale?: number | undefined
  /** Samples along each side of a bin; 0, the default, for as many as the bin has cells, rounded up. */
  samplingRatio?: number | undefined
  /**
   * Cells have their centres at halves, and boxes the size they say: true by default. False is the first published form, half a cell off,
   * with boxes of one cell at least (torchvision's detectors).
   */
  aligned?: boolean | undefined
  /**
   * Convolutions alone read the result, which may be most of a step's memory: where a gradient is asked for, those of the CPU compute it
   * for as long as they run, forward and backward (docs/fusion.md). False by default.
   */
  convolved?: boolean | undefined
}

interface RoiInputs extends Inputs {
  x: Tensor
  boxes: Tensor
  index: Tensor
}
interface RoiAttrs {
  size: readonly [number, number]
  from: Shape
  scale: number
  samplingRatio: number
  aligned: boolean
  convolved: boolean
}

export const roiAlignOp = defineOp<RoiInputs, RoiAttrs>({
  name: 'roiAlign',
  forward({ x, boxes, index }, { size, scale, samplingRatio, aligned, convolved }, needsGradient) {
    const shape = [boxes.shape[0]!, ...size, x.shape[3]!]
    const numbers = { scale, samplingRatio, aligned }
    const saved = { boxes, index }
    if (convolved && needsGradient && readersCompute(x.device)) {
      const parts = { x: x.alias(), boxes: boxes.alias(), index: index.alias() }
      return { outputs: [Tensor.deferred(shape, x.dtype, x.device, { op: 'roiAlign', output: 'y', parts, numbers })], saved }
    }
    const y = Tensor.empty(shape, x.dtype)
    runNative('roiAlign', { y, x, boxes, index }, numbers)
    return { outputs: [y], saved }
  },
  // dx[cell] += weight of the cell in the bin * dy; boxes are constants
  backward({ grad, saved, attrs: { from, scale, samplingRatio, aligned }, needs }) {
    if (needs.boxes) fail('TAPE', 'roiAlign: boxes are constants (stop-gradient); compute them under noGrad()')
    const dx = Tensor.empty(from, grad.dtype)
    runNative('roiAlignBackward', { dx, dy: grad, boxes: saved.boxes!, index: saved.index! }, { scale, samplingRatio, aligned })
    return { x: dx }
  },
})

/**
 * RoIAlign (He et al., arXiv:1703.06870): of each box a grid of bins, each the mean of bilinear samples of the map. x is [N, H, W, C];
 * boxes [R, 4] are x1, y1, x2, y2 in f32, or f64 for f64 maps; `index` i32 [R] is each box's image, and -1 for a place that holds no box.
 * Gives [R, height, width, C]: zeros for no box and for bins outside of the map, NaN for a box that is not finite. Positions within a cell
 * of the map's border take the border's value. The gradient goes to x alone. Throws RANGE for an image that is not there, on a GPU when
 * values are read next.
 */
export function roiAlign(x: Tensor, boxes: Tensor, index: Tensor, options: RoiAlignOptions): Tensor {
  const { size, scale = 1, samplingRatio = 0, aligned = true, convolved = false } = options
  expectFloats('roiAlign', { x }, { boxes })
  expectRank('roiAlign', 'x', x, 4)
  expectElements('roiAlign', 'x', x, 1)
  expectDType('roiAlign', 'index', index, 'i32')
  expectShape('roiAlign', 'boxes', boxes, [boxes.shape[0] ?? 0, 4], 'x1, y1, x2, y2 of each')
  expectShape('roiAlign', 'index', index, [boxes.shape[0]!], 'an image for each box')
  const bins = typeof size === 'number' ? ([size, size] as const) : size
  for (const value of bins) expectInteger('roiAlign', 'size', value, 1)
  expectInteger('roiAlign', 'samplingRatio', samplingRatio, 0)
  if (!(scale > 0 && Number.isFinite(scale))) fail('ARGUMENT', `roiAlign: expected a positive scale but received ${scale}`)
  return apply(roiAlignOp, { x, boxes, index }, { size: bins, from: x.shape, scale, samplingRatio, aligned, convolved })[0]!
}
