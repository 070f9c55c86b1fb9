import { mkdirSync, symlinkSync, writeFileSync } from 'node:fs'
import { join, relative, resolve } from 'node:path'

import * as assert from 'uvu/assert'

import { Loader } from '../../src/data/loader.js'
import { orderedBatches } from '../../src/data/sampler.js'
import { openSource } from '../../src/data/sources.js'
import { Random } from '../../src/tensor/random.js'
import { processorTime } from '../support/processorTime.js'
import { rejectsError, suite, withFolder } from '../support/suite.js'

const test = suite('large data sets')

/** Far more than is needed, far less than anything quadratic takes. */
const patience = 30

async function quickly<R>(body: () => Promise<R>): Promise<R> {
  const took = processorTime()
  const result = await body()
  assert.ok(took() < patience, `took ${took()} s`)
  return result
}

test('1,300,000 rows with labels open in seconds, as a list and as annotations of the form of iNaturalist', async () => {
  await withFolder(async (root) => {
    const rows = 1_300_000
    const list: string[] = []
    const images: string[] = []
    const annotations: string[] = []
    for (let i = 0; i < rows; ++i) {
      list.push(`train/${i}.jpg ${i % 1000}`)
      images.push(`{"id":${i},"file_name":"${i}.jpg"}`)
      annotations.push(`{"image_id":${i},"category_id":${i % 1000}}`)
    }
    const categories = Array.from({ length: 1000 }, (_, id) => ({ id, name: `class ${id}` }))
    writeFileSync(join(root, 'list.txt'), list.join('\n'))
    writeFileSync(join(root, '0.jpg'), '')
    writeFileSync(
      join(root, 'coco.json'),
      `{"images":[${images.join(',')}],"annotations":[${annotations.join(',')}],"categories":${JSON.stringify(categories)}}`,
    )
    for (const name of ['list.txt', 'coco.json']) {
      const { items, classes } = await quickly(() => openSource(join(root, name)))
      assert.is(items.length, rows)
      assert.is(classes?.length, 1000)
      assert.is(items.at(-1)!.label, (rows - 1) % 1000)
    }
  })
})

test('workers are not told of images that they do not read: six of them on 300,000 rows take no copy of the list each', async () => {
  await withFolder(async (root) => {
    const row = (i: number): string =>
      `train/n${String(i % 1000).padStart(8, '0')}/n${String(i % 1000).padStart(8, '0')}_${i}.jpg ${i % 1000}`
    writeFileSync(join(root, 'list.txt'), Array.from({ length: 300_000 }, (_, i) => row(i)).join('\n'))
    const { items } = await openSource(join(root, 'list.txt'))
    const before = process.memoryUsage().rss
    const workers = 6
    const loader = new Loader({ items, imageSize: 32, batchSize: 12, views: 'centre', workers, maxBroken: 1 })
    try {
      for await (const batch of loader.batches(orderedBatches(36, 12))) for (const view of batch.views()) view.dispose()
      assert.is(loader.broken.size, 36)
      const each = (process.memoryUsage().rss - before) / workers / 2 ** 20
      assert.ok(each < 60, `${each.toFixed(0)} MiB a worker`)
    } finally {
      await loader.close()
    }
  })
})

test('200,000 files in one subfolder and 2,000 classes open in seconds', async () => {
  await withFolder(async (root) => {
    mkdirSync(join(root, 'all'))
    for (let i = 0; i < 200_000; ++i) writeFileSync(join(root, 'all', `${i}.jpg`), '')
    const { items, classes } = await quickly(() => openSource(root))
    assert.is(items.length, 200_000)
    assert.is(classes, undefined)
    for (let i = 0; i < 2000; ++i) {
      mkdirSync(join(root, `class-${i}`))
      writeFileSync(join(root, `class-${i}`, 'a.jpg'), '')
    }
    const labelled = await quickly(() => openSource(root))
    assert.is(labelled.classes!.length, 2001)
    for (const { label, path } of labelled.items as { label: number; path: string }[])
      if (path.slice(root.length + 1).split('/')[0] !== labelled.classes![label]) assert.unreachable(`${path} has the label ${label}`)
  })
})

