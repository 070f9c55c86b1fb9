/** What a detector is taught with: for the anchors and for the regions of a batch which are sampled, as what, and moved where to. */
import type { Box } from '../data/boxes.js'
import type { Random } from '../tensor/random.js'
import { assign, sample } from './assign.js'
import { type DeltaWeights, encodeBox } from './coding.js'
import type { DetectionStyle } from './styles.js'

/** An image of a batch as it enters the network: its size, without padding, and its objects. */
export interface TrainingImage {
  height: number
  width: number
  objects: readonly { box: Box; label: number }[]
}

/** Anchors and, unless told, regions that are sampled of an image, the share of them that stands for objects at most, weights of deltas. */
export const sampling = {
  anchors: { count: 256, fraction: 0.5, weights: [1, 1, 1, 1] },
  regions: { count: 512, fraction: 0.25, weights: [10, 10, 5, 5], assign: { low: 0.5, high: 0.5, lowQuality: 'none' } },
} as const

/** Sampled anchors of an image; `objects` are the indices of what the first `positives` of them stand for. */
export interface AnchorSample {
  indices: Int32Array
  positives: number
  objects: Int32Array
}

/** Draws the anchors of an image that are trained on. */
export function sampleAnchors(random: Random, anchors: Float64Array, image: TrainingImage, style: DetectionStyle): AnchorSample {
  const inside = (i: number): boolean =>
    anchors[4 * i]! >= 0 && anchors[4 * i + 1]! >= 0 && anchors[4 * i + 2]! < image.width && anchors[4 * i + 3]! < image.height
  const assigned = assign(
    anchors,
    image.objects.map(({ box }) => box),
    style.anchors,
    style.insideOnly ? inside : undefined,
  )
  const { count, fraction } = sampling.anchors
  const { indices, positives } = sample(random, assigned, count, fraction)
  return { indices, positives, objects: indices.subarray(0, positives).map((i) => assigned.matched[i]!) }
}

/** Sampled regions of an image: boxes [n, 4], the class of each (`classes` for the background), the box that each shall become. */
export interface RegionSample {
  boxes: Float64Array
  labels: Int32Array
  /** Undefined for the background. */
  targets: (Box | undefined)[]
}

/** Draws the regions of an image that are trained on, at most `count`, among its proposals [n, 4] and its objects. */
export function sampleRegions(
  random: Random,
  proposals: Float64Array,
  { objects }: TrainingImage,
  classes: number,
  count: number = sampling.regions.count,
): RegionSample {
  const own = objects.flatMap(({ box }) => [...box])
  const candidates = Float64Array.from([...proposals, ...own])
  const assigned = assign(
    candidates,
    objects.map(({ box }) => box),
    sampling.regions.assign,
  )
  const { indices, positives } = sample(random, assigned, count, sampling.regions.fraction)
  const matched = indices.map((i) => assigned.matched[i]!)
  return {
    boxes: Float64Array.from([...indices].flatMap((i) => [...candidates.subarray(4 * i, 4 * i + 4)])),
    labels: indices.map((_, k) => (k < positives ? objects[matched[k]!]!.label : classes)),
    targets: Array.from(matched, (object, k) => (k < positives ? objects[object]!.box : undefined)),
  }
}

/** Box `at` of boxes [N, 4]. */
export const boxAt = (boxes: Float64Array, at: number): Box => [boxes[4 * at]!, boxes[4 * at + 1]!, boxes[4 * at + 2]!, boxes[4 * at + 3]!]

/** Targets of all rows of a batch, dense: rows that are not sampled weigh nothing. */
export interface DenseTargets {
  /** 1 for an object, 0 else, [rows]. */
  object: Float64Array
  /** 1 for a sampled row, 0 else, [rows]. */
  sampled: Float64Array
  /** [rows, columns], and 1 where they are taught. */
  deltas: Float64Array
  taught: Float64Array
}

/** The targets of the anchors of a batch, `samples` of each image. */
export function anchorTargets(anchors: Float64Array, images: readonly TrainingImage[], samples: readonly AnchorSample[]): DenseTargets {
  const count = anchors.length / 4
  const rows = count * images.length
  const targets = {
    object: new Float64Array(rows),
    sampled: new Float64Array(rows),
    deltas: new Float64Array(4 * rows),
    taught: new Float64Array(4 * rows),
  }
  samples.forEach(({ indices, positives, objects }, image) => {
    indices.forEach((at, k) => {
      const row = image * count + at
      targets.sampled[row] = 1
      if (k >= positives) return
      targets.object[row] = 1
      const { box } = images[image]!.objects[objects[k]!]!
      targets.deltas.set(encodeBox(boxAt(anchors, at), box, sampling.anchors.weights), 4 * row)
      targets.taught.fill(1, 4 * row, 4 * row + 4)
    })
  })
  return targets
}

/** The deltas [R, 4 * classes] of sampled regions, and 1 where they are taught: in the columns of a region's class. */
export function regionTargets(
  samples: readonly RegionSample[],
  classes: number,
  weights: DeltaWeights = sampling.regions.weights,
): Pick<DenseTargets, 'deltas' | 'taught'> {
  const rows = samples.reduce((sum, { labels }) => sum + labels.length, 0)
  const [deltas, taught] = [new Float64Array(rows * 4 * classes), new Float64Array(rows * 4 * classes)]
  let row = 0
  for (const { boxes, labels, targets } of samples) {
    targets.forEach((target, k) => {
      if (target !== undefined) {
        const at = 4 * (row * classes + labels[k]!)
        deltas.set(encodeBox(boxAt(boxes, k), target, weights), at)
        taught.fill(1, at, at + 4)
      }
      row += 1
    })
  }
  return { deltas, taught }
}
