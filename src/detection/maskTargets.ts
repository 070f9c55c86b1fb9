/** What a mask head is taught: for each region the part of its object's mask that lies in it. */
import { type Box, boxHeight, boxWidth } from '../data/boxes.js'
import type { InstanceMask } from '../data/instanceMasks.js'
import { addPolygon } from '../data/polygons.js'
import { forEachColumnRun, type RunLengths } from '../data/runLengths.js'
import { boxAt } from './targets.js'

/**
 * The masks of regions [R, 4], f32 [R, side, side] of 0 and 1, where region r belongs to an object of the mask `masks[r]`; all in pixels
 * of the image that enters the network. Polygons are drawn anew in the pixels of a region, runs are averaged over them (detectron2's two
 * rules; mmdetection has the second one).
 */
export function maskTargets(regions: Float64Array, masks: readonly InstanceMask[], side: number): Float32Array {
  const targets = new Float32Array(masks.length * side * side)
  masks.forEach((mask, r) => {
    const target = targets.subarray(r * side * side, (r + 1) * side * side)
    const box = boxAt(regions, r)
    if ('polygons' in mask) drawPolygons(target, mask.polygons, box, side)
    else averageRuns(target, mask, box, side)
  })
  return targets
}

function drawPolygons(target: Float32Array, polygons: readonly (readonly number[])[], box: Box, side: number): void {
  const across = side / Math.max(boxWidth(box), 0.1)
  const down = side / Math.max(boxHeight(box), 0.1)
  for (const polygon of polygons) addPolygon(target, polygon, { left: box[0], top: box[1], across, down }, side)
}

/** Sums of halves round to either side of one half. */
const half = 0.5 - 1e-9

/** Region alignment (src/ops/roiAlign.ts) of the mask as a map of 0 and 1, at least one half: a mean over rows of means over columns. */
function averageRuns(target: Float32Array, mask: RunLengths, [x1, y1, x2, y2]: Box, side: number): void {
  const rows = axisWeights(y1, y2, mask.height, side)
  const columns = axisWeights(x1, x2, mask.width, side)
  if (rows === undefined || columns === undefined) return
  const sums = new Float64Array(side * side)
  const height = rows.last - rows.first
  // Sums over the rows before each, so that a run is a difference.
  const before = new Float64Array(side * (height + 1))
  for (let i = 0; i < side; ++i)
    for (let y = 0; y < height; ++y) before[i * (height + 1) + y + 1] = before[i * (height + 1) + y]! + rows.weights[i * height + y]!
  const width = columns.last - columns.first
  forEachColumnRun(mask, (x, from, until) => {
    if (x < columns.first || x >= columns.last) return
    const [top, bottom] = [Math.max(from - rows.first, 0), Math.min(until - rows.first, height)]
    if (top >= bottom) return
    for (let j = 0; j < side; ++j) {
      const weight = columns.weights[j * width + x - columns.first]!
      if (weight === 0) continue
      for (let i = 0; i < side; ++i) sums[i * side + j]! += weight * (before[i * (height + 1) + bottom]! - before[i * (height + 1) + top]!)
    }
  })
  sums.forEach((sum, i) => {
    if (sum >= half) target[i] = 1
  })
}

/** The weights [side, last - first] of the pixels `first` to `last` of `count` in the means over parts of a span; undefined without one. */
function axisWeights(
  from: number,
  until: number,
  count: number,
  side: number,
): { first: number; last: number; weights: Float64Array } | undefined {
  const step = (until - from) / side
  const samples = Math.ceil(step)
  if (!(samples > 0)) return undefined
  const inside = (pixel: number): number => Math.min(count - 1, Math.max(0, pixel))
  const first = inside(Math.floor(from - 0.5))
  const last = inside(Math.ceil(until)) + 1
  const weights = new Float64Array(side * (last - first))
  for (let i = 0; i < side; ++i)
    for (let s = 0; s < samples; ++s) {
      const at = from - 0.5 + i * step + ((s + 0.5) * step) / samples
      if (at < -1 || at > count) continue
      const low = Math.min(count - 1, Math.floor(Math.max(at, 0)))
      const share = low === count - 1 ? 0 : Math.max(at, 0) - low
      weights[i * (last - first) + low - first]! += (1 - share) / samples
      if (share > 0) weights[i * (last - first) + low + 1 - first]! += share / samples
    }
  return { first, last, weights }
}
