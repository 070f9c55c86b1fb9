/** What a detector is taught with: for the anchors and for the regions of a batch which are sampled, as what, and moved where to. */
import type { Box } from '../data/boxes.js'
import type { InstanceMask } from '../data/instanceMasks.js'
import type { Random } from '../tensor/random.js'
import { assign, type Assignment, type AssignRules, sample } from './assign.js'
import { type DeltaWeights, encodeBox } from './coding.js'
import type { DetectionStyle } from './styles.js'

/** An image of a batch as it enters the network: its size, without padding, and its objects, with masks where the data set has them. */
export interface TrainingImage {
  height: number
  width: number
  objects: readonly { box: Box; label: number; mask?: InstanceMask }[]
}

/** Anchors and, unless told, regions that are sampled of an image, the share of them that stands for objects at most, weights of deltas. */
export const sampling = {
  anchors: { count: 256, fraction: 0.5, weights: [1, 1, 1, 1] },
  regions: { count: 512, fraction: 0.25, weights: [10, 10, 5, 5] },
} as const

/** Sampled anchors of an image; `objects` are the indices of what the first `positives` of them stand for. */
export interface AnchorSample {
  indices: Int32Array
  positives: number
  objects: Int32Array
}

/** Which anchors take part: undefined for all. */
function takesPart(
  anchors: Float64Array,
  { height, width }: TrainingImage,
  { anchorsWithin, padTo }: DetectionStyle,
): ((i: number) => boolean) | undefined {
  switch (anchorsWithin) {
    case 'batch':
      return undefined
    case 'image':
      return (i) => anchors[4 * i]! >= 0 && anchors[4 * i + 1]! >= 0 && anchors[4 * i + 2]! < width && anchors[4 * i + 3]! < height
    case 'padding': {
      // An anchor's middle is its cell's corner, a whole pixel up to rounding, and the cell is there where that corner is.
      const [right, below] = [width, height].map((side) => Math.ceil(side / padTo) * padTo - 0.5) as [number, number]
      return (i) => (anchors[4 * i]! + anchors[4 * i + 2]!) / 2 < right && (anchors[4 * i + 1]! + anchors[4 * i + 3]!) / 2 < below
    }
  }
}

/** Draws the anchors of an image that are trained on. */
export function sampleAnchors(random: Random, anchors: Float64Array, image: TrainingImage, style: DetectionStyle): AnchorSample {
  const assigned = assign(
    anchors,
    image.objects.map(({ box }) => box),
    style.anchors,
    takesPart(anchors, image, style),
  )
  const { count, fraction } = sampling.anchors
  const { indices, positives } = sample(random, assigned, count, fraction)
  return { indices, positives, objects: indices.subarray(0, positives).map((i) => assigned.matched[i]!) }
}

/** Sampled regions of an image: boxes [n, 4] and the class of each, `classes` for the background, which comes last. */
export interface RegionSample {
  boxes: Float64Array
  labels: Int32Array
  /** Indices of the objects that the first regions stand for: those of no object have none. */
  objects: Int32Array
}

/** Assigns the proposals and, behind them, the objects themselves, each of which may stand for one. */
function assignRegions(candidates: Float64Array, boxes: readonly Box[], rules: AssignRules): Assignment {
  if (rules.lowQuality !== 'reassigned') return assign(candidates, boxes, rules)
  // mmdetection assigns proposals alone: an object that overlapped itself most would leave none to be reassigned to it.
  const proposed = assign(candidates.subarray(0, candidates.length - 4 * boxes.length), boxes, rules)
  return {
    labels: Int8Array.from([...proposed.labels, ...boxes.map(() => 1)]),
    matched: Int32Array.from([...proposed.matched, ...boxes.keys()]),
  }
}

/** Draws the regions of an image that are trained on, at most `count`, among its proposals [n, 4] and its objects. */
export function sampleRegions(
  random: Random,
  proposals: Float64Array,
  { objects }: TrainingImage,
  classes: number,
  { regions: rules }: Pick<DetectionStyle, 'regions'>,
  count: number = sampling.regions.count,
): RegionSample {
  const boxes = objects.map(({ box }) => box)
  const candidates = Float64Array.from([...proposals, ...boxes.flat()])
  const assigned = assignRegions(candidates, boxes, rules)
  const { indices, positives } = sample(random, assigned, count, sampling.regions.fraction)
  const matched = indices.subarray(0, positives).map((i) => assigned.matched[i]!)
  return {
    boxes: Float64Array.from([...indices].flatMap((i) => [...candidates.subarray(4 * i, 4 * i + 4)])),
    labels: indices.map((_, k) => (k < positives ? objects[matched[k]!]!.label : classes)),
    objects: matched,
  }
}

