/** The layouts of data sets with boxes. */
import { existsSync, readdirSync } from 'node:fs'
import { join } from 'node:path'

import { fail } from '../tensor/errors.js'
import { type BoxReading, type BoxSource, distinctClasses } from './boxes.js'
import { openCocoBoxes } from './cocoBoxes.js'
import { openVocBoxes } from './vocBoxes.js'

/** Whether a data set is of the layout that may have masks of objects. By its list of names: Windows takes VOC's `Annotations` for it. */
export const mayHaveMasks = (path: string): boolean => existsSync(join(path, 'annotations')) && readdirSync(path).includes('annotations')

/**
 * Opens splits of a data set with boxes: COCO's (a folder `annotations`), VOC's else, which has no masks of objects here. Throws DATA
 * where there is no image or no class, where masks are wanted of VOC's layout, or by the rules of openCocoBoxes and openVocBoxes.
 */
export function openBoxes(path: string, splits: readonly string[], reading: BoxReading = {}): BoxSource {
  const { classes, faults, masks = false } = reading
  if (!existsSync(path)) return fail('DATA', `data: ${path} does not exist`)
  const coco = mayHaveMasks(path)
  if (masks && !coco) fail('DATA', `data: ${path} has no folder annotations: expected COCO's layout, which has masks of objects`)
  const source = coco ? openCocoBoxes(path, splits, reading) : openVocBoxes(path, splits, classes, faults)
  if (source.items.length === 0 && faults === undefined) fail('DATA', `data: ${path} has no image in ${splits.join(', ')}`)
  if (source.classes.length === 0 && faults === undefined) fail('DATA', `data: ${path} has no class in ${splits.join(', ')}`)
  distinctClasses(source.classes, path)
  return source
}

/** What is trained and tested on when nothing is said: VOC 2007 and 2012 of a VOCdevkit, COCO 2017, or the lists train and val. */
export function defaultBoxSplits(path: string): { train: string[]; val: string[] } {
  if (mayHaveMasks(path)) return { train: ['train2017'], val: ['val2017'] }
  const years = ['2007', '2012'].filter((year) =>
    [`VOC${year}`, `VOCdevkit/VOC${year}`].some((folder) => existsSync(join(path, folder, 'JPEGImages'))),
  )
  return years.length === 0 ? { train: ['train'], val: ['val'] } : { train: years.map((year) => `${year}:trainval`), val: ['2007:test'] }
}
