import type { TypedArray } from '../../tensor/tensor.js'

/** The loss of guessing: ln(K + 1). */
export const chanceLoss = (queueLength: number): number => Math.log(queueLength + 1)

/**
 * From the matched positions [N, P], of which -1 is none: the share of the matches that are the key position of the same index (near 1
 * on augmented crops, matching follows position instead of content), and the distinct key positions that were matched, over all positions.
 */
export function matchHealth(values: TypedArray, positions: number): { samePosition: number; distinctMatches: number } {
  const images = values.length / positions
  let [same, matched, distinct] = [0, 0, 0]
  for (let n = 0; n < images; ++n) {
    const row = values.subarray(n * positions, (n + 1) * positions)
    distinct += new Set(row.filter((match) => match >= 0)).size
    row.forEach((match, i) => {
      matched += Number(match >= 0)
      same += Number(match === i)
    })
  }
  return { samePosition: same / matched, distinctMatches: distinct / values.length }
}

/**
 * Matches [N, P] beside the partners that the known crops give them (partnersByCrops), over the positions that both views show:
 * `rightMatches` is the share that is right, `sameExpected` the share whose right partner is the position of the same index, which
 * samePosition is to be held against, and `shown` the share of positions that these are. NaN where the views share nothing.
 */
export function geometryHealth(
  matches: TypedArray,
  partners: Int32Array,
  positions: number,
): { rightMatches: number; sameExpected: number; shown: number } {
  let [shown, right, same] = [0, 0, 0]
  partners.forEach((partner, at) => {
    if (partner < 0) return
    shown += 1
    right += Number(matches[at] === partner)
    same += Number(partner === at % positions)
  })
  return { rightMatches: right / shown, sameExpected: same / shown, shown: shown / partners.length }
}

/** The squared length of a row. */
const squared = (values: TypedArray, row: number, columns: number): number => {
  let sum = 0
  for (let i = row * columns; i < (row + 1) * columns; ++i) sum += values[i]! ** 2
  return sum
}

/**
 * The share of the variance of unit vectors [rows, groups, D] that their group explains, from the means of the groups [groups, D]: the
 * variance between groups over all of it. With positions as groups, 1 means that an embedding says where it lies and nothing else.
 */
export function explainedVariance(means: TypedArray, columns: number): number {
  const groups = means.length / columns
  const overall = new Float64Array(columns)
  let between = 0
  for (let g = 0; g < groups; ++g) {
    between += squared(means, g, columns) / groups
    for (let c = 0; c < columns; ++c) overall[c]! += means[g * columns + c]! / groups
  }
  const centre = squared(overall, 0, columns)
  return (between - centre) / (1 - centre)
}
