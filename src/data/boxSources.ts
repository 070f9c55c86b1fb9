/** The layouts of data sets with boxes. */
import { existsSync } from 'node:fs'
import { join } from 'node:path'

import { fail } from '../tensor/errors.js'
import type { BoxSource } from './boxes.js'
import { openCocoBoxes } from './cocoBoxes.js'
import { openVocBoxes } from './vocBoxes.js'

/**
 * Opens splits of a data set with boxes: COCO's (a folder `annotations`), VOC's else. `classes` are those of the training set when
 * another is opened. Throws DATA where there is no image, or by the rules of openCocoBoxes and openVocBoxes.
 */
export function openBoxes(path: string, splits: readonly string[], classes?: readonly string[]): BoxSource {
  if (!existsSync(path)) return fail('DATA', `data: ${path} does not exist`)
  const open = existsSync(join(path, 'annotations')) ? openCocoBoxes : openVocBoxes
  const source = open(path, splits, classes)
  if (source.items.length === 0) fail('DATA', `data: ${path} has no image in ${splits.join(', ')}`)
  return source
}
