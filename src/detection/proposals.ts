/** From scores and moves of anchors to the regions that are looked at again. */
import { less, mul, sub, where } from '../ops/arithmetic.js'
import { clipBoxes, decodeBoxes } from '../ops/boxes.js'
import { reshape } from '../ops/elementwise.js'
import { gather } from '../ops/gather.js'
import { nms } from '../ops/nms.js'
import { slice } from '../ops/slice.js'
import { topK } from '../ops/topK.js'
import { accumulator, scope, Tensor } from '../tensor/tensor.js'
import type { Proposed } from './fasterRcnn.js'
import type { DetectionStyle } from './styles.js'
import { sampling } from './targets.js'

/** How many of the best anchors are moved, and how many boxes are kept of those that do not overlap by more than `overlap`. */
export interface ProposalLimits {
  before: number
  after: number
  overlap: number
}

/** The published limits of a single map. */
export const proposalLimits = {
  train: { before: 12000, after: 2000, overlap: 0.7 },
  test: { before: 6000, after: 1000, overlap: 0.7 },
} as const satisfies Record<string, ProposalLimits>

/** Proposals of an image, the best first: boxes [n, 4] in its pixels, and their logits. */
export interface Proposals {
  boxes: Float64Array
  scores: Float64Array
}

/** The proposals of each image of a batch, by what the network says of `anchors` [A, 4]. Waits for the device. */
export function proposals(
  { logits, deltas }: Proposed,
  anchors: Float64Array,
  images: readonly { height: number; width: number }[],
  { clamp }: DetectionStyle,
  { before, after, overlap }: ProposalLimits,
): Proposals[] {
  return scope(() => {
    const dtype = accumulator(logits.dtype)
    const count = anchors.length / 4
    const best = topK(logits, Math.min(before, count))
    const from = gather(Tensor.from(anchors, [count, 4], dtype), best.index)
    const moves = gather(deltas, best.index, { axis: 1, batchAxes: 1 })
    const sizes = Tensor.from(
      images.flatMap(({ height, width }) => [height, width]),
      [images.length, 2],
      dtype,
    )
    const moved = decodeBoxes(moves, from, { weights: sampling.anchors.weights, bothSides: clamp === 'both' })
    const boxes = clipBoxes(moved, sizes)
    // What has no area behind the border is no proposal: it comes last, and is left out below.
    const side = (at: number): Tensor =>
      reshape(
        sub(slice(boxes, [undefined, undefined, [at + 2, at + 3]]), slice(boxes, [undefined, undefined, [at, at + 1]])),
        best.values.shape,
      )
    const scores = where(less(0, mul(side(0), side(1))), best.values.to(dtype), -Infinity)
    const { index } = nms(boxes, scores, overlap, { limit: Math.min(after, best.values.shape[1]!) })
    const [kept, corners, values] = [index.data(), boxes.data(), scores.data()]
    const most = index.shape[1]!
    const each = best.values.shape[1]!
    return images.map((_, image) => {
      const rows = Array.from(kept.subarray(image * most, (image + 1) * most), (at) => image * each + at).filter(
        (row) => row >= image * each && values[row]! > -Infinity,
      )
      return {
        boxes: Float64Array.from(rows.flatMap((row) => [...corners.subarray(4 * row, 4 * row + 4)])),
        scores: Float64Array.from(rows, (row) => values[row]!),
      }
    })
  })
}
