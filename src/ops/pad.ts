import { apply } from '../autograd/tape.js'
import { defineOp, expectInteger, expectTensor, type Inputs } from '../autograd/op.js'
import { fail } from '../tensor/errors.js'
import { describe, expectValue, type Shape, Tensor } from '../tensor/tensor.js'
import { copyStrided, type Layout, stridesOf } from './copyStrided.js'

interface PadInputs extends Inputs {
  x: Tensor
}

export const padOp = defineOp<PadInputs, { shape: Shape; value: number; layout: Layout; from: Shape }>({
  name: 'pad',
  forward({ x }, { shape, value, layout }) {
    const y = Tensor.full(shape, value, x.dtype)
    copyStrided(x.shape, y, x, { yLayout: layout })
    return { outputs: [y] }
  },
  // dx = dy without its border
  backward({ grad, attrs: { layout, from } }) {
    const dx = Tensor.empty(from, grad.dtype)
    copyStrided(from, dx, grad, { xLayout: layout })
    return { x: dx }
  },
})

/** x with `value` around it: for each axis of x, how many elements before and after. */
export function pad(x: Tensor, padding: readonly (readonly [before: number, after: number])[], value = 0): Tensor {
  expectTensor('pad', 'x', x)
  expectValue('pad', 'value', value, x.dtype)
  if (padding.length !== x.shape.length)
    fail('ARGUMENT', `pad: expected ${x.shape.length} pairs, one for each axis of x ${describe(x)}, but received ${padding.length}`)
  for (const pair of padding) for (const side of [0, 1] as const) expectInteger('pad', 'padding', pair[side], 0)
  const shape = x.shape.map((size, axis) => size + padding[axis]![0] + padding[axis]![1])
  const strides = stridesOf(shape)
  const offset = padding.reduce((sum, [before], axis) => sum + before * strides[axis]!, 0)
  return apply(padOp, { x }, { shape, value, layout: { offset, strides }, from: x.shape })[0]!
}
