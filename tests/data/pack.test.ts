/** Shards: what goes in comes out again, and decoding with reduction gives the reduced image. */
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

import fc from 'fast-check'
import sharp from 'sharp'
import * as assert from 'uvu/assert'

import { decode } from '../../src/data/decode.js'
import { packSource } from '../../src/data/pack.js'
import { scene } from '../../src/data/scenes.js'
import { loadPixels, readItemBytes } from '../../src/data/source.js'
import { openSource } from '../../src/data/sources.js'
import { TarWriter } from '../../src/data/tar.js'
import { rejectsError, suite, throwsError, withFolder } from '../support/suite.js'

const test = suite('pack')
const options = { mostPixels: 128 * 128, quality: 92, shardBytes: 2 ** 20 }

/** Mean absolute difference of two images of the same size, in 0..255. */
const difference = (a: Uint8Array, b: Uint8Array): number => a.reduce((sum, value, i) => sum + Math.abs(value - b[i]!), 0) / a.length

async function photo(width: number, height: number, format: 'jpeg' | 'png' = 'jpeg', orientation?: number): Promise<Buffer> {
  const { pixels } = scene(5, width + height)
  const image = sharp(pixels.data, { raw: { width: pixels.width, height: pixels.height, channels: 3 } }).resize(width, height, {
    fit: 'fill',
  })
  return (orientation === undefined ? image : image.withMetadata({ orientation })).toFormat(format, { quality: 95 }).toBuffer()
}

test('members of any name and size come back from a tar byte for byte', async () => {
  const part = fc.stringMatching(/^[a-z0-9]{1,60}$/)
  await fc.assert(
    fc.asyncProperty(
      fc.uniqueArray(fc.record({ folder: part, name: part, size: fc.integer({ min: 0, max: 1500 }) }), {
        minLength: 1,
        maxLength: 6,
        selector: ({ folder, name }) => `${folder}/${name}`,
      }),
      (members) =>
        withFolder(async (root) => {
          const writer = new TarWriter(join(root, 'a.tar'))
          const contents = members.map(({ size }, i) => Uint8Array.from({ length: size }, (_, at) => (at * 7 + i) % 256))
          members.forEach(({ folder, name }, i) => writer.add(`${folder}/${name}.jpg`, contents[i]!))
          assert.equal(readdirSync(root), ['a.tar.partial'])
          writer.close()
          const { items } = await openSource(join(root, 'a.tar'))
          assert.equal(
            items.map(({ name }) => name),
            members.map(({ folder, name }) => `a.tar:${folder}/${name}.jpg`),
          )
          for (const [i, item] of items.entries()) {
            if (contents[i]!.length > 0) assert.ok((await readItemBytes(item as Parameters<typeof readItemBytes>[0])).equals(contents[i]!))
          }
        }),
    ),
    { numRuns: 20 },
  )
})

test('a name that does not fit is an error, and a tar that is given up leaves nothing', async () => {
  await withFolder((root) => {
    const writer = new TarWriter(join(root, 'a.tar'))
    throwsError(() => writer.add('x'.repeat(101), new Uint8Array(1)), 'DATA', /too long/)
    writer.abandon()
    assert.equal(readdirSync(root), [])
    throwsError(() => new TarWriter(join(root, 'none', 'a.tar')), 'WRITE', /there is no folder .*none/)
  })
})

test('small JPEGs are copied, others written anew; order, labels and class names stay; broken ones are named', async () => {
  await withFolder(async (root) => {
    const files: [string, Buffer][] = [
      ['cats/a.jpg', await photo(120, 100)],
      ['cats/b.png', await photo(90, 110, 'png')],
      ['dogs/c.jpg', await photo(600, 400)],
      ['dogs/d.jpg', await photo(100, 60, 'jpeg', 6)],
      ['dogs/e.jpg', Buffer.from('no image')],
    ]
    for (const [name, bytes] of files) {
      mkdirSync(join(root, 'in', name, '..'), { recursive: true })
      writeFileSync(join(root, 'in', name), bytes)
    }
    const source = await openSource(join(root, 'in'))
    const report = await packSource(source, join(root, 'out'), options)
    assert.is(report.images, 4)
    assert.is(report.encoded, 3)
    assert.match(report.broken[0]!.name, /e\.jpg/)

    const packed = await openSource(join(root, 'out'))
    assert.equal(packed.classes, ['cats', 'dogs'])
    assert.equal(
      packed.items.map(({ label }) => label),
      [0, 0, 1, 1],
    )
    const bytes = await Promise.all(packed.items.map((item) => readItemBytes(item as Parameters<typeof readItemBytes>[0])))
    assert.ok(bytes[0]!.equals(files[0]![1]))
    const [, png, large, rotated] = await Promise.all(packed.items.map((item) => loadPixels(item)))
    assert.equal([png!.width, png!.height], [90, 110])
    assert.ok(difference(png!.data, (await loadPixels(source.items[1]!)).data) < 4)
    assert.ok(large!.width * large!.height <= options.mostPixels && large!.width * large!.height > 0.9 * options.mostPixels)
    assert.ok(Math.abs(large!.width / large!.height - 1.5) < 0.02)
    assert.equal([rotated!.width, rotated!.height], [60, 100])

    await rejectsError(() => packSource(source, join(root, 'out'), options), 'WRITE', /holds shards already/)
  })
})

test('shards are closed at their size, and scenes become JPEGs', async () => {
  await withFolder(async (root) => {
    const source = await openSource('scenes:12')
    const report = await packSource(source, root, { ...options, shardBytes: 30_000 })
    assert.ok(report.shards.length > 1)
    assert.not.ok(readdirSync(root).some((name) => name.endsWith('.partial')))
    const { items, classes } = await openSource(root)
    assert.is(items.length, 12)
    assert.equal(classes, source.classes)
    assert.equal(
      items.map(({ label }) => label),
      source.items.map(({ label }) => label),
    )
    for (const i of [0, 11]) assert.ok(difference((await loadPixels(items[i]!)).data, (await loadPixels(source.items[i]!)).data) < 4)
  })
})

test('a large image is reduced while it is decoded, also a rotated one and a PNG, and a small one is not', async () => {
  for (const [format, orientation] of [
    ['jpeg', undefined],
    ['jpeg', 6],
    ['png', undefined],
  ] as const) {
    const bytes = await photo(800, 480, format, orientation)
    const whole = await decode(bytes, 'whole')
    const reduced = await decode(bytes, 'reduced', 200 * 120)
    assert.equal([reduced.width, reduced.height], orientation === 6 ? [120, 200] : [200, 120])
    const { data } = await sharp(whole.data, { raw: { width: whole.width, height: whole.height, channels: 3 } })
      .resize(reduced.width, reduced.height, { fit: 'fill' })
      .raw()
      .toBuffer({ resolveWithObject: true })
    assert.ok(difference(reduced.data, data) < 4, `differs by ${difference(reduced.data, data)}`)
    assert.equal((await decode(bytes, 'kept', 800 * 480)).data.length, whole.data.length)
  }
})

test('a shard that a kill left unfinished is not read', async () => {
  await withFolder(async (root) => {
    const writer = new TarWriter(join(root, 'shard-000000.tar'))
    writer.add('a.jpg', await photo(64, 64))
    await rejectsError(() => openSource(root), 'DATA', /holds no image/)
    writer.close()
    assert.is((await openSource(root)).items.length, 1)
    assert.is(readFileSync(join(root, 'shard-000000.tar')).length % 512, 0)
  })
})

test.run()
