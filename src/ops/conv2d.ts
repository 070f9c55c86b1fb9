import { apply } from '../autograd/tape.js'
import { defineOp, expectFloats, expectInteger, expectRank, expectShape, type Inputs } from '../autograd/op.js'
import { fail } from '../tensor/errors.js'
import { runNative } from '../tensor/native.js'
import { accumulator, describe, Tensor } from '../tensor/tensor.js'
import { sumRows } from './sumRows.js'

/** One number for both axes, or [vertical, horizontal]. */
export type PerAxis = number | readonly [number, number]
export const perAxis = (value: PerAxis): readonly [number, number] => (typeof value === 'number' ? [value, value] : value)

export interface Conv2dOptions {
  stride?: PerAxis
  padding?: PerAxis
  dilation?: PerAxis
}

interface Conv2dInputs extends Inputs {
  x: Tensor
  weight: Tensor
  bias: Tensor | undefined
}

interface Conv2dAttrs {
  numbers: readonly number[]
  /** Also give statistics of y for the batch norm that follows. */
  statistics: boolean
  inputShape: readonly number[]
  weightShape: readonly number[]
}

export const conv2dOp = defineOp<Conv2dInputs, Conv2dAttrs>({
  name: 'conv2d',
  forward({ x, weight, bias }, { numbers, statistics: wanted }) {
    const [strideH, strideW, padH, padW, dilationH, dilationW] = numbers as [number, number, number, number, number, number]
    const [n, h, w] = x.shape as [number, number, number, number]
    const [o, kh, kw] = weight.shape as [number, number, number, number]
    const oh = Math.floor((h + 2 * padH - dilationH * (kh - 1) - 1) / strideH) + 1
    const ow = Math.floor((w + 2 * padW - dilationW * (kw - 1) - 1) / strideW) + 1
    if (oh < 1 || ow < 1) fail('SHAPE', `conv2d: the dilated kernel of weight ${describe(weight)} is larger than the padded x ${describe(x)}`)
    const y = Tensor.empty([n, oh, ow, o], x.dtype)
    const statistics = wanted ? Tensor.empty([Math.ceil((n * oh * ow) / statisticsRows), 2, o], 'f32') : undefined
    runNative('conv2d', [y, x, weight, bias, statistics], numbers)
    return { outputs: statistics === undefined ? [y] : [y, statistics], saved: { x, weight } }
  },
  // dx = dy convolved with the weights transposed; dw[o, t] = sum of dy[p, o] x[p moved by t]; db = sum of dy
  backward({ grad, saved, attrs, needs }) {
    const gradients: { x?: Tensor; weight?: Tensor; bias?: Tensor } = {}
    if (needs.x) {
      gradients.x = Tensor.empty(attrs.inputShape, grad.dtype)
      runNative('conv2dBackwardInput', [gradients.x, grad, saved.weight], attrs.numbers)
    }
    if (needs.weight) {
      gradients.weight = Tensor.empty(attrs.weightShape, accumulator(grad.dtype))
      runNative('conv2dBackwardWeight', [gradients.weight, grad, saved.x], attrs.numbers)
    }
    if (needs.bias) gradients.bias = sumRows(grad)
    return gradients
  },
})

/** How convolutions compute on CUDA devices. */
export const convolution = {
  /** f32 tensors on tensor cores, whose products then have 10 bits of mantissa instead of 23 (relative errors near 3e-4). */
  tf32: false,
  /** The tile of the kernels, for tests and tuning: 1 is 128x128, 2 is 128x64, 3 is 64x64, 0 the one that suits the shape. */
  tile: 0,
}

function prepare(x: Tensor, weight: Tensor, bias: Tensor | undefined, { stride = 1, padding = 0, dilation = 1 }: Conv2dOptions, statistics: boolean): Conv2dAttrs {
  expectFloats('conv2d', { x, weight }, { bias })
  expectRank('conv2d', 'x', x, 4)
  expectRank('conv2d', 'weight', weight, 4)
  if (x.shape[3] !== weight.shape[3]) fail('SHAPE', `conv2d: expected weight of ${x.shape[3]} channels, as x ${describe(x)}, but received ${describe(weight)}`)
  if (bias !== undefined) expectShape('conv2d', 'bias', bias, [weight.shape[0]!], 'the output channels')
  for (const value of perAxis(stride)) expectInteger('conv2d', 'stride', value, 1)
  for (const value of perAxis(padding)) expectInteger('conv2d', 'padding', value, 0)
  for (const value of perAxis(dilation)) expectInteger('conv2d', 'dilation', value, 1)
  const numbers = [...perAxis(stride), ...perAxis(padding), ...perAxis(dilation), convolution.tile, Number(convolution.tf32)]
  return { numbers, statistics, inputShape: x.shape, weightShape: weight.shape }
}

/** x [N, H, W, C] with weight [O, KH, KW, C] and bias [O] to [N, OH, OW, O]: cross-correlation with zero padding. */
export function conv2d(x: Tensor, weight: Tensor, bias?: Tensor, options: Conv2dOptions = {}): Tensor {
  return apply(conv2dOp, { x, weight, bias }, prepare(x, weight, bias, options, false))[0]!
}

export interface ConvolutionForNorm {
  y: Tensor
  /** f32 [rows / 64, 2, O]: mean and squared deviations of each channel over 64 rows; absent where a pass over y is needed. */
  statistics: Tensor | undefined
}

/** Rows of y that a row of the statistics covers (native/cuda/conv2d.cu). */
const statisticsRows = 64

/** conv2d without bias, and the statistics of y that the kernels of a GPU make on the way. The CPU has y in its cache anyway. */
export function conv2dForNorm(x: Tensor, weight: Tensor, options: Conv2dOptions, groups: number): ConvolutionForNorm {
  const attrs = prepare(x, weight, undefined, options, x.device !== 'cpu')
  const [y, statistics] = apply(conv2dOp, { x, weight, bias: undefined }, attrs) as [Tensor, Tensor | undefined]
  // A row of the statistics must not reach into the next group.
  const whole = groups === 1 || (y.size / y.shape[3]! / groups) % statisticsRows === 0
  if (whole) return { y, statistics }
  statistics?.dispose()
  return { y, statistics: undefined }
}
