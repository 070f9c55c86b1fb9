/** What a detector found, as metrics and files take it. */
import type { Box } from '../data/boxes.js'

/** An object that a detector found in an image. */
export interface Detection {
  /** Index of the image in its source. */
  image: number
  /** Index of the class. */
  label: number
  /** In continuous pixels of the original image. */
  box: Box
  /** From 0 to 1. */
  score: number
}

/** Indices of `values` by descending value; equal ones stay in order. */
export function descending(values: ArrayLike<number>): Int32Array {
  return Int32Array.from({ length: values.length }, (_, i) => i).sort((a, b) => values[b]! - values[a]! || a - b)
}
