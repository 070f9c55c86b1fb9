/** Images with boxes around their objects: what a data set for detection is, whichever layout it has on the disk. */
import { DenseclError, fail } from '../tensor/errors.js'
import type { InstanceMask } from './instanceMasks.js'
import { type Item, type Skipped, Skips } from './source.js'

/** x1, y1, x2, y2 in continuous pixels: x to the right, y down, pixel (i, j) covers [j, j+1) x [i, i+1). */
export type Box = readonly [x1: number, y1: number, x2: number, y2: number]

/** An object of an image. */
export interface BoxObject {
  /** Index of its class. */
  label: number
  box: Box
  /** Hard to recognise: neither found nor missed in VOC's metric. */
  difficult: boolean
  truncated: boolean
  /** A region with many objects, which is not trained on. */
  crowd: boolean
  /** That of the object's mask where the data set has one, else of the box; by it COCO's metric tells small from large. */
  area: number
  /** Its pixels, where a source is opened with masks and has one of the object. */
  mask?: InstanceMask
}

/** An image with its objects. */
export type BoxItem = Item & {
  kind: 'file'
  /** What results call the image: VOC's name without an ending, COCO's id. */
  id: string
  /** In pixels, as the annotation states it. */
  width: number
  height: number
  objects: BoxObject[]
}

/** A data set with boxes. */
export interface BoxSource {
  layout: 'voc' | 'coco'
  items: BoxItem[]
  /** Names of the labels. */
  classes: readonly string[]
  /** What COCO's file calls each class; results are written with these. Absent in VOC trees. */
  categoryIds?: readonly number[]
  /** Whether masks were read; of single objects they may be missing. */
  masks?: boolean
  skipped: Skipped[]
}

/** How a data set with boxes is opened. */
export interface BoxReading {
  /** The classes that there must be: those of the training set where another is opened. */
  classes?: readonly string[] | undefined
  /** Where faults of single annotations are kept, which are left out; the first is thrown without. */
  faults?: BoxFaults | undefined
  /** Masks of the objects are read too. */
  masks?: boolean | undefined
}

/** What is wrong with annotations where all of it is collected, instead of thrown at the first. */
export class BoxFaults {
  /** What makes a data set unusable, and what is only told of it. */
  readonly errors = new Skips()
  readonly notes = new Skips()
}

/** Keeps a fault of a sort, or throws it where nobody collects them. */
export function fault(faults: BoxFaults | undefined, what: string, message: string): void {
  if (faults === undefined) fail('DATA', `data: ${message}`)
  faults.errors.add(what, message)
}

/** What `read` returns; undefined where it throws an error of the data that is collected. */
export function unlessFaulty<R>(faults: BoxFaults | undefined, what: string, read: () => R): R | undefined {
  try {
    return read()
  } catch (error) {
    if (faults === undefined || !(error instanceof DenseclError) || error.code !== 'DATA') throw error
    faults.errors.add(what, error.message.replace(/^data: /, ''))
    return undefined
  }
}

/** Classes in their order. Throws DATA, naming `from`, where one is there twice. */
export function distinctClasses(names: readonly string[], from: string): readonly string[] {
  const twice = names.find((name, i) => names.indexOf(name) !== i)
  return twice === undefined ? names : fail('DATA', `data: ${from} has the class ${twice} twice`)
}

export const boxWidth = ([x1, , x2]: Box): number => x2 - x1
export const boxHeight = ([, y1, , y2]: Box): number => y2 - y1
export const boxArea = (box: Box): number => boxWidth(box) * boxHeight(box)
