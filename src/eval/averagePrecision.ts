/** Average precision of a ranking, in the three forms that the benchmarks use. */
import { fail } from '../tensor/errors.js'
import { largest } from '../tensor/numbers.js'

/**
 * - `area`: area under precision made monotone (VOC from 2010 on, and VOC07 SVM)
 * - `11-point`: mean of the best precision at recall 0, 0.1 .. 1 (VOC07 detection)
 * - `step`: sum of precision times the gain of recall, equal scores counted as one (scikit-learn's average_precision_score)
 */
export type PrecisionForm = 'area' | '11-point' | 'step'

/** Recall and precision after each rank of a list of hits (true) and misses, in descending order of score. */
export function precisionCurve(hits: ArrayLike<number | boolean>, positives: number): { recall: Float64Array; precision: Float64Array } {
  const recall = new Float64Array(hits.length)
  const precision = new Float64Array(hits.length)
  let found = 0
  for (let i = 0; i < hits.length; ++i) {
    found += Number(hits[i])
    recall[i] = found / positives
    precision[i] = found / (i + 1)
  }
  return { recall, precision }
}

/** The area below a curve whose precision is made monotone from the right. */
export function areaUnder({ recall, precision }: { recall: Float64Array; precision: Float64Array }): number {
  let area = 0
  let best = 0
  for (let i = recall.length - 1; i >= 0; --i) {
    best = Math.max(best, precision[i]!)
    area += (recall[i]! - (recall[i - 1] ?? 0)) * best
  }
  return area
}

/** The mean at eleven recalls, 0.3 of which is a hair above 3/10 as in the reference implementations: there 3 of 10 do not reach it. */
export function elevenPoints({ recall, precision }: { recall: Float64Array; precision: Float64Array }): number {
  let sum = 0
  for (let point = 0; point <= 10; ++point) {
    // Recall does not fall.
    const reached = recall.findIndex((value) => value >= point * 0.1)
    if (reached >= 0) sum += largest(precision.subarray(reached))
  }
  return sum / 11
}

/**
 * Average precision of `scores` [N] where `positive` [N] is not 0; equal scores keep the order of the list. NaN without a positive:
 * there is nothing to find, and a 0 would look like a failure. Throws NAN for a score that is no number.
 */
export function averagePrecision(scores: ArrayLike<number>, positive: ArrayLike<number>, form: PrecisionForm = 'area'): number {
  const order = ranking(scores)
  const hits = Uint8Array.from(order, (i) => Number(positive[i]! !== 0))
  const positives = hits.reduce((sum, hit) => sum + hit, 0)
  if (positives === 0) return NaN
  const curve = precisionCurve(hits, positives)
  if (form === 'area') return areaUnder(curve)
  if (form === '11-point') return elevenPoints(curve)
  let sum = 0
  let recall = 0
  for (let i = 0; i < order.length; ++i) {
    if (scores[order[i]!] === scores[order[i + 1]!]) continue
    sum += (curve.recall[i]! - recall) * curve.precision[i]!
    recall = curve.recall[i]!
  }
  return sum
}

/** Indices by descending score. */
function ranking(scores: ArrayLike<number>): Int32Array {
  for (let i = 0; i < scores.length; ++i) if (Number.isNaN(scores[i]!)) fail('NAN', `average precision: score ${i} is not a number`)
  return Int32Array.from({ length: scores.length }, (_, i) => i).sort((a, b) => scores[b]! - scores[a]! || a - b)
}
