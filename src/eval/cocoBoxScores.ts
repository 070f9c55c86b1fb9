/** Average precision and recall as the COCO challenge defines them. */
import { boxArea, boxHeight, type BoxObject, type BoxSource, boxWidth } from '../data/boxes.js'
import { descending, type Detection } from './detections.js'

const overlaps = [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.8999999999999999, 0.95] as const
/** 101 recalls; the doubles that i * 0.01 gives, as the reference has them. */
const recalls = Array.from({ length: 101 }, (_, i) => (i === 100 ? 1 : i * 0.01))
/** Both ends belong to a range, in pixels. */
const ranges = { all: [0, 1e10], small: [0, 32 ** 2], medium: [32 ** 2, 96 ** 2], large: [96 ** 2, 1e10] } as const
type Range = keyof typeof ranges
/** Detections of an image and class that count, the best first. */
const limits = [1, 10, 100] as const
/** What keeps a precision's divisor from being 0, as in the reference: a perfect one is a hair below 1. */
const epsilon = 2 ** -52

/** COCO's twelve numbers, from 0 to 1; -1 where nothing could be found. */
export interface CocoScores {
  ap: number
  ap50: number
  ap75: number
  apSmall: number
  apMedium: number
  apLarge: number
  ar1: number
  ar10: number
  ar100: number
  arSmall: number
  arMedium: number
  arLarge: number
  /** The mean over overlaps, of each class. */
  apByClass: number[]
}

/** One of COCO's numbers as a share; NaN for its -1, where nothing could be found. */
export const shareOf = (score: number): number => (score < 0 ? NaN : score)

/** How the overlap of what was found with what is there is measured; boxes, or masks. */
export type Overlap<D> = (found: D, object: BoxObject) => number

/** Intersection over union; over the area of what was found for a crowd. */
export function boxOverlap({ box }: Pick<Detection, 'box'>, { box: other, crowd }: BoxObject): number {
  // The reference keeps corners and lengths: far corners are sums again.
  const far = (corner: number, length: number): number => corner + length
  const width = Math.min(far(box[0], boxWidth(box)), far(other[0], boxWidth(other))) - Math.max(box[0], other[0])
  const height = Math.min(far(box[1], boxHeight(box)), far(other[1], boxHeight(other))) - Math.max(box[1], other[1])
  if (width <= 0 || height <= 0) return 0
  const shared = width * height
  return shared / (crowd ? boxArea(box) : boxArea(box) + boxArea(other) - shared)
}

/** What is found of a class in an image within a range of areas: for each overlap and detection, whether it hit and is ignored. */
interface Matches {
  scores: Float64Array
  hits: Uint8Array[]
  ignored: Uint8Array[]
  positives: number
}

/**
 * The scores of `detections` in the images of `source`, in the order of the images. `area` and `overlap` are those of boxes when
 * absent. Matching is greedy by score: each detection takes the free object that it overlaps most, a later one on a tie, one that
 * counts before one that does not; crowds take any number.
 */
export function cocoBoxScores<D extends Detection>(
  source: Pick<BoxSource, 'items' | 'classes'>,
  detections: readonly D[],
  { area = ({ box }) => boxArea(box), overlap = boxOverlap }: { area?: (found: D) => number; overlap?: Overlap<D> } = {},
): CocoScores {
  const perImage = source.items.map(() => source.classes.map(() => [] as D[]))
  for (const detection of detections) perImage[detection.image]![detection.label]!.push(detection)
  // [range][limit][class]: precisions [overlap][recall] and recalls [overlap]; undefined for a class without objects.
  const results = new Map<Range, (Accumulated | undefined)[][]>()
  const names = Object.keys(ranges) as Range[]
  for (const name of names)
    results.set(
      name,
      limits.map(() => []),
    )
  source.classes.forEach((_, label) => {
    const images = source.items.flatMap(({ objects }, image) => {
      const own = objects.filter((object) => object.label === label)
      const all = perImage[image]![label]!
      const found = Array.from(descending(all.map(({ score }) => score)).subarray(0, limits.at(-1)), (i) => all[i]!)
      if (own.length === 0 && found.length === 0) return []
      return [{ own, found, shares: found.map((each) => Float64Array.from(own, (object) => overlap(each, object))) }]
    })
    for (const name of names) {
      const matches = images.map(({ own, found, shares }) => match(own, found, shares, found.map(area), ranges[name]))
      limits.forEach((limit, l) => results.get(name)![l]!.push(accumulate(matches, limit)))
    }
  })
  const precisionsOf = (range: Range, at?: number): number =>
    meanOf(
      results
        .get(range)!
        .at(-1)!
        .flatMap((each) => (each === undefined ? [] : at === undefined ? each.precision.flatMap((q) => [...q]) : [...each.precision[at]!])),
    )
  const recallOf = (range: Range, limit: number): number =>
    meanOf(results.get(range)![limit]!.flatMap((each) => (each === undefined ? [] : [...each.recall])))
  return {
    ap: precisionsOf('all'),
    ap50: precisionsOf('all', 0),
    ap75: precisionsOf('all', 5),
    apSmall: precisionsOf('small'),
    apMedium: precisionsOf('medium'),
    apLarge: precisionsOf('large'),
    ar1: recallOf('all', 0),
    ar10: recallOf('all', 1),
    ar100: recallOf('all', 2),
    arSmall: recallOf('small', 2),
    arMedium: recallOf('medium', 2),
    arLarge: recallOf('large', 2),
    apByClass: results
      .get('all')!
      .at(-1)!
      .map((each) => (each === undefined ? -1 : meanOf(each.precision.flatMap((q) => [...q])))),
  }
}

