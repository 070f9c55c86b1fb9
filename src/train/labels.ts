import { existsSync } from 'node:fs'
import { basename, dirname, join } from 'node:path'

import type { Item, Source } from '../data/source.js'
import { openSource } from '../data/sources.js'
import { fail } from '../tensor/errors.js'
import type { Config } from '../run/config.js'

export interface LabelledSets {
  bank: Item[]
  queries: Item[]
  how: string
}

/** What kNN looks up and classifies: labelled images of the data against knnData, its val sibling, or a tenth of itself. */
export async function knnSets(config: Config, source: Source): Promise<LabelledSets | undefined> {
  if (source.classes === undefined) return undefined
  const sibling = join(dirname(config.data), 'val')
  const other =
    config.knnData ??
    (source.format === 'scenes' ? 'scenes:500' : basename(config.data) === 'train' && existsSync(sibling) ? sibling : undefined)
  const every = Math.max(1, Math.ceil(source.items.length / config.knnImages))
  if (other !== undefined) {
    const held = await openSource(other, { split: 'val', cache: config, setting: 'knnData' })
    if (held.classes?.join() !== source.classes.join()) {
      fail(
        'DATA',
        `kNN: the classes of ${other} (${held.classes?.join(', ') ?? 'none'}) are not those of ${config.data} ` +
          `(${source.classes.join(', ')})`,
      )
    }
    return { bank: source.items.filter((_, i) => i % every === 0), queries: held.items, how: `${other} against ${config.data}` }
  }
  if (source.items.length < 20) return undefined
  return {
    bank: source.items.filter((_, i) => i % 10 !== 0 && i % every === 0),
    queries: source.items.filter((_, i) => i % 10 === 0),
    how: `a tenth of ${config.data} against the rest`,
  }
}
