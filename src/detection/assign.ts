/** Which anchors and proposals stand for which object, and which of them are trained on. */
import type { Box } from '../data/boxes.js'
import type { Random } from '../tensor/random.js'

/** For each box 1 where it stands for an object, 0 for the background and -1 where it is left out, and the index of its object. */
export interface Assignment {
  labels: Int8Array
  matched: Int32Array
}

/** Overlaps (intersection over union) between which a box is left out: background below `low`, an object from `high` on. */
export interface AssignRules {
  low: number
  high: number
  /**
   * What becomes of an object that no box reaches `high` with. `none`: nothing. `best`: all boxes that overlap it most stand for an object,
   * the one that each overlaps most (detectron2). `reassigned`: they stand for this object, if they overlap it by `low` at least
   * (mmdetection).
   */
  lowQuality: 'none' | 'best' | 'reassigned'
}

/** Intersection over union of box `at` of `boxes` [N, 4] and `box`; 0 where they do not meet. */
function overlap(boxes: Float64Array, at: number, box: Box): number {
  const [x1, y1, x2, y2] = [boxes[4 * at]!, boxes[4 * at + 1]!, boxes[4 * at + 2]!, boxes[4 * at + 3]!]
  const width = Math.min(x2, box[2]) - Math.max(x1, box[0])
  const height = Math.min(y2, box[3]) - Math.max(y1, box[1])
  if (width <= 0 || height <= 0) return 0
  const shared = width * height
  return shared / ((x2 - x1) * (y2 - y1) + (box[2] - box[0]) * (box[3] - box[1]) - shared)
}

/** Assigns `boxes` [N, 4] to `objects`; of objects that a box overlaps equally the first. `valid` says which boxes take part. */
export function assign(
  boxes: Float64Array,
  objects: readonly Box[],
  { low, high, lowQuality }: AssignRules,
  valid: (box: number) => boolean = () => true,
): Assignment {
  const count = boxes.length / 4
  const best = new Float64Array(count)
  const matched = new Int32Array(count)
  const bestOf = new Float64Array(objects.length)
  const takesPart = Uint8Array.from({ length: count }, (_, i) => Number(valid(i)))
  objects.forEach((object, g) => {
    for (let i = 0; i < count; ++i) {
      if (takesPart[i] === 0) continue
      const share = overlap(boxes, i, object)
      if (share > best[i]!) {
        best[i] = share
        matched[i] = g
      }
      if (share > bestOf[g]!) bestOf[g] = share
    }
  })
  const labels = Int8Array.from(best, (share, i) => (takesPart[i] === 0 ? -1 : share >= high ? 1 : share < low ? 0 : -1))
  if (lowQuality !== 'none')
    objects.forEach((object, g) => {
      // An object that no box meets would be every box's that meets none.
      if (bestOf[g] === 0 || (lowQuality === 'reassigned' && bestOf[g]! < low)) return
      for (let i = 0; i < count; ++i) {
        if (takesPart[i] === 0 || overlap(boxes, i, object) !== bestOf[g]) continue
        labels[i] = 1
        if (lowQuality === 'reassigned') matched[i] = g
      }
    })
  return { labels, matched }
}

/** Indices of the boxes that are trained on: `positives` of them stand for objects and come first. */
export interface Sample {
  indices: Int32Array
  positives: number
}

/** Draws `count` boxes without repetition, of which at most the share `fraction` stand for objects; fewer where there are not as many. */
export function sample(random: Random, { labels }: Assignment, count: number, fraction: number): Sample {
  const where = (label: number): number[] => [...labels.keys()].filter((i) => labels[i] === label)
  const some = (of: number[], most: number): number[] => Array.from(random.permutation(of.length).subarray(0, most), (i) => of[i]!)
  const positive = where(1)
  const positives = Math.min(positive.length, Math.floor(count * fraction))
  const chosen = some(positive, positives)
  return { indices: Int32Array.from([...chosen, ...some(where(0), count - positives)]), positives }
}
