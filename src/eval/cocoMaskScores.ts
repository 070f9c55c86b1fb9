/** COCO's scores of masks: those of boxes by the overlaps and areas of pixels. */
import type { BoxObject, BoxSource } from '../data/boxes.js'
import { maskRuns } from '../data/instanceMasks.js'
import { maskArea, maskBounds, type RunLengths, sharedArea } from '../data/runLengths.js'
import { type CocoScores, cocoBoxScores } from './cocoBoxScores.js'
import type { Detection } from './detections.js'

/** What overlaps of a mask are found by. */
interface Measured {
  runs: RunLengths
  area: number
  /** Corners of the rectangle around it. */
  bounds: [x1: number, y1: number, x2: number, y2: number]
}

function measured(runs: RunLengths): Measured {
  const [x, y, width, height] = maskBounds(runs)
  return { runs, area: maskArea(runs), bounds: [x, y, x + width, y + height] }
}

/** The scores of the masks of `detections` by the rules of cocoBoxScores(). What has no mask has no pixel: it overlaps nothing. */
export function cocoMaskScores(source: Pick<BoxSource, 'items' | 'classes'>, detections: readonly Detection[]): CocoScores {
  const found = new Map<Detection, Measured>()
  for (const each of detections) if (each.mask !== undefined) found.set(each, measured(each.mask))
  const there = new Map<BoxObject, Measured>()
  for (const item of source.items)
    for (const object of item.objects) if (object.mask !== undefined) there.set(object, measured(maskRuns(object.mask, item)))
  return cocoBoxScores(source, detections, {
    area: (each) => found.get(each)?.area ?? 0,
    overlap(each, object) {
      const [a, b] = [found.get(each), there.get(object)]
      return a === undefined || b === undefined ? 0 : overlapOf(a, b, object.crowd)
    },
  })
}

/** Intersection over union; over the area of what was found for a crowd. */
function overlapOf(found: Measured, there: Measured, crowd: boolean): number {
  const [a, b] = [found.bounds, there.bounds]
  if (a[0] >= b[2] || b[0] >= a[2] || a[1] >= b[3] || b[1] >= a[3]) return 0
  const shared = sharedArea(found.runs, there.runs)
  return shared === 0 ? 0 : shared / (crowd ? found.area : found.area + there.area - shared)
}
