import type { TypedArray } from '../tensor/tensor.js'

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
