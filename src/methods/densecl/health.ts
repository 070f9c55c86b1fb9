import type { TypedArray } from '../../tensor/tensor.js'

/** Of one of the two losses, means over its rows. */
export interface LossStatistics {
  /** Cosine similarity to the positive and to the queue. */
  positive: number
  negative: number
  /** Share of rows whose positive beats every negative. */
  accuracy: number
  /** Of the logits of the queue and the positive; ln(K + 1) + similarity / T when all are alike. */
  logSumExp: number
}

export interface Health {
  global: LossStatistics
  dense: LossStatistics
  /** embeddingSpread of the global query embeddings */
  spread: number
  /** Share of query positions matched to the key position of the same index: near 1 on augmented crops, matching follows
   *  position instead of content. */
  samePosition: number
  /** Distinct key positions that were matched, over all positions. */
  distinct: number
}

/** The loss of guessing: ln(K + 1). */
export const chanceLoss = (queueLength: number): number => Math.log(queueLength + 1)

/**
 * Mean over dimensions of the standard deviation over a batch of unit vectors, the rows of [N, dim], times sqrt(D): about 1 when they
 * spread over the sphere, 0 when they have collapsed to a point.
 */
export function embeddingSpread(values: TypedArray, d: number): number {
  const n = values.length / d
  let sum = 0
  for (let c = 0; c < d; ++c) {
    let mean = 0
    for (let i = 0; i < n; ++i) mean += values[i * d + c]! / n
    let variance = 0
    for (let i = 0; i < n; ++i) variance += (values[i * d + c]! - mean) ** 2 / n
    sum += Math.sqrt(variance)
  }
  return (sum / d) * Math.sqrt(d)
}

/** From the matched positions [N, P]. */
export function matchHealth(values: TypedArray, positions: number): { samePosition: number; distinct: number } {
  const images = values.length / positions
  let same = 0
  let distinct = 0
  for (let n = 0; n < images; ++n) {
    const row = values.subarray(n * positions, (n + 1) * positions)
    distinct += new Set(row).size
    row.forEach((match, i) => (same += Number(match === i)))
  }
  return { samePosition: same / values.length, distinct: distinct / values.length }
}
