import { apply } from '../autograd/tape.js'
import { defineOp, expectFloats, expectRank, expectShape, expectTensor, type Inputs } from '../autograd/op.js'
import { fail } from '../tensor/errors.js'
import { type OpNumbers, runNative } from '../tensor/native.js'
import { describe, expectSizes, sizeOf, Tensor } from '../tensor/tensor.js'

interface Unary extends Inputs {
  x: Tensor
}

export const reluOp = defineOp<Unary>({
  name: 'relu',
  forward({ x }) {
    const y = Tensor.empty(x.shape, x.dtype)
    runNative('relu', { y, x })
    return { outputs: [y], saved: { y } }
  },
  // dx = dy where y > 0
  backward({ grad, saved }) {
    const dx = Tensor.empty(grad.shape, grad.dtype)
    runNative('reluBackward', { dx, dy: grad, y: saved.y! })
    return { x: dx }
  },
})

/** max(x, 0); NaN stays NaN. */
export function relu(x: Tensor): Tensor {
  expectFloats('relu', { x })
  return apply(reluOp, { x }, {})[0]!
}

export const scaleOp = defineOp<Unary, { factor: number | Tensor }>({
  name: 'scale',
  forward({ x }, { factor }) {
    return { outputs: [scaled(x, factor)] }
  },
  // dx = factor dy
  backward({ grad, attrs }) {
    return { x: scaled(grad, attrs.factor) }
  },
})

function scaled(x: Tensor, factor: number | Tensor): Tensor {
  const y = Tensor.empty(x.shape, x.dtype)
  if (typeof factor === 'number') runNative('scale', { y, x }, { number: factor })
  else runNative('scale', { y, x, factor }, { number: 1 })
  return y
}

/**
 * factor * x with a constant factor: a number, or a tensor [1] whose value is read when the op runs, on the device. Such a
 * tensor must live until the gradient has been taken.
 */
export function scale(x: Tensor, factor: number | Tensor): Tensor {
  expectFloats('scale', { x }, typeof factor === 'number' ? {} : { factor })
  if (typeof factor !== 'number') expectShape('scale', 'factor', factor, [1], 'one value')
  return apply(scaleOp, { x }, { factor })[0]!
}

export const reshapeOp = defineOp<Unary, { shape: readonly number[]; from: readonly number[] }>({
  name: 'reshape',
  forward({ x }, { shape }) {
    return { outputs: [x.alias(shape)] }
  },
  // dx = dy in the shape of x
  backward({ grad, attrs }) {
    return { x: grad.alias(attrs.from) }
  },
})

/** The same values, row-major, in another shape; shares the storage. */
export function reshape(x: Tensor, shape: readonly number[]): Tensor {
  expectTensor('reshape', 'x', x)
  expectSizes('reshape', shape)
  if (sizeOf(shape) !== x.size)
    fail('SHAPE', `reshape: expected a shape of ${x.size} elements, as x ${describe(x)}, but received [${shape.join(',')}]`)
  return apply(reshapeOp, { x }, { shape, from: x.shape })[0]!
}

export const dropoutOp = defineOp<Unary, { numbers: OpNumbers<'dropout'> }>({
  name: 'dropout',
  forward({ x }, { numbers }) {
    const y = Tensor.empty(x.shape, x.dtype)
    runNative('dropout', { y, x }, numbers)
    return { outputs: [y] }
  },
  // dx = dy * keep / (1 - p), the same mask
  backward({ grad, attrs }) {
    const dx = Tensor.empty(grad.shape, grad.dtype)
    runNative('dropout', { y: dx, x: grad }, attrs.numbers)
    return { x: dx }
  },
})

/**
 * Zeroes each element with `probability` and divides the rest by 1 - probability; the mask is a function of `seed`. `whole` drops
 * channels of images x [N, H, W, C] as a whole (PyTorch's Dropout2d).
 */
export function dropout(x: Tensor, probability: number, seed: number, { whole = false } = {}): Tensor {
  expectFloats('dropout', { x })
  if (!(probability >= 0 && probability <= 1)) fail('ARGUMENT', `dropout: expected a probability in 0..1 but received ${probability}`)
  if (whole) expectRank('dropout', 'x', x, 4)
  const channels = whole ? x.shape[3]! : 1
  return apply(dropoutOp, { x }, { numbers: { probability, seed, image: whole ? Math.max(1, sizeOf(x.shape.slice(1))) : 1, channels } })[0]!
}
