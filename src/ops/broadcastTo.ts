import { apply } from '../autograd/tape.js'
import { defineOp, expectTensor, type Inputs } from '../autograd/op.js'
import { fail } from '../tensor/errors.js'
import { describe, expectSizes, type Shape, Tensor } from '../tensor/tensor.js'
import { axisOf } from './axes.js'
import { sumTo } from './broadcast.js'
import { copyStrided, stridesOf } from './copyStrided.js'
import { reshape } from './elementwise.js'

interface BroadcastInputs extends Inputs {
  x: Tensor
}

export const broadcastToOp = defineOp<BroadcastInputs, { shape: Shape; from: Shape }>({
  name: 'broadcastTo',
  forward({ x }, { shape, from }) {
    const y = Tensor.empty(shape, x.dtype)
    const own = stridesOf(from)
    const strides = shape.map((_, axis) => {
      const at = axis - shape.length + from.length
      return at < 0 || from[at] === 1 ? 0 : own[at]!
    })
    copyStrided(shape, y, x, { xLayout: { offset: 0, strides } })
    return { outputs: [y] }
  },
  // dx = the sum of dy over the axes along which x was repeated
  backward({ grad, attrs: { from } }) {
    return { x: sumTo(grad, from) }
  },
})

/**
 * A copy of x, of any dtype, repeated to `shape` by NumPy's rules: shapes are aligned to the right, axes of one element are repeated and
 * leading axes are added. Arithmetic broadcasts by itself and needs no such copy.
 */
export function broadcastTo(x: Tensor, shape: Shape): Tensor {
  expectTensor('broadcastTo', 'x', x)
  expectSizes('broadcastTo', shape)
  const added = shape.length - x.shape.length
  if (added < 0 || x.shape.some((size, axis) => size !== 1 && size !== shape[axis + added]))
    fail('SHAPE', `broadcastTo: expected a shape that x ${describe(x)} broadcasts to but received [${shape.join(',')}]`)
  return apply(broadcastToOp, { x }, { shape, from: x.shape })[0]!
}

/** x with a new axis of one element, which is axis `axis` of the result; shares the storage. */
export function expandDims(x: Tensor, axis: number): Tensor {
  return reshape(x, x.shape.toSpliced(axisOf('expandDims', x, axis, x.shape.length + 1), 0, 1))
}

/** x without its axes of one element, or without those that are named; shares the storage. */
export function squeeze(x: Tensor, axes?: number | readonly number[]): Tensor {
  if (axes === undefined)
    return reshape(
      x,
      x.shape.filter((size) => size !== 1),
    )
  const left = new Set((typeof axes === 'number' ? [axes] : axes).map((axis) => axisOf('squeeze', x, axis)))
  for (const axis of left)
    if (x.shape[axis] !== 1) fail('SHAPE', `squeeze: expected axis ${axis} to have one element but received x ${describe(x)}`)
  return reshape(
    x,
    x.shape.filter((_, axis) => !left.has(axis)),
  )
}