const meanOf = (values: readonly number[]): number => (values.length === 0 ? -1 : values.reduce((a, b) => a + b, 0) / values.length)

function match(
  own: readonly BoxObject[],
  found: readonly { score: number }[],
  shares: readonly Float64Array[],
  areas: readonly number[],
  [least, most]: readonly [number, number],
): Matches {
  const outside = (area: number): boolean => area < least || area > most
  const aside = own.map(({ crowd, area }) => crowd || outside(area))
  // Objects that count come first.
  const order = [...own.keys()].sort((a, b) => Number(aside[a]) - Number(aside[b]) || a - b)
  const hits = overlaps.map(() => new Uint8Array(found.length))
  const ignored = overlaps.map(() => new Uint8Array(found.length))
  overlaps.forEach((threshold, t) => {
    const taken = new Uint8Array(own.length)
    found.forEach((_, d) => {
      let best = Math.min(threshold, 1 - 1e-10)
      let chosen = -1
      for (const g of order) {
        if (taken[g] === 1 && !own[g]!.crowd) continue
        if (chosen >= 0 && !aside[chosen] && aside[g]) break
        if (shares[d]![g]! < best) continue
        best = shares[d]![g]!
        chosen = g
      }
      if (chosen >= 0) taken[chosen] = 1
      hits[t]![d] = Number(chosen >= 0)
      ignored[t]![d] = Number(chosen >= 0 ? aside[chosen] : outside(areas[d]!))
    })
  })
  return { scores: Float64Array.from(found, ({ score }) => score), hits, ignored, positives: aside.filter((each) => !each).length }
}

interface Accumulated {
  precision: Float64Array[]
  recall: number[]
}

/** Precision at each recall, and the last recall, of a class over all images; undefined where there is no object. */
function accumulate(matches: readonly Matches[], limit: number): Accumulated | undefined {
  const positives = matches.reduce((sum, each) => sum + each.positives, 0)
  if (positives === 0) return undefined
  const places = matches.flatMap(({ scores }, image) => Array.from(scores.subarray(0, limit), (score, d) => ({ image, d, score })))
  const order = descending(places.map(({ score }) => score))
  const precision: Float64Array[] = []
  const recall: number[] = []
  overlaps.forEach((_, t) => {
    const curve: { recall: number; precision: number }[] = []
    let right = 0
    let wrong = 0
    for (const i of order) {
      const { image, d } = places[i]!
      const { hits, ignored } = matches[image]!
      if (ignored[t]![d] === 0) {
        if (hits[t]![d] === 1) right += 1
        else wrong += 1
      }
      curve.push({ recall: right / positives, precision: right / (wrong + right + epsilon) })
    }
    for (let i = curve.length - 1; i > 0; --i) curve[i - 1]!.precision = Math.max(curve[i - 1]!.precision, curve[i]!.precision)
    let at = 0
    precision.push(
      Float64Array.from(recalls, (wanted) => {
        while (at < curve.length && curve[at]!.recall < wanted) at += 1
        return curve[at]?.precision ?? 0
      }),
    )
    recall.push(curve.at(-1)?.recall ?? 0)
  })
  return { precision, recall }
}
