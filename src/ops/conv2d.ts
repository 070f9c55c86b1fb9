import { apply } from '../autograd/tape.js'
import { defineOp, expectFloats, expectInteger, expectRank, expectShape, type Inputs } from '../autograd/op.js'
import { fail } from '../tensor/errors.js'
import { runNative } from '../tensor/native.js'
import { describe, Tensor } from '../tensor/tensor.js'
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
  inputShape: readonly number[]
  weightShape: readonly number[]
}

export const conv2dOp = defineOp<Conv2dInputs, Conv2dAttrs>({
  name: 'conv2d',
  forward({ x, weight, bias }, { numbers }) {
    const [strideH, strideW, padH, padW, dilationH, dilationW] = numbers as [number, number, number, number, number, number]
    const [n, h, w] = x.shape as [number, number, number, number]
    const [o, kh, kw] = weight.shape as [number, number, number, number]
    const oh = Math.floor((h + 2 * padH - dilationH * (kh - 1) - 1) / strideH) + 1
    const ow = Math.floor((w + 2 * padW - dilationW * (kw - 1) - 1) / strideW) + 1
    if (oh < 1 || ow < 1) fail('SHAPE', `conv2d: the dilated kernel of weight ${describe(weight)} is larger than the padded x ${describe(x)}`)
    const y = Tensor.empty([n, oh, ow, o], x.dtype)
    runNative('conv2d', [y, x, weight, bias], numbers)
    return { outputs: [y], saved: { x, weight } }
  },
  // dx = dy convolved with the weights transposed; dw[o, t] = sum of dy[p, o] x[p moved by t]; db = sum of dy
  backward({ grad, saved, attrs, needs }) {
    const gradients: { x?: Tensor; weight?: Tensor; bias?: Tensor } = {}
    if (needs.x) {
      gradients.x = Tensor.empty(attrs.inputShape, grad.dtype)
      runNative('conv2dBackwardInput', [gradients.x, grad, saved.weight], attrs.numbers)
    }
    if (needs.weight) {
      gradients.weight = Tensor.empty(attrs.weightShape, grad.dtype)
      runNative('conv2dBackwardWeight', [gradients.weight, grad, saved.x], attrs.numbers)
    }
    if (needs.bias) gradients.bias = sumRows(grad)
    return gradients
  },
})

/** x [N, H, W, C] with weight [O, KH, KW, C] and bias [O] to [N, OH, OW, O]: cross-correlation with zero padding. */
export function conv2d(x: Tensor, weight: Tensor, bias?: Tensor, { stride = 1, padding = 0, dilation = 1 }: Conv2dOptions = {}): Tensor {
  expectFloats('conv2d', { x, weight, bias })
  expectRank('conv2d', 'x', x, 4)
  expectRank('conv2d', 'weight', weight, 4)
  if (x.shape[3] !== weight.shape[3]) fail('SHAPE', `conv2d: expected weight of ${x.shape[3]} channels, as x ${describe(x)}, but received ${describe(weight)}`)
  if (bias !== undefined) expectShape('conv2d', 'bias', bias, [weight.shape[0]!], 'the output channels')
  for (const value of perAxis(stride)) expectInteger('conv2d', 'stride', value, 1)
  for (const value of perAxis(padding)) expectInteger('conv2d', 'padding', value, 0)
  for (const value of perAxis(dilation)) expectInteger('conv2d', 'dilation', value, 1)
  const numbers = [...perAxis(stride), ...perAxis(padding), ...perAxis(dilation)]
  return apply(conv2dOp, { x, weight, bias }, { numbers, inputShape: x.shape, weightShape: weight.shape })[0]!
}
