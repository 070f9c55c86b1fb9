import { apply } from '../autograd/tape.js'
import { defineOp, expectTensor, type Inputs } from '../autograd/op.js'
import { fail } from '../tensor/errors.js'
import { describe, type Shape, Tensor } from '../tensor/tensor.js'
import { copyStrided, type Layout, stridesOf } from './copyStrided.js'

interface SliceInputs extends Inputs {
  x: Tensor
}

interface SliceAttrs {
  shape: Shape
  /** Where the slice lies in a tensor of shape `from`. */
  layout: Layout
  from: Shape
}

export const sliceOp = defineOp<SliceInputs, SliceAttrs>({
  name: 'slice',
  forward({ x }, { shape, layout }) {
    const y = Tensor.empty(shape, x.dtype)
    copyStrided(shape, y, x, { xLayout: layout })
    return { outputs: [y] }
  },
  // dx = dy where the slice was, 0 elsewhere
  backward({ grad, attrs: { shape, layout, from } }) {
    const dx = Tensor.zeros(from, grad.dtype)
    copyStrided(shape, dx, grad, { yLayout: layout })
    return { x: dx }
  },
})

/** Elements start, start + step, .. before stop of an axis; undefined where the axis is taken as a whole. */
export type SliceRange = readonly [start?: number | undefined, stop?: number | undefined, step?: number]

/**
 * A copy of part of x, of any dtype: for each axis a range [start, stop, step], the whole axis where there is none. As in NumPy a negative
 * start or stop counts from the end, a negative step goes backwards (from the last element to the first unless told otherwise) and an axis
 * keeps its place; unlike there, a range that reaches outside of the axis is an error.
 */
export function slice(x: Tensor, ranges: readonly (SliceRange | undefined)[]): Tensor {
  expectTensor('slice', 'x', x)
  if (ranges.length > x.shape.length)
    fail(
      'ARGUMENT',
      `slice: expected at most ${x.shape.length} ranges, one for each axis of x ${describe(x)}, but received ${ranges.length}`,
    )
  const strides = stridesOf(x.shape)
  const parts = x.shape.map((size, axis) => resolve(x, axis, size, ranges[axis] ?? []))
  const layout = {
    offset: parts.reduce((sum, { start }, axis) => sum + start * strides[axis]!, 0),
    strides: parts.map(({ step }, axis) => step * strides[axis]!),
  }
  return apply(sliceOp, { x }, { shape: parts.map(({ count }) => count), layout, from: x.shape })[0]!
}

function resolve(
  x: Tensor,
  axis: number,
  size: number,
  [start, stop, step = 1]: SliceRange,
): { start: number; count: number; step: number } {
  if (!Number.isSafeInteger(step) || step === 0)
    fail('ARGUMENT', `slice: expected the step of axis ${axis} to be an integer other than 0 but received ${step}`)
  const fromStart = (value: number): number => (value < 0 ? value + size : value)
  // The places that a range begins at and ends before.
  const first = start === undefined ? (step > 0 ? 0 : size - 1) : fromStart(start)
  const end = stop === undefined ? (step > 0 ? size : -1) : fromStart(stop)
  const count = Math.max(0, Math.ceil((end - first) / step))
  const inside = (value: number): boolean => Number.isSafeInteger(value) && value >= 0 && value <= size
  if (!(inside(first) || start === undefined) || !(inside(end) || stop === undefined) || (count > 0 && first >= size))
    fail(
      'RANGE',
      `slice: expected a range inside of axis ${axis} of x ${describe(x)} but received [${start ?? ''}, ${stop ?? ''}, ${step}]`,
    )
  return { start: Math.max(0, first), count, step }
}
