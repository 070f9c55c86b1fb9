/** Average precision of detections as the PASCAL VOC challenge defines it, in the forms of the published detection rows. */
import type { Box, BoxItem, BoxSource } from '../data/boxes.js'
import { areaUnder, elevenPoints, precisionCurve } from './averagePrecision.js'
import { descending, type Detection } from './detections.js'

/** How a code base reads VOC's rules. */
export interface VocRules {
  /** Overlaps from which a detection is a hit, and whether one of exactly that is. */
  overlaps: readonly number[]
  inclusive: boolean
  form: '11-point' | 'area'
  /** Decimals of scores and of coordinates in the result files that are evaluated; absent where numbers are taken as they are. */
  decimals?: { score: number; coordinate: number }
  /** What is added to continuous corners of an object and of a detection. Lengths are those of inclusive corners: difference plus 1. */
  truthShift: Box
  detectionShift: Box
}

const tenths = [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95] as const

/** detectron2 evaluates VOC's own corners, and files with rounded numbers; mmdetection counts corners from 0. */
export const vocRules = {
  detectron2: {
    overlaps: tenths,
    inclusive: false,
    form: '11-point',
    decimals: { score: 3, coordinate: 1 },
    truthShift: [1, 1, 0, 0],
    detectionShift: [1, 1, 0, 0],
  },
  mmdet: { overlaps: [0.5], inclusive: true, form: '11-point', truthShift: [0, 0, -1, -1], detectionShift: [0, 0, 0, 0] },
} as const satisfies Record<string, VocRules>

/** Average precision by overlap and class; NaN for a class without an object that counts. */
export interface VocScores {
  overlaps: readonly number[]
  /** [overlap][class] */
  byClass: number[][]
  /** The mean over the classes that have objects, for each overlap. */
  mean: number[]
}

/**
 * The scores of `detections` in the images of `source`. Of the objects of a class in an image a detection belongs to the one that it
 * overlaps most: it is a hit if that has none yet, counts for nothing if it is difficult, and is wrong otherwise. Equal scores keep
 * the order of images and of detections.
 */
export function vocBoxScores(source: Pick<BoxSource, 'items' | 'classes'>, detections: readonly Detection[], rules: VocRules): VocScores {
  const byLabel = source.classes.map(() => [] as Detection[])
  for (const detection of detections) byLabel[detection.label]!.push(detection)
  const aps = byLabel.map((found, label) => classPrecision(source.items, found, label, rules))
  const byClass = rules.overlaps.map((_, i) => aps.map((ap) => ap[i]!))
  return {
    overlaps: rules.overlaps,
    byClass,
    mean: byClass.map((values) => {
      const known = values.filter((value) => !Number.isNaN(value))
      return known.reduce((sum, value) => sum + value, 0) / known.length
    }),
  }
}

function classPrecision(items: readonly BoxItem[], found: readonly Detection[], label: number, rules: VocRules): number[] {
  const { decimals, form, inclusive } = rules
  const objects = items.map(({ objects }) =>
    objects.filter((object) => object.label === label).map(({ box, difficult }) => ({ box: shifted(box, rules.truthShift), difficult })),
  )
  const positives = objects.reduce((sum, own) => sum + own.filter(({ difficult }) => !difficult).length, 0)
  if (positives === 0) return rules.overlaps.map(() => NaN)
  const inOrder = [...found].sort((a, b) => a.image - b.image)
  const scores = inOrder.map(({ score }) => (decimals === undefined ? score : printed(score, decimals.score)))
  const matches = Array.from(descending(scores), (i) => {
    const { image, box } = inOrder[i]!
    const corners = shifted(box, rules.detectionShift)
    const own = decimals === undefined ? corners : (corners.map((value) => printed(value, decimals.coordinate)) as unknown as Box)
    return { image, ...bestMatch(own, objects[image]!) }
  })
  return rules.overlaps.map((overlap) => {
    const taken = new Set<object>()
    const hits: boolean[] = []
    for (const { object, share } of matches) {
      const reached = object !== undefined && (inclusive ? share >= overlap : share > overlap)
      if (reached && object.difficult) continue
      hits.push(reached && !taken.has(object))
      if (reached) taken.add(object)
    }
    const curve = precisionCurve(hits, positives)
    return form === 'area' ? areaUnder(curve) : elevenPoints(curve)
  })
}

/** The first of the objects that `box` overlaps most. */
function bestMatch<T extends { box: Box }>(box: Box, objects: readonly T[]): { object?: T; share: number } {
  let best: { object?: T; share: number } = { share: -Infinity }
  for (const object of objects) {
    const share = inclusiveOverlap(box, object.box)
    if (share > best.share) best = { object, share }
  }
  return best
}

const shifted = (box: Box, by: Box): Box => box.map((value, i) => value + by[i]!) as unknown as Box

/** Intersection over union of boxes whose far corners belong to them. */
function inclusiveOverlap(a: Box, b: Box): number {
  const width = Math.max(Math.min(a[2], b[2]) - Math.max(a[0], b[0]) + 1, 0)
  const height = Math.max(Math.min(a[3], b[3]) - Math.max(a[1], b[1]) + 1, 0)
  const area = (box: Box): number => (box[2] - box[0] + 1) * (box[3] - box[1] + 1)
  return (width * height) / (area(a) + area(b) - width * height)
}

/** The number that is read back from one printed with some decimals, as C prints it: toFixed takes a tie up, C to the even digit. */
export function printed(value: number, decimals: number): number {
  const twice = Math.abs(value) * 2 ** (decimals + 1)
  const text = Math.abs(value).toFixed(decimals)
  // A tie, n / (2 * 10^d) with n odd, is a double only where 5^d divides n.
  const tie = Number.isInteger(twice) && twice % 2 === 1
  const odd = Number(text.at(-1)) % 2 === 1
  const result = tie && odd ? (Math.round(Number(text) * 10 ** decimals) - 1) / 10 ** decimals : Number(text)
  return value < 0 ? -result : result
}
