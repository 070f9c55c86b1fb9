import { apply } from '../autograd/tape.js'
import { defineOp, expectFloats, expectInteger, expectRank, expectShape, type Inputs } from '../autograd/op.js'
import { fail } from '../tensor/errors.js'
import { type OpNumbers, runNative } from '../tensor/native.js'
import { accumulator, describe, Tensor } from '../tensor/tensor.js'
import type { Conv2dOptions } from './conv2d.js'
import { perAxis } from './perAxis.js'
import { sumRows } from './sumRows.js'

interface GroupedConv2dInputs extends Inputs {
  x: Tensor
  weight: Tensor
  bias: Tensor | undefined
}

interface GroupedConv2dAttrs {
  numbers: OpNumbers<'groupedConv2d'>
  outputSize: readonly [number, number]
}

export const groupedConv2dOp = defineOp<GroupedConv2dInputs, GroupedConv2dAttrs>({
  name: 'groupedConv2d',
  // y[p, o] = bias[o] + sum over taps t and channels c of the group of o: weight[o, t, c] x[p moved by t, c]
  forward({ x, weight, bias }, { numbers, outputSize }) {
    const y = Tensor.empty([x.shape[0]!, ...outputSize, weight.shape[0]!], x.dtype)
    runNative('groupedConv2d', { y, x, weight, bias }, numbers)
    return { outputs: [y], saved: { x, weight } }
  },
  // dx = dy convolved with the weights transposed, group by group; dweight[o, t, c] = sum of dy[p, o] x[p moved by t, c]; dbias = sum of dy
  backward({ grad, saved, attrs: { numbers }, needs }) {
    const { x, weight } = saved as { x: Tensor; weight: Tensor }
    const gradients: { x?: Tensor; weight?: Tensor; bias?: Tensor } = {}
    if (needs.x) {
      gradients.x = Tensor.empty(x.shape, grad.dtype)
      runNative('groupedConv2dBackwardInput', { dx: gradients.x, dy: grad, weight }, numbers)
    }
    if (needs.weight) {
      gradients.weight = Tensor.empty(weight.shape, accumulator(grad.dtype))
      runNative('groupedConv2dBackwardWeight', { dweight: gradients.weight, dy: grad, x }, numbers)
    }
    if (needs.bias) gradients.bias = sumRows(grad)
    return gradients
  },
})

/** conv2d with `groups` of channels that see each other alone: x [N, H, W, C] with weight [O, KH, KW, C / groups]; conv2d calls it. */
export function groupedConv2d(
  x: Tensor,
  weight: Tensor,
  bias: Tensor | undefined,
  { stride = 1, padding = 0, dilation = 1, groups = 1 }: Conv2dOptions,
): Tensor {
  expectFloats('conv2d', { x, weight }, { bias })
  expectRank('conv2d', 'x', x, 4)
  expectRank('conv2d', 'weight', weight, 4)
  expectInteger('conv2d', 'groups', groups, 1)
  const [, h, w, c] = x.shape as [number, number, number, number]
  const [o, kh, kw] = weight.shape as [number, number, number, number]
  if (c % groups !== 0 || o % groups !== 0)
    fail(
      'ARGUMENT',
      `conv2d: expected groups to divide the channels of x ${describe(x)} and the outputs of weight ${describe(weight)} ` +
        `but received ${groups}`,
    )
  expectShape('conv2d', 'weight', weight, [o, kh, kw, c / groups], `${c} channels of x in ${groups} groups`)
  if (bias !== undefined) expectShape('conv2d', 'bias', bias, [o], 'the output channels')
  for (const value of perAxis(stride)) expectInteger('conv2d', 'stride', value, 1)
  for (const value of perAxis(padding)) expectInteger('conv2d', 'padding', value, 0)
  for (const value of perAxis(dilation)) expectInteger('conv2d', 'dilation', value, 1)
  const [[strideH, strideW], [paddingH, paddingW], [dilationH, dilationW]] = [perAxis(stride), perAxis(padding), perAxis(dilation)]
  const outputSize = [
    Math.floor((h + 2 * paddingH - dilationH * (kh - 1) - 1) / strideH) + 1,
    Math.floor((w + 2 * paddingW - dilationW * (kw - 1) - 1) / strideW) + 1,
  ] as const
  if (outputSize[0] < 1 || outputSize[1] < 1)
    fail('SHAPE', `conv2d: the dilated kernel of weight ${describe(weight)} is larger than the padded x ${describe(x)}`)
  const numbers = { strideH, strideW, paddingH, paddingW, dilationH, dilationW, groups }
  return apply(groupedConv2dOp, { x, weight, bias }, { numbers, outputSize })[0]!
}