/** Box `at` of boxes [N, 4]. */
export const boxAt = (boxes: Float64Array, at: number): Box => [boxes[4 * at]!, boxes[4 * at + 1]!, boxes[4 * at + 2]!, boxes[4 * at + 3]!]

/** Where rows of a batch are moved to. */
export interface BoxTargets {
  /** Indices of the rows that stand for objects [P]. */
  index: Int32Array
  /** Their deltas [P, 4]. */
  deltas: Float64Array
  /** What the loss of each weighs [P]. */
  weight: Float64Array
}

/** Targets of sampled anchors, whose rows are those of all images one after the other. */
export interface AnchorTargets {
  /** Sampled rows [S], and for each 1 for an object, 0 else. */
  index: Int32Array
  object: Float64Array
  /** What the loss of each weighs [S]. */
  weight: Float64Array
  boxes: BoxTargets
}

/** The sum of what `count` says of an image over the group of each: images that one device had in published runs. */
export function sumsOfGroups(images: number, groupOf: number, count: (image: number) => number): Float64Array {
  const sums = new Float64Array(Math.ceil(images / groupOf))
  for (let image = 0; image < images; ++image) sums[Math.floor(image / groupOf)]! += count(image)
  return Float64Array.from({ length: images }, (_, image) => sums[Math.floor(image / groupOf)]!)
}

/** What the loss of a row weighs in each image: one over the wanted number of rows, or over the number that its group has. */
function anchorWeights(samples: readonly AnchorSample[], wanted: number, { anchorDivisor, groupOf }: DetectionStyle): Float64Array {
  const images = samples.length
  if (anchorDivisor === 'constant') return new Float64Array(images).fill(1 / (wanted * images))
  const groups = Math.ceil(images / groupOf)
  return sumsOfGroups(images, groupOf, (image) => {
    const { indices, positives } = samples[image]!
    return Math.max(positives, 1) + Math.max(indices.length - positives, 1)
  }).map((drawn) => 1 / (groups * drawn))
}

/** The targets of the anchors of a batch, `samples` of each image, of which `wanted` anchors were asked for. */
export function anchorTargets(
  anchors: Float64Array,
  images: readonly TrainingImage[],
  samples: readonly AnchorSample[],
  wanted: number,
  style: DetectionStyle,
): AnchorTargets {
  const count = anchors.length / 4
  const weights = anchorWeights(samples, wanted, style)
  const some = (of: (sample: AnchorSample) => Int32Array): { row: number; at: number; image: number; k: number }[] =>
    samples.flatMap((each, image) => Array.from(of(each), (at, k) => ({ row: image * count + at, at, image, k })))
  const sampled = some(({ indices }) => indices)
  const positive = some(({ indices, positives }) => indices.subarray(0, positives))
  const deltas = positive.flatMap(({ at, image, k }) => {
    const { box } = images[image]!.objects[samples[image]!.objects[k]!]!
    return encodeBox(boxAt(anchors, at), box, sampling.anchors.weights)
  })
  return {
    index: Int32Array.from(sampled, ({ row }) => row),
    object: Float64Array.from(sampled, ({ image, k }) => Number(k < samples[image]!.positives)),
    weight: Float64Array.from(sampled, ({ image }) => weights[image]!),
    boxes: {
      index: Int32Array.from(positive, ({ row }) => row),
      deltas: Float64Array.from(deltas),
      weight: Float64Array.from(positive, ({ image }) => weights[image]!),
    },
  }
}

/** The targets of sampled regions of a batch, whose rows are those of each class of each region. All regions count, also the background. */
export function regionTargets(
  images: readonly TrainingImage[],
  samples: readonly RegionSample[],
  classes: number,
  weights: DeltaWeights = sampling.regions.weights,
): BoxTargets {
  const rows = samples.reduce((sum, { labels }) => sum + labels.length, 0)
  let first = 0
  const fitted = samples.flatMap(({ boxes, labels, objects }, image) => {
    const before = first
    first += labels.length
    return Array.from(objects, (object, k) => ({
      row: (before + k) * classes + labels[k]!,
      deltas: encodeBox(boxAt(boxes, k), images[image]!.objects[object]!.box, weights),
    }))
  })
  return {
    index: Int32Array.from(fitted, ({ row }) => row),
    deltas: Float64Array.from(fitted.flatMap((each) => each.deltas)),
    weight: new Float64Array(fitted.length).fill(1 / rows),
  }
}
