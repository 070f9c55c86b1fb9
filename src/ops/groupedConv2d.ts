import { apply } from '../autograd/tape.js'
import { defineOp, expectInteger, expectShape, type Inputs } from '../autograd/op.js'
import { fail } from '../tensor/errors.js'
import { type OpNumbers, runNative } from '../tensor/native.js'
import { accumulator, describe, Tensor } from '../tensor/tensor.js'
import { roundedWeight } from './fusion.js'
import { sumRows } from './sumRows.js'
import { type Conv2dOptions, convolutionGeometry, convolutionSize } from './windows.js'

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
    runNative('groupedConv2d', { y, x, weight: roundedWeight(weight, x.dtype), bias }, numbers)
    return { outputs: [y], saved: { x, weight } }
  },
  // dx = dy convolved with the weights transposed, group by group; dweight[o, t, c] = sum of dy[p, o] x[p moved by t, c]; dbias = sum of dy
  backward({ grad, saved, attrs: { numbers }, needs }) {
    const { x, weight } = saved as { x: Tensor; weight: Tensor }
    const gradients: { x?: Tensor; weight?: Tensor; bias?: Tensor } = {}
    if (needs.x) {
      gradients.x = Tensor.empty(x.shape, grad.dtype)
      runNative('groupedConv2dBackwardInput', { dx: gradients.x, dy: grad, weight: roundedWeight(weight, x.dtype) }, numbers)
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
export function groupedConv2d(x: Tensor, weight: Tensor, bias: Tensor | undefined, options: Conv2dOptions): Tensor {
  const { groups = 1 } = options
  const geometry = convolutionGeometry(x, weight, bias, options)
  expectInteger('conv2d', 'groups', groups, 1)
  const [c, [o, kh, kw]] = [x.shape[3]!, weight.shape as [number, number, number, number]]
  if (c % groups !== 0 || o % groups !== 0)
    fail(
      'ARGUMENT',
      `conv2d: expected groups to divide the channels of x ${describe(x)} and the outputs of weight ${describe(weight)} ` +
        `but received ${groups}`,
    )
  expectShape('conv2d', 'weight', weight, [o, kh, kw, c / groups], `${c} channels of x in ${groups} groups`)
  const outputSize = convolutionSize(x, weight, geometry)
  return apply(groupedConv2dOp, { x, weight, bias }, { numbers: { ...geometry, groups }, outputSize })[0]!
}