test('a folder that links to itself is read once and said to be skipped; a link to nothing is no folder', async () => {
  await withFolder(async (root) => {
    mkdirSync(join(root, 'a', 'b'), { recursive: true })
    writeFileSync(join(root, 'a', 'b', 'x.jpg'), '')
    symlinkSync('..', join(root, 'a', 'b', 'up'))
    symlinkSync('self', join(root, 'a', 'self'))
    symlinkSync('nowhere', join(root, 'a', 'gone'))
    const { items, skipped } = await openSource(root)
    assert.is(items.length, 1)
    assert.equal(skipped, [
      { what: 'link to a folder that it lies in', count: 1, names: [join(root, 'a', 'b', 'up')] },
      { what: 'no image', count: 2, names: [join(root, 'a', 'gone'), join(root, 'a', 'self')] },
    ])
  })
})

test('the path of a row is what Node resolves it to from the folder of its list, whatever it is made of', async () => {
  await withFolder(async (root) => {
    const path = join(root, 'list.txt')
    const random = new Random(5)
    const part = (): string => ['a', 'b c', '.', '..', '...', '.a', '', '\\'][random.below(8)]!
    const files = Array.from(
      { length: 300 },
      () => `x${Array.from({ length: 1 + random.below(4) }, () => `${part()}/`).join('')}${part()}y`,
    )
    const names = [...files, ...files.map((file) => `/${file}`), ...files.map((file) => file.slice(1)), ...files.map((file) => `./${file}`)]
    const written = names.filter((name) => name === name.trim())
    writeFileSync(path, written.join('\n'))
    for (const list of [path, relative(process.cwd(), path)])
      for (const [i, item] of (await openSource(list)).items.entries())
        assert.equal([item.name, item.kind === 'file' && item.path], [written[i], resolve(root, written[i]!)])
  })
})

test('lists: line ends of any system, blanks in names, digits that are no label, long lines, large labels', async () => {
  await withFolder(async (root) => {
    const path = join(root, 'list.txt')
    const read = async (text: string): Promise<[string, number | undefined][]> => {
      writeFileSync(path, text)
      return (await openSource(path)).items.map(({ name, label }) => [name, label])
    }
    for (const newline of ['\n', '\r\n', '\r'])
      assert.equal(await read(`a b.jpg 1${newline}# no${newline}${newline}c.jpg,\t0`), [
        ['a b.jpg', 1],
        ['c.jpg', 0],
      ])
    assert.equal(await read('a\u2028b.jpg 1\nc 7'), [
      ['a\u2028b.jpg', 1],
      ['c', 7],
    ])
    assert.equal(await read('a.jpg\nb7\n42\n'), [
      ['a.jpg', undefined],
      ['b7', undefined],
      ['42', undefined],
    ])
    writeFileSync(path, `a${' '.repeat(10_000)}b`)
    const took = processorTime()
    await openSource(path)
    assert.ok(took() < 0.5, `a line of blanks took ${took()} s`)
    writeFileSync(path, `a.jpg\n${'b'.repeat(20_000)}`)
    await rejectsError(() => openSource(path), 'DATA', /line 2 of .*list\.txt has 20000 characters/)
    for (const label of ['100000000', '99999999999999999999']) {
      writeFileSync(path, `a.jpg ${label}`)
      await rejectsError(() => openSource(path), 'DATA', /a\.jpg the label 1/, /0 to 999999/)
    }
    mkdirSync(join(root, 'd.json'))
    await rejectsError(() => openSource(join(root, 'd.json'), { format: 'coco' }), 'DATA', /EISDIR/)
  })
})

test.run()
