/** What of a source is compared with shards on a disk. */
import * as assert from 'uvu/assert'

import { type Item, readItemBytes, type Source, type StoredItem } from '../../src/data/source.js'
import { openSource } from '../../src/data/sources.js'

export const bytesOf = (items: readonly Item[]): Promise<Buffer[]> => Promise.all(items.map((item) => readItemBytes(item as StoredItem)))

/** Throws where a source has not the images, labels, classes and bytes of the shards of a folder, or skips something else. */
export async function sameAsLocal(source: Source, local: string): Promise<void> {
  const own = await openSource(local)
  const about = ({ items, classes, skipped }: Source): unknown => [items.map(({ name, label }) => [name, label]), classes, skipped]
  assert.equal(about(source), about(own))
  assert.equal(await bytesOf(source.items), await bytesOf(own.items))
}
