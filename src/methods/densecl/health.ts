import type { TypedArray } from '../../tensor/tensor.js'

/** The loss of guessing: ln(K + 1). */
export const chanceLoss = (queueLength: number): number => Math.log(queueLength + 1)

/**
 * From the matched positions [N, P]: the share of query positions matched to the key position of the same index (near 1 on augmented
 * crops, matching follows position instead of content), and the distinct key positions that were matched, over all positions.
 */
export function matchHealth(values: TypedArray, positions: number): { samePosition: number; distinctMatches: number } {
  const images = values.length / positions
  let same = 0
  let distinct = 0
  for (let n = 0; n < images; ++n) {
    const row = values.subarray(n * positions, (n + 1) * positions)
    distinct += new Set(row).size
    row.forEach((match, i) => (same += Number(match === i)))
  }
  return { samePosition: same / values.length, distinctMatches: distinct / values.length }
}
