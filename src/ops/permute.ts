import { apply } from '../autograd/tape.js'
import { defineOp, expectTensor, type Inputs } from '../autograd/op.js'
import { fail } from '../tensor/errors.js'
import { describe, Tensor } from '../tensor/tensor.js'
import { axisOf } from './axes.js'
import { copyStrided, stridesOf } from './copyStrided.js'

interface PermuteInputs extends Inputs {
  x: Tensor
}

export const permuteOp = defineOp<PermuteInputs, { order: readonly number[] }>({
  name: 'permute',
  forward({ x }, { order }) {
    return { outputs: [permuted(x, order)] }
  },
  // dx = dy with its axes put back
  backward({ grad, attrs }) {
    return {
      x: permuted(
        grad,
        Array.from(attrs.order, (_, axis) => attrs.order.indexOf(axis)),
      ),
    }
  },
})

function permuted(x: Tensor, order: readonly number[]): Tensor {
  const y = Tensor.empty(
    order.map((axis) => x.shape[axis]!),
    x.dtype,
  )
  const strides = stridesOf(x.shape)
  copyStrided(y.shape, y, x, { xLayout: { offset: 0, strides: order.map((axis) => strides[axis]!) } })
  return y
}

/** A copy of x, of any rank and dtype, in which axis order[i] of x is axis i. Negative axes count from the end. */
export function permute(x: Tensor, order: readonly number[]): Tensor {
  expectTensor('permute', 'x', x)
  const axes = order.map((axis) => axisOf('permute', x, axis))
  if (new Set(axes).size !== x.shape.length || axes.length !== x.shape.length)
    fail('ARGUMENT', `permute: expected order to name each axis of x ${describe(x)} once but received [${order.join(',')}]`)
  return apply(permuteOp, { x }, { order: axes })[0]!
}

/** A copy of x with two of its axes exchanged, the last two unless told otherwise. */
export function transpose(x: Tensor, first = -2, second = -1): Tensor {
  expectTensor('transpose', 'x', x)
  const [a, b] = [axisOf('transpose', x, first), axisOf('transpose', x, second)]
  return permute(
    x,
    x.shape.map((_, axis) => (axis === a ? b : axis === b ? a : axis)),
  )
}
