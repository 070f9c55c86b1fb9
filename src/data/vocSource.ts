/** The images of a VOC tree, without labels (voc.ts has those). */
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'

import { fail } from '../tensor/errors.js'
import { type DataSource, type Item, Skips, type Source, type Split } from './source.js'
import { vocImages } from './voc.js'

export const vocSource = {
  format: 'voc',
  describe: 'a VOC tree',
  recognises: (path) => existsSync(join(path, 'JPEGImages')) && existsSync(join(path, 'ImageSets')),
  open: readVoc,
} as const satisfies DataSource

/** JPEGImages of a VOC tree; ImageSets/Main/<split>.txt chooses when it is there. */
function readVoc(root: string, split: Split): Omit<Source, 'format'> {
  const byName = vocImages(root)
  const set = ['Main', 'Segmentation'].map((kind) => join(root, 'ImageSets', kind, `${split}.txt`)).find((file) => existsSync(file))
  const names =
    set === undefined
      ? [...byName.keys()]
      : readFileSync(set, 'utf8')
          .split('\n')
          .map((line) => line.trim().split(/\s+/)[0]!)
          .filter(Boolean)
  const items = names.map((name): Item => {
    const file = byName.get(name) ?? fail('DATA', `data: ${set} names ${name}, which is not in ${join(root, 'JPEGImages')}`)
    return { name: file, kind: 'file', path: join(root, 'JPEGImages', file) }
  })
  const [read, skips] = [new Set(items.map(({ name }) => name)), new Skips()]
  for (const file of byName.values()) if (!read.has(file)) skips.add(`image that ${set} does not name`, file)
  return { items, skipped: skips.list() }
}
