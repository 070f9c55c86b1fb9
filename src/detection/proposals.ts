/** From scores and moves of anchors to the regions that are looked at again. */
import { type Box, boxHeight, boxWidth } from '../data/boxes.js'
import { clipBox, decodeBox } from './coding.js'
import type { Proposed } from './fasterRcnn.js'
import type { DetectionStyle } from './styles.js'
import { suppressed } from './suppress.js'
import { boxAt, sampling } from './targets.js'

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

/** The proposals of each image of a batch, by what the network says of `anchors` [A, 4]. Reads it: waits for the device. */
export function proposals(
  { logits, deltas }: Proposed,
  anchors: Float64Array,
  images: readonly { height: number; width: number }[],
  { clamp }: DetectionStyle,
  { before, after, overlap }: ProposalLimits,
): Proposals[] {
  const [scores, moves] = [logits.data(), deltas.data()]
  const count = anchors.length / 4
  return images.map((size, image) => {
    const own = scores.subarray(image * count, (image + 1) * count)
    const order = Int32Array.from({ length: count }, (_, i) => i).sort((a, b) => own[b]! - own[a]! || a - b)
    const boxes: Box[] = []
    const kept: number[] = []
    for (const at of order.subarray(0, before)) {
      const move = moves.subarray(4 * (image * count + at), 4 * (image * count + at) + 4)
      const box = clipBox(decodeBox(boxAt(anchors, at), move, sampling.anchors.weights, clamp), size)
      if (!(boxWidth(box) > 0 && boxHeight(box) > 0)) continue
      boxes.push(box)
      kept.push(at)
    }
    const chosen = suppressed(boxes, overlap, after)
    return { boxes: Float64Array.from(chosen.flatMap((i) => [...boxes[i]!])), scores: Float64Array.from(chosen, (i) => own[kept[i]!]!) }
  })
}
