/** Indices of shards: what `pack` writes beside them is what reading them through finds, and spares it. */
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'

import * as assert from 'uvu/assert'

import { packSource } from '../../src/data/pack.js'
import { indexOf } from '../../src/data/shardIndex.js'
import type { Source } from '../../src/data/source.js'
import { openSource } from '../../src/data/sources.js'
import { sameAsLocal } from '../support/shards.js'
import { ShardServer } from '../support/shardServer.js'
import { rejectsError, suite, withFolder } from '../support/suite.js'

const test = suite('shard index')

interface Index {
  bytes: number
  images: [name: string, offset: number, size: number, crc: number, label: number | null][]
}

/** Packs scenes, serves the shards, and opens them with a new cache each time: what was sent for that, and what it gave. */
const served = (
  body: (place: {
    packed: string
    server: ShardServer
    /** The first shard. */
    shard: string
    open: () => Promise<{ source: Source; sent: number }>
  }) => Promise<void>,
): Promise<void> =>
  withFolder(async (root) => {
    const packed = join(root, 'packed')
    await packSource(await openSource('scenes:40'), packed, { mostPixels: 1e6, quality: 80, shardBytes: 20_000 })
    const names = readdirSync(packed)
    const tars = names.filter((name) => name.endsWith('.tar'))
    assert.ok(tars.length > 2, `${tars.length} shards`)
    await ShardServer.with(Object.fromEntries(names.map((name) => [name, readFileSync(join(packed, name))])), async (server, base) => {
      let caches = 0
      const open = async (): Promise<{ source: Source; sent: number }> => {
        server.bytes = 0
        const pattern = `shard-{000000..${tars.at(-1)!.slice('shard-'.length, -'.tar'.length)}}.tar`
        const cache = { shardCache: join(root, `cache-${++caches}`), shardCacheGigabytes: 1 }
        const source = await openSource(`${base}/${pattern}`, { cache })
        return { source, sent: server.bytes }
      }
      await body({ packed, server, shard: tars[0]!, open })
    })
  })

test('packed shards are opened by a byte of each and what lies beside them', () =>
  served(async ({ packed, server, open }) => {
    const { source, sent } = await open()
    const texts = [...server.files].filter(([name]) => /index\.json$|classes\.txt$/.test(name))
    const tars = [...server.files].filter(([name]) => name.endsWith('.tar'))
    assert.is(texts.length, tars.length + 1)
    assert.is(sent, texts.reduce((sum, [, { length }]) => sum + length, 0) + tars.length)
    await sameAsLocal(source, packed)
  }))

test('an index that is damaged, or of another shard, costs a reading; one that lies of the images is no image', () =>
  served(async ({ packed, server, shard, open }) => {
    const name = indexOf(shard)
    const sound = server.files.get(name)!
    const changed = (change: (index: Index) => void): Buffer => {
      const index = JSON.parse(sound.toString()) as Index
      change(index)
      return Buffer.from(JSON.stringify(index))
    }
    const { length } = server.files.get(shard)!
    for (const wrong of [
      undefined,
      Buffer.from('<html>not here</html>'),
      Buffer.from('[]'),
      changed((index) => (index.bytes += 512)),
      changed(({ images }) => (images[0]![1] = length)),
      changed(({ images }) => (images[0]![1] = -512)),
      changed(({ images }) => (images[0]![4] = 0.5)),
    ]) {
      if (wrong === undefined) server.files.delete(name)
      else server.files.set(name, wrong)
      const { source, sent } = await open()
      assert.ok(sent > length, 'it was not read through')
      await sameAsLocal(source, packed)
    }

    server.files.set(
      name,
      changed(({ images }) => (images[0]![1] += 1)),
    )
    const { source } = await open()
    await rejectsError(() => sameAsLocal(source, packed), 'FETCH', shard, /have another checksum than when the shard was listed/)
  }))

test.run()
