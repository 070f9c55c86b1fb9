import { fail } from '../tensor/errors.js'
import { describe, type Tensor } from '../tensor/tensor.js'

/** An axis of x, or of a tensor of another rank made of it, counted from the front; a negative one counts from the end. */
export function axisOf(op: string, x: Tensor, axis: number, rank = x.shape.length): number {
  if (!Number.isInteger(axis) || axis < -rank || axis >= rank)
    fail('ARGUMENT', `${op}: expected an axis of x ${describe(x)}, from ${-rank} to ${rank - 1}, but received ${axis}`)
  return axis < 0 ? axis + rank : axis
}
