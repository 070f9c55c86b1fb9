/** The field `segmentation` of COCO's annotations. */
import { fail } from '../tensor/errors.js'
import { maxPixels } from './decode.js'
import type { InstanceMask } from './instanceMasks.js'
import type { Polygon } from './polygons.js'
import { readRuns } from './runLengths.js'
import type { Skips } from './source.js'

/** Where a mask is read: its place in the file, what messages about the object call it, and its image. */
export interface MaskPlace {
  /** The file and the annotation. */
  at: string
  name: string
  image: { width: number; height: number }
}

/** Coordinates are drawn on a grid of a fifth of a pixel, whose numbers have 32 bits. */
const farthest = 1e8

/**
 * The mask of an object: polygons, or runs as a list or a string. Polygons of fewer than three corners or of an odd count of numbers are
 * left out and counted in `skips`, as in detectron2; undefined, counted too, where nothing is left. Throws DATA for what has another form,
 * coordinates that are no numbers, and runs that are not those of the image.
 */
export function readMask(segmentation: unknown, place: MaskPlace, skips: Skips): InstanceMask | undefined {
  const { width, height } = place.image
  if (width * height > maxPixels)
    fail('DATA', `data: ${place.at} has a mask in an image of ${width}x${height} pixels, more than the ${maxPixels} allowed`)
  const given = segmentation ?? []
  if (typeof given !== 'object')
    return fail('DATA', `data: ${place.at}.segmentation is ${shown(given)}: expected a list of polygons, or runs with size and counts`)
  if (!Array.isArray(given)) return readRunLengths(given, place)
  const mask = readPolygons(given, place, skips)
  if (mask === undefined) skips.add('object without mask', place.name)
  return mask
}

function readPolygons(polygons: readonly unknown[], place: MaskPlace, skips: Skips): InstanceMask | undefined {
  const [first, ...others] = polygons.flatMap((polygon, i): Polygon[] => {
    const at = `${place.at}.segmentation[${i}]`
    if (!Array.isArray(polygon)) return fail('DATA', `data: ${at} is ${shown(polygon)}: expected a list of coordinates`)
    polygon.forEach((value: unknown, k) => {
      if (typeof value !== 'number' || !(Math.abs(value) <= farthest))
        fail('DATA', `data: ${at}[${k}] is ${shown(value)}: expected a coordinate in pixels, at most ${farthest} from 0`)
    })
    if (polygon.length < 6 || polygon.length % 2 === 1) {
      skips.add('polygon that is none', `${polygon.length} numbers of ${place.name}`)
      return []
    }
    return [polygon as number[]]
  })
  return first === undefined ? undefined : { polygons: [first, ...others] }
}

function readRunLengths(segmentation: unknown, { at, image: { height, width } }: MaskPlace): InstanceMask {
  const { size, counts } = segmentation as { size?: unknown; counts?: unknown }
  if (!Array.isArray(size) || size.length !== 2 || size[0] !== height || size[1] !== width)
    fail('DATA', `data: ${at}.segmentation.size is ${shown(size)}: expected the height and width of the image, [${height},${width}]`)
  const runs: unknown = typeof counts === 'string' ? readRuns(counts) : counts
  if (!Array.isArray(runs))
    return fail('DATA', `data: ${at}.segmentation.counts is ${shown(counts)}: expected lengths of runs, as a list or as COCO's string`)
  let sum = 0
  runs.forEach((length: unknown, i) => {
    if (!Number.isInteger(length) || (length as number) < 0)
      fail('DATA', `data: ${at}.segmentation.counts has the run ${shown(length)} at ${i}: expected a count of pixels`)
    sum += length as number
  })
  if (sum !== height * width)
    fail('DATA', `data: ${at}.segmentation.counts is of ${sum} pixels: expected the ${height * width} of its image of ${width}x${height}`)
  return { height, width, counts: Uint32Array.from(runs as number[]) }
}

/** A value of a file as a message has it: the beginning of a long one. */
function shown(value: unknown): string {
  const text = JSON.stringify(value) ?? 'absent'
  return text.length > 60 ? `${text.slice(0, 60)}...` : text
}
