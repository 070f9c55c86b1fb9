/** What a detector found, as metrics and files take it. */
import { type Box, boxHeight, type BoxSource, boxWidth } from '../data/boxes.js'
import { type RunLengths, writeRuns } from '../data/runLengths.js'
import type { Group } from '../distributed/group.js'

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
  /** Its pixels in the original image, of a detector with masks. */
  mask?: RunLengths
}

/** What all processes have found, in the order of ranks, in all of them. */
export function gatheredDetections(own: readonly Detection[], group: Group): Detection[] {
  if (group.size === 1) return [...own]
  const said = own.map(({ mask, ...found }) => (mask === undefined ? found : { ...found, mask: { ...mask, counts: [...mask.counts] } }))
  return group
    .texts(JSON.stringify(said))
    .flatMap((text) =>
      (JSON.parse(text) as (Omit<Detection, 'mask'> & { mask?: Omit<RunLengths, 'counts'> & { counts: number[] } })[]).map(
        ({ mask, ...found }) => (mask === undefined ? found : { ...found, mask: { ...mask, counts: Uint32Array.from(mask.counts) } }),
      ),
    )
}

/** Indices of `values` by descending value; equal ones stay in order. */
export function descending(values: ArrayLike<number>): Int32Array {
  return Int32Array.from({ length: values.length }, (_, i) => i).sort((a, b) => values[b]! - values[a]! || a - b)
}

/** A mask as COCO's files have it: [height, width] and the string of runs. */
export interface CocoSegmentation {
  size: [height: number, width: number]
  counts: string
}
export const cocoSegmentation = ({ height, width, counts }: RunLengths): CocoSegmentation => ({
  size: [height, width],
  counts: writeRuns(counts),
})

/** A detection as COCO's result files have it: the corner and sides of its box, and its mask where it has one. */
export interface CocoResult {
  /** VOC's images keep their names, COCO's their numbers. */
  image_id: number | string
  category_id: number
  bbox: [x: number, y: number, width: number, height: number]
  score: number
  segmentation?: CocoSegmentation
}

/** Detections in the form of COCO's result files; classes of VOC trees are numbered from 1. */
export const cocoResults = ({ items, layout, categoryIds }: BoxSource, detections: readonly Detection[]): CocoResult[] =>
  detections.map(({ image, label, box, score, mask }) => ({
    image_id: layout === 'coco' ? Number(items[image]!.id) : items[image]!.id,
    category_id: categoryIds?.[label] ?? label + 1,
    bbox: [box[0], box[1], boxWidth(box), boxHeight(box)],
    score,
    ...(mask === undefined ? {} : { segmentation: cocoSegmentation(mask) }),
  }))
