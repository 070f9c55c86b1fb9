import { apply } from '../autograd/tape.js'
import { defineOp, expectElements, expectFactors, expectRank, expectShape, type Inputs } from '../autograd/op.js'
import { fail } from '../tensor/errors.js'
import { accumulator, describe, Tensor } from '../tensor/tensor.js'
import { roundedWeight } from './fusion.js'
import { sumRows } from './sumRows.js'
import { computeNumbers, type ConvolutionNumbers, pointwiseWindows, runProduct } from './tuning.js'

interface LinearInputs extends Inputs {
  x: Tensor
  weight: Tensor
  bias: Tensor | undefined
}

// A linear layer is the convolution of R one-pixel images with a 1x1 kernel.
const pointwise = (): ConvolutionNumbers => ({ ...pointwiseWindows, ...computeNumbers() })
const asImages = (matrix: Tensor): Tensor => matrix.alias([matrix.shape[0]!, 1, 1, matrix.shape[1]!])

export const linearOp = defineOp<LinearInputs>({
  name: 'linear',
  forward({ x, weight, bias }) {
    const y = Tensor.empty([x.shape[0]!, weight.shape[0]!], x.dtype)
    runProduct(
      'conv2d',
      { y: asImages(y), x: asImages(x), weight: asImages(roundedWeight(weight, x.dtype)), bias },
      { ...pointwise(), relu: false },
    )
    return { outputs: [y], saved: { x, weight } }
  },
  // dx = dy w, dw = dy^T x, db = sum of dy
  backward({ grad, saved, needs }) {
    const gradients: { x?: Tensor; weight?: Tensor; bias?: Tensor } = {}
    const x = saved.x!
    const weight = saved.weight!
    if (needs.x) {
      gradients.x = Tensor.empty(x.shape, grad.dtype)
      const operand = asImages(roundedWeight(weight, x.dtype))
      runProduct('conv2dBackwardInput', { dx: asImages(gradients.x), dy: asImages(grad), weight: operand }, pointwise())
    }
    if (needs.weight) {
      gradients.weight = Tensor.empty(weight.shape, accumulator(grad.dtype))
      runProduct(
        'conv2dBackwardWeight',
        { dweight: asImages(gradients.weight), dy: asImages(grad), x: asImages(x) },
        { ...pointwise(), relu: false, splits: 0 },
      )
    }
    if (needs.bias) gradients.bias = sumRows(grad)
    return gradients
  },
})

/**
 * x [R, I] with weight [O, I] and bias [O] to x weight^T + bias [R, O], R of which may be 0. With x in bf16 a weight in f32 is rounded on
 * its way, and its gradient is of f32.
 */
export function linear(x: Tensor, weight: Tensor, bias?: Tensor): Tensor {
  expectFactors('linear', x, weight, bias)
  expectRank('linear', 'x', x, 2)
  expectRank('linear', 'weight', weight, 2)
  expectElements('linear', 'weight', weight)
  if (x.shape[1] !== weight.shape[1])
    fail('SHAPE', `linear: expected weight of ${x.shape[1]} inputs, as x ${describe(x)}, but received ${describe(weight)}`)
  if (bias !== undefined) expectShape('linear', 'bias', bias, [weight.shape[0]!], 'the outputs')
  return apply(linearOp, { x, weight, bias }, {})[0]!
}
