import { apply } from '../autograd/tape.js'
import { defineOp, expectFloats, expectInteger, type Inputs } from '../autograd/op.js'
import { calledAs, fail } from '../tensor/errors.js'
import { runNative } from '../tensor/native.js'
import { describe, type Shape, sizeOf, Tensor } from '../tensor/tensor.js'

interface Rows extends Inputs {
  x: Tensor
}

export const topKOp = defineOp<Rows, { k: number; from: Shape }>({
  name: 'topK',
  forward({ x }, { k }) {
    const shape = [...x.shape.slice(0, -1), k]
    const [values, index] = [Tensor.empty(shape, x.dtype), Tensor.empty(shape, 'i32')]
    runNative('topK', { values, index, x })
    return { outputs: [values, index], saved: { index } }
  },
  // dx[index[i]] = dy[i]
  backward({ grad, saved, attrs: { k, from } }) {
    const dx = Tensor.empty(from, grad.dtype)
    const rows = sizeOf(from.slice(0, -1))
    const tensors = { dx: dx.alias([rows, from.at(-1)!, 1]), dy: grad.alias([rows, k, 1]), index: saved.index!.alias([rows, k]) }
    runNative('gatherRowsBackward', tensors)
    return { x: dx }
  },
})

/** The first values of each row in their order, and where they stood. */
export interface Ordered {
  /** [..., k] of the dtype of x; they carry the gradient. */
  values: Tensor
  /** i32 [..., k], along the last axis of x. */
  index: Tensor
}

/**
 * The k largest elements of each row (the last axis) of x, in descending order; equal ones, and -0 and 0, in the order of their index. NaN
 * counts as larger than all numbers.
 */
export function topK(x: Tensor, k: number): Ordered {
  expectFloats('topK', { x })
  if (x.shape.length === 0) fail('SHAPE', 'topK: expected x of rank 1 or more but received a scalar')
  expectInteger('topK', 'k', k, 0)
  if (k > x.shape.at(-1)!)
    fail('SHAPE', `topK: expected k of at most ${x.shape.at(-1)} (the last axis) for x ${describe(x)} but received ${k}`)
  const [values, index] = apply(topKOp, { x }, { k, from: x.shape }) as [Tensor, Tensor]
  return { values, index }
}

/** Each row (the last axis) of x in descending order, as topK of all its elements. */
export function sort(x: Tensor): Ordered {
  expectFloats('sort', { x })
  if (x.shape.length === 0) fail('SHAPE', 'sort: expected x of rank 1 or more but received a scalar')
  return calledAs('sort', new Set(['topK']), () => topK(x, x.shape.at(-1)!))
}
