/** From scores and moves of anchors to the regions that are looked at again. */
import { less, mul, sub, where } from '../ops/arithmetic.js'
import { clipBoxes, decodeBoxes } from '../ops/boxes.js'
import { concat } from '../ops/concat.js'
import { reshape } from '../ops/elementwise.js'
import { gather } from '../ops/gather.js'
import { nms } from '../ops/nms.js'
import { slice } from '../ops/slice.js'
import { topK } from '../ops/topK.js'
import { accumulator, scope, Tensor } from '../tensor/tensor.js'
import type { DetectorForm, Proposed } from './detector.js'
import type { DetectionStyle } from './styles.js'
import { sampling } from './targets.js'

/** How many of the best anchors are moved, and how many boxes are kept of those that do not overlap by more than `overlap`. */
export interface ProposalLimits {
  before: number
  after: number
  overlap: number
}

/** The published limits: of the single map, and of each map of a pyramid before, and of all together after. */
export const proposalLimits = {
  c4: { train: { before: 12000, after: 2000, overlap: 0.7 }, test: { before: 6000, after: 1000, overlap: 0.7 } },
  fpn: { train: { before: 2000, after: 1000, overlap: 0.7 }, test: { before: 1000, after: 1000, overlap: 0.7 } },
} as const satisfies Record<DetectorForm, Record<'train' | 'test', ProposalLimits>>

/** Proposals of an image, the best first: boxes [n, 4] in its pixels, and their logits. */
export interface Proposals {
  boxes: Float64Array
  scores: Float64Array
}

/** The best of the anchors [A, 4] of a map, moved and clipped: logits [N, k] and boxes [N, k, 4]. */
function bestOfMap(
  { logits, deltas }: Proposed,
  anchors: Float64Array,
  sizes: Tensor,
  clamp: DetectionStyle['clamp'],
  before: number,
): { logits: Tensor; boxes: Tensor } {
  const count = anchors.length / 4
  const best = topK(logits, Math.min(before, count))
  const from = gather(Tensor.from(anchors, [count, 4], sizes.dtype), best.index)
  const moves = gather(deltas, best.index, { axis: 1, batchAxes: 1 })
  const moved = decodeBoxes(moves, from, { weights: sampling.anchors.weights, bothSides: clamp === 'both' })
  return { logits: best.values.to(sizes.dtype), boxes: clipBoxes(moved, sizes) }
}

/**
 * The proposals of each image of a batch, by what the network says of the `anchors` [A, 4] of each map. The best of each map are taken;
 * those of different maps do not suppress each other. Waits for the device.
 */
export function proposals(
  proposed: readonly Proposed[],
  anchors: readonly Float64Array[],
  images: readonly { height: number; width: number }[],
  { clamp }: DetectionStyle,
  { before, after, overlap }: ProposalLimits,
): Proposals[] {
  return scope(() => {
    const dtype = accumulator(proposed[0]!.logits.dtype)
    const sizes = Tensor.from(
      images.flatMap(({ height, width }) => [height, width]),
      [images.length, 2],
      dtype,
    )
    const maps = proposed.map((each, map) => bestOfMap(each, anchors[map]!, sizes, clamp, before))
    const [logits, boxes] = (['logits', 'boxes'] as const).map((part) =>
      maps.length === 1
        ? maps[0]![part]
        : concat(
            maps.map((map) => map[part]),
            1,
          ),
    ) as [Tensor, Tensor]
    const each = logits.shape[1]!
    // What has no area behind the border is no proposal: it comes last, and is left out below.
    const side = (at: number): Tensor =>
      reshape(sub(slice(boxes, [undefined, undefined, [at + 2, at + 3]]), slice(boxes, [undefined, undefined, [at, at + 1]])), logits.shape)
    const scores = where(less(0, mul(side(0), side(1))), logits, -Infinity)
    const group = maps.length === 1 ? undefined : mapOfEach(maps, images.length)
    const { index } = nms(boxes, scores, overlap, { group, limit: Math.min(after, each) })
    const [kept, corners, values] = [index.data(), boxes.data(), scores.data()]
    const most = index.shape[1]!
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

/** i32 [images, boxes]: the map that each box is of. */
function mapOfEach(maps: readonly { logits: Tensor }[], images: number): Tensor {
  const own = maps.flatMap(({ logits }, map) => new Array<number>(logits.shape[1]!).fill(map))
  return Tensor.from(Int32Array.from(Array.from({ length: images }, () => own).flat()), [images, own.length], 'i32')
}
