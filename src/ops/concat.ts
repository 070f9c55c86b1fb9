import { apply } from '../autograd/tape.js'
import { defineOp, expectOneDType, expectShape, type Inputs } from '../autograd/op.js'
import { fail } from '../tensor/errors.js'
import { type Shape, Tensor } from '../tensor/tensor.js'
import { axisOf } from './axes.js'
import { copyStrided, type Layout, stridesOf } from './copyStrided.js'
import { reshape } from './elementwise.js'

interface ConcatAttrs {
  shape: Shape
  /** Where each part lies in y. */
  parts: readonly { shape: Shape; layout: Layout }[]
}

export const concatOp = defineOp<Inputs, ConcatAttrs>({
  name: 'concat',
  forward(inputs, { shape, parts }) {
    const tensors = Object.values(inputs) as Tensor[]
    const y = Tensor.empty(shape, tensors[0]!.dtype)
    tensors.forEach((x, i) => copyStrided(x.shape, y, x, { yLayout: parts[i]!.layout }))
    return { outputs: [y] }
  },
  // dx_i = the part of dy that came from x_i
  backward({ grad, attrs, needs }) {
    return Object.fromEntries(
      attrs.parts.map(({ shape, layout }, i) => {
        const name = `x${i}`
        if (needs[name] !== true) return [name, undefined]
        const dx = Tensor.empty(shape, grad.dtype)
        copyStrided(shape, dx, grad, { xLayout: layout })
        return [name, dx]
      }),
    )
  },
})

/** Tensors of one dtype joined along an axis, the last unless told otherwise; their other axes are of one size. */
export function concat(parts: readonly Tensor[], axis = -1): Tensor {
  const first = parts[0] ?? fail('ARGUMENT', 'concat: expected at least one tensor but received none')
  const inputs = Object.fromEntries(parts.map((part, i) => [`x${i}`, part]))
  expectOneDType('concat', inputs)
  const along = axisOf('concat', first, axis)
  for (const [name, part] of Object.entries(inputs)) {
    const expected = first.shape.map((size, i) => (i === along ? (part.shape[i] ?? size) : size))
    expectShape('concat', name, part, expected, `the axes of x0 other than ${along}`)
  }
  const sizes = parts.map((part) => part.shape[along]!)
  const shape = first.shape.map((size, i) => (i === along ? sizes.reduce((sum, part) => sum + part, 0) : size))
  const strides = stridesOf(shape)
  let before = 0
  const placed = parts.map((part, i) => {
    const layout = { offset: before * strides[along]!, strides }
    before += sizes[i]!
    return { shape: part.shape, layout }
  })
  return apply(concatOp, inputs, { shape, parts: placed })[0]!
}

/** Tensors of one shape and dtype along a new axis of the result, its first unless told otherwise. */
export function stack(parts: readonly Tensor[], axis = 0): Tensor {
  const first = parts[0] ?? fail('ARGUMENT', 'stack: expected at least one tensor but received none')
  expectOneDType('stack', Object.fromEntries(parts.map((part, i) => [`x${i}`, part])))
  const at = axisOf('stack', first, axis, first.shape.length + 1)
  parts.forEach((part, i) => expectShape('stack', `x${i}`, part, first.shape, 'the shape of x0'))
  return concat(
    parts.map((part) => reshape(part, part.shape.toSpliced(at, 0, 1))),
    at,
  )
}
