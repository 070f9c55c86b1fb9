import { apply } from '../autograd/tape.js'
import { defineOp, expectDType, expectFloats, expectInteger, expectShape, type Inputs } from '../autograd/op.js'
import { fail } from '../tensor/errors.js'
import { runNative } from '../tensor/native.js'
import { describe, sizeOf, Tensor } from '../tensor/tensor.js'

interface NmsInputs extends Inputs {
  boxes: Tensor
  scores: Tensor
  group: Tensor | undefined
}

export const nmsOp = defineOp<NmsInputs, { threshold: number; limit: number }>({
  name: 'nms',
  forward({ boxes, scores, group }, { threshold, limit }) {
    const [batch, n] = [scores.shape.slice(0, -1), scores.shape.at(-1)!]
    const images = sizeOf(batch)
    const [index, count] = [Tensor.empty([...batch, limit], 'i32'), Tensor.empty(batch, 'i32')]
    const tensors = {
      index: index.alias([images, limit]),
      count: count.alias([images]),
      boxes: boxes.alias([images, n, 4]),
      scores: scores.alias([images, n]),
      group: group?.alias([images, n]),
    }
    runNative('nms', tensors, { threshold })
    return { outputs: [index, count] }
  },
  backward: 'notDifferentiable',
})

/** What non-maximum suppression leaves. */
export interface Kept {
  /** i32 [..., limit]: the kept boxes in the order of their scores, then -1. */
  index: Tensor
  /** i32 [...]: how many of them there are. */
  count: Tensor
}

/**
 * Greedy non-maximum suppression of boxes [..., N, 4] with scores [..., N], each set of N by itself: in the order of scores (that of
 * topK), a box is kept unless a kept one of its group overlaps it by an intersection over union of more than `threshold`. Boxes of no area
 * overlap nothing. `group`, i32 [..., N], is the class or level of each box, 0 for all by default; groups do not see each other, and a box
 * of a negative group is not there. Gives the first `limit` kept boxes, all N by default. The size of the result does not depend on the
 * values, so a recorded step can hold it. Not differentiable.
 */
export function nms(
  boxes: Tensor,
  scores: Tensor,
  threshold: number,
  { group, limit = scores.shape.at(-1) }: { group?: Tensor | undefined; limit?: number | undefined } = {},
): Kept {
  expectFloats('nms', { boxes, scores })
  if (scores.shape.length === 0) fail('SHAPE', `nms: expected scores of rank 1 or more but received ${describe(scores)}`)
  expectShape('nms', 'boxes', boxes, [...scores.shape, 4], 'x1, y1, x2, y2 for each score')
  if (group !== undefined) {
    expectDType('nms', 'group', group, 'i32')
    expectShape('nms', 'group', group, scores.shape, 'one for each score')
  }
  expectInteger('nms', 'limit', limit!, 0)
  if (!(threshold >= 0 && threshold <= 1)) fail('ARGUMENT', `nms: expected a threshold between 0 and 1 but received ${threshold}`)
  const [index, count] = apply(nmsOp, { boxes, scores, group }, { threshold, limit: limit! }) as [Tensor, Tensor]
  return { index, count }
}
