/** Non-maximum suppression. */
import { type Box, boxArea } from '../data/boxes.js'

/**
 * Indices of the boxes, given the best first, that no better kept one overlaps by more than `overlap`; `most` of them at most. Two
 * boxes without area do not suppress each other.
 */
export function suppressed(boxes: readonly Box[], overlap: number, most = Infinity): number[] {
  const kept: number[] = []
  const areas = boxes.map(boxArea)
  for (let i = 0; i < boxes.length && kept.length < most; ++i) {
    const [x1, y1, x2, y2] = boxes[i]!
    const covered = kept.some((k) => {
      const other = boxes[k]!
      const width = Math.min(x2, other[2]) - Math.max(x1, other[0])
      const height = Math.min(y2, other[3]) - Math.max(y1, other[1])
      if (width <= 0 || height <= 0) return false
      return (width * height) / (areas[i]! + areas[k]! - width * height) > overlap
    })
    if (!covered) kept.push(i)
  }
  return kept
}
