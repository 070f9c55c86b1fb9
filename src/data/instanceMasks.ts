/** Masks of the objects of an image, as a data set has them and in a view of it. */
import type { BoxView } from './boxView.js'
import { type Polygon, polygonMask } from './polygons.js'
import { forEachColumnRun, type RunLengths, runsBetween, uniteMasks } from './runLengths.js'

/** The pixels of an object: within any of some polygons, or by runs. */
export type InstanceMask = { polygons: readonly [Polygon, ...Polygon[]] } | RunLengths

/** A mask in pixels of an image of this size, which is that of runs. */
export function maskRuns(mask: InstanceMask, { height, width }: { height: number; width: number }): RunLengths {
  if (!('polygons' in mask)) return mask
  const [first, ...others] = mask.polygons
  return uniteMasks([polygonMask(first, height, width), ...others.map((polygon) => polygonMask(polygon, height, width))])
}

/**
 * Which form masks have in a view: detectron2 moves the corners of polygons, and takes for each pixel of a view the nearest one of runs;
 * mmdetection draws polygons in the original image and takes the nearest pixels, rounded down.
 */
export type MaskForm = 'polygons' | 'bitmaps'

/** A mask of the original image in a view of it. */
export function maskInView(mask: InstanceMask, original: { width: number; height: number }, view: BoxView, form: MaskForm): InstanceMask {
  if (!('polygons' in mask) || form === 'bitmaps') return resizeRuns(maskRuns(mask, original), view, form)
  const [across, down] = [view.width / original.width, view.height / original.height]
  const placed = (polygon: Polygon): Polygon =>
    polygon.map((value, i) => (i % 2 === 1 ? value * down : view.flip ? view.width - value * across : value * across))
  const [first, ...others] = mask.polygons
  return { polygons: [placed(first), ...others.map(placed)] }
}

function resizeRuns(mask: RunLengths, { height, width, flip }: BoxView, form: MaskForm): RunLengths {
  const [columns, rows] = [nearest(mask.width, width, form), nearest(mask.height, height, form)]
  // The first row of the view that is at or below one of the mask.
  const rowAt = new Uint32Array(mask.height + 1).fill(height)
  for (let y = height - 1; y >= 0; --y) rowAt.fill(y, y === 0 ? 0 : rows[y - 1]! + 1, rows[y]! + 1)
  const changes = Array.from({ length: mask.width }, () => [] as number[])
  forEachColumnRun(mask, (x, from, until) => void changes[x]!.push(rowAt[from]!, rowAt[until]!))
  const places: number[] = []
  for (let x = 0; x < width; ++x) for (const y of changes[columns[flip ? width - 1 - x : x]!]!) places.push(x * height + y)
  return runsBetween(Uint32Array.from(places), height, width)
}

/** For each of `to` pixels the one of `from` that it shows: by the centres as Pillow, by the left edges as OpenCV. */
function nearest(from: number, to: number, form: MaskForm): Uint32Array {
  const step = form === 'polygons' ? from / to : 1 / (to / from)
  const shown = new Uint32Array(to)
  // A sum, as in Pillow, which differs from products where a centre is on an edge.
  let centre = step / 2
  for (let i = 0; i < to; ++i, centre += step) shown[i] = Math.min(from - 1, Math.floor(form === 'polygons' ? centre : i * step))
  return shown
}
