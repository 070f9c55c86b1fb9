/** Polygons around objects, and the pixels within them. */
import { type RunLengths, runsBetween } from './runLengths.js'

/** Corners x0, y0, x1, y1, ... in continuous pixels; the last is joined to the first. */
export type Polygon = readonly number[]

/** Where a polygon is drawn: (x - left) * across, (y - top) * down. */
export interface Placement {
  left: number
  top: number
  across: number
  down: number
}
const inPlace: Placement = { left: 0, top: 0, across: 1, down: 1 }

/** The mask of height x width pixels of a polygon; as COCO's, bit for bit. */
export function polygonMask(polygon: Polygon, height: number, width: number): RunLengths {
  const places: number[] = []
  forEachCrossing(polygon, inPlace, height, width, (x, y) => void places.push(x * height + y))
  return runsBetween(Uint32Array.from(places).sort(), height, width)
}

/** Adds the pixels of a placed polygon to `pixels` [side, side], row-major: 1 where it is. */
export function addPolygon(pixels: Float32Array, polygon: Polygon, placement: Placement, side: number): void {
  const changes = new Uint8Array(side * side + 1)
  forEachCrossing(polygon, placement, side, side, (x, y) => {
    changes[x * side + y]! ^= 1
  })
  let inside = 0
  for (let x = 0; x < side; ++x)
    for (let y = 0; y < side; ++y) {
      inside ^= changes[x * side + y]!
      if (inside === 1) pixels[y * side + x] = 1
    }
}

type Visit = (x: number, y: number) => void

/**
 * Calls `visit` where the boundary crosses the centre line of a column x of pixels: above the pixel y, from 0 to height. A pixel is
 * within where an odd number of crossings is before it, column by column.
 *
 * COCO's rule draws the boundary on a grid of a fifth of a pixel, by lines of one point a column, or a row where they are steep, and
 * takes the points where it passes the middle of a pixel. Here these are computed alone: a polygon may reach far beyond its image.
 */
function forEachCrossing(polygon: Polygon, { left, top, across, down }: Placement, height: number, width: number, visit: Visit): void {
  const corners = Math.floor(polygon.length / 2)
  const gridX = (i: number): number => Math.trunc(grid * ((polygon[2 * i]! - left) * across) + 0.5)
  const gridY = (i: number): number => Math.trunc(grid * ((polygon[2 * i + 1]! - top) * down) + 0.5)
  const atRow = (x: number, v: number): void => visit(x, Math.ceil(Math.min(height, Math.max(0, (v + 0.5) / grid - 0.5))))
  let [x, y] = [gridX(corners - 1), gridY(corners - 1)]
  for (let i = 0; i < corners; ++i) {
    const [nextX, nextY] = [gridX(i), gridY(i)]
    if (Math.abs(nextX - x) >= Math.abs(nextY - y)) {
      if (x <= nextX) crossFlat(x, y, nextX, nextY, width, atRow)
      else crossFlat(nextX, nextY, x, y, width, atRow)
    } else if (y <= nextY) crossSteep(x, y, nextX, nextY, width, atRow)
    else crossSteep(nextX, nextY, x, y, width, atRow)
    ;[x, y] = [nextX, nextY]
  }
}

/** Parts of a pixel. */
const grid = 5
/** Points of the grid to the left and to the right of the centre line of column x: those between which it is crossed. */
const leftOf = (x: number): number => grid * x + 2
const rightOf = (x: number): number => grid * x + 3
/** The first column whose centre line is to the right of the point `u`. */
const firstColumn = (u: number): number => Math.max(0, Math.ceil((u - 2) / grid))

/** The crossings of a line from (u0, v0) to the right, with one point for each u. */
function crossFlat(u0: number, v0: number, u1: number, v1: number, width: number, atRow: Visit): void {
  const slope = (v1 - v0) / (u1 - u0)
  for (let x = firstColumn(u0); x < width && rightOf(x) <= u1; ++x) {
    const t = leftOf(x) - u0
    atRow(x, Math.min(Math.trunc(v0 + slope * t + 0.5), Math.trunc(v0 + slope * (t + 1) + 0.5)))
  }
}

/** The crossings of a line from (u0, v0) downwards, with one point for each v. */
function crossSteep(u0: number, v0: number, u1: number, v1: number, width: number, atRow: Visit): void {
  const steps = v1 - v0
  const slope = (u1 - u0) / steps
  const uAt = (t: number): number => Math.trunc(u0 + slope * t + 0.5)
  const [first, last] = [Math.min(uAt(0), uAt(steps)), Math.max(uAt(0), uAt(steps))]
  for (let x = firstColumn(first); x < width && rightOf(x) <= last; ++x) {
    const passed = (t: number): boolean => (slope > 0 ? uAt(t) >= rightOf(x) : uAt(t) <= leftOf(x))
    // About there; the first point behind the line by the same rounding as the points have.
    let t = Math.min(steps, Math.max(1, Math.ceil((leftOf(x) + 0.5 - u0) / slope)))
    while (!passed(t)) t += 1
    while (passed(t - 1)) t -= 1
    atRow(x, v0 + t - 1)
  }
}
