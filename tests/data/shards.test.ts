import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { gzipSync } from 'node:zlib'

import sharp from 'sharp'
import * as assert from 'uvu/assert'

import { readItemBytes, type Source } from '../../src/data/source.js'
import { openSource } from '../../src/data/sources.js'
import { TarWriter } from '../../src/data/tar.js'
import { hasModules, python, runPython } from '../support/python.js'
import { rejectsError, runCli, suite, testWhere, withFolder } from '../support/suite.js'

const test = suite('shards')
const hasPython = hasModules(python, 'tarfile')
const noPython = `${python} is not there`

/** A header with its checksum; the fields as they stand in the file. */
function header(name: string, size: string | Buffer, type = '0', magic = 'ustar\x0000'): Buffer {
  const bytes = Buffer.alloc(512)
  bytes.write(name, 0)
  bytes.write('0000644\x000000000\x000000000\0', 100)
  if (typeof size === 'string') bytes.write(size, 124, 'latin1')
  else size.copy(bytes, 124)
  bytes.write('00000000000\0        ', 136)
  bytes.write(type, 156)
  bytes.write(magic, 257, 'latin1')
  const sum = bytes.reduce((total, byte) => total + byte, 0)
  bytes.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148)
  return bytes
}
const octal = (size: number): string => `${size.toString(8).padStart(11, '0')}\0`
const padded = (data: Buffer): Buffer => Buffer.concat([data, Buffer.alloc((512 - (data.length % 512)) % 512)])
const member = (name: string, data: Buffer, type = '0', magic?: string): Buffer =>
  Buffer.concat([header(name, octal(data.length), type, magic), padded(data)])
const end = Buffer.alloc(1024)

const content = async (item: Source['items'][number]): Promise<string> =>
  (await readItemBytes(item as Parameters<typeof readItemBytes>[0])).toString('latin1')

/** Writes a shard of the parts and opens it. */
const shard = (parts: Buffer[], body: (source: Source, path: string) => void | Promise<void>): Promise<void> =>
  withFolder(async (root) => {
    const path = join(root, 's.tar')
    writeFileSync(path, Buffer.concat(parts))
    await body(await openSource(path), path)
  })
const refused = (parts: Buffer[], ...words: RegExp[]): Promise<void> =>
  withFolder(async (root) => {
    writeFileSync(join(root, 's.tar'), Buffer.concat(parts))
    await rejectsError(() => openSource(join(root, 's.tar')), 'DATA', /s\.tar/, ...words)
  })

const pythonShards = `
import io, sys, tarfile
names = ['a.jpg', 'x' * 110 + '.jpg', 'folder/' + 'y' * 130 + '.png', 'd' * 90 + '/' + 'z' * 140 + '.jpg', 'größe/日本.jpg',
         'é' * 60 + '.jpg', 'w' * 300 + '/k.webp', 'plain/b.jpeg']
for kind, form in (('pax', tarfile.PAX_FORMAT), ('gnu', tarfile.GNU_FORMAT)):
    with tarfile.open(sys.argv[1] + '/' + kind + '.tar', 'w', format=form) as tar:
        for i, name in enumerate(names):
            data = ('%s %d ' % (kind, i) + name).encode() * (i + 1)
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1234567890.25
            tar.addfile(info, io.BytesIO(data))
        for form_of_link in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE):
            info = tarfile.TarInfo('l' * 120 + '.jpg')
            info.type, info.linkname = form_of_link, 't' * 130
            tar.addfile(info)
for kind in ('pax', 'gnu'):
    with tarfile.open(sys.argv[1] + '/' + kind + '.tar') as tar:
        for info in tar:
            if info.isreg():
                print(kind + '.tar:' + info.name, info.offset_data, info.size, sep='\\t')
`

testWhere(hasPython, noPython, test, "names, places and sizes in PAX and GNU archives are those that Python's tarfile reads", async () => {
  await withFolder(async (root) => {
    const rows = runPython(`import sys; sys.stdout.reconfigure(encoding='utf8')\n${pythonShards}`, [root]).trim().split('\n')
    const { items, skipped } = await openSource(root)
    const [pax, gnu] = ['pax', 'gnu'].map((kind) => rows.filter((row) => row.startsWith(kind)))
    assert.is(pax!.length, 8)
    assert.equal(
      items.map((item) => (item.kind === 'tar' ? `${item.name}\t${item.offset}\t${item.size}` : '')),
      [...gnu!, ...pax!],
    )
    for (const item of items) assert.match(await content(item), item.name.slice(0, 3))
    assert.equal(
      skipped!.map(({ what, count }) => `${count} ${what}`),
      ['2 symbolic link', '2 hard link', '2 folder', '2 pipe'],
    )
    assert.ok(skipped![0]!.names[0]!.endsWith(`:${'l'.repeat(120)}.jpg`), skipped![0]!.names[0])
  })
})

test('sizes in base 256 and archives older than USTAR are read; a size of an extended header counts', async () => {
  const jpeg = Buffer.from('picture')
  const binary = Buffer.alloc(12)
  binary[0] = 0x80
  binary[11] = jpeg.length
  const record = '9 size=7\n'
  await shard(
    [
      header('binary.jpg', binary),
      padded(jpeg),
      member('old.jpg', jpeg, '\0', ''),
      member('x', Buffer.from(record), 'x'),
      header('stated.jpg', octal(0)),
      padded(jpeg),
      member('after.jpg', jpeg),
      end,
    ],
    async ({ items }) => {
      assert.equal(
        items.map(({ name }) => name),
        ['binary', 'old', 'stated', 'after'].map((name) => `s.tar:${name}.jpg`),
      )
      for (const item of items) assert.is(await content(item), 'picture')
    },
  )
})

test('a checksum is that of the bytes, unsigned or as old programs summed them, signed; any other is refused', async () => {
  const name = Buffer.from('é'.repeat(9), 'latin1')
  const bytes = member(`${'x'.repeat(9)}.jpg`, Buffer.from('one'))
  name.copy(bytes)
  const summed = (sum: number): Buffer => {
    const changed = Buffer.from(bytes)
    changed.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148)
    return changed
  }
  const blank = Buffer.from(bytes.subarray(0, 512))
  blank.fill(' ', 148, 156)
  const unsigned = blank.reduce((total, byte) => total + byte, 0)
  const signed = unsigned - 256 * name.length
  for (const sum of [unsigned, signed]) await shard([summed(sum), end], async ({ items }) => assert.is(await content(items[0]!), 'one'))
  for (const sum of [unsigned + 1, signed - 1, signed + 256]) await refused([summed(sum), end], /bad header at byte 0/)
})

test('sparse files of GNU and of PAX, labels that are none and files of other kinds are counted and named, not read', async () => {
  const sparse = header('old-sparse.jpg', octal(7), 'S', 'ustar  \0')
  sparse[482] = 1
  sparse.write('        ', 148)
  sparse.write(
    `${sparse
      .reduce((total, byte) => total + byte, 0)
      .toString(8)
      .padStart(6, '0')}\0 `,
    148,
  )
  const more = Buffer.alloc(512)
  more[504] = 1
  const jpeg = Buffer.from('picture')
  const records = '22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n27 GNU.sparse.name=new.jpg\n'
  await shard(
    [
      sparse,
      more,
      Buffer.alloc(512),
      padded(jpeg),
      member('x', Buffer.from(records), 'x'),
      member('GNUSparseFile.0/new.jpg', jpeg),
      member('a.jpg', jpeg),
      member('a.cls', Buffer.from('cat')),
      member('a.json', jpeg),
      member('b.json', jpeg),
      member('._a.jpg', jpeg),
      end,
      Buffer.from('more'),
    ],
    ({ items, classes, skipped }) => {
      assert.equal(
        items.map(({ name }) => name),
        ['s.tar:a.jpg'],
      )
      assert.is(classes, undefined)
      assert.equal(skipped, [
        { what: 'sparse file', count: 2, names: ['s.tar:old-sparse.jpg', 's.tar:new.jpg'] },
        { what: 'label that is no whole number', count: 1, names: ['s.tar:a.cls'] },
        { what: '.json file', count: 2, names: ['s.tar:a.json', 's.tar:b.json'] },
        { what: 'file of attributes of macOS', count: 1, names: ['s.tar:._a.jpg'] },
        { what: 'part after the end of the archive', count: 1, names: [`s.tar:byte ${skipped![4]!.names[0]!.split(' ')[1]}`] },
      ])
    },
  )
})

test("a sample's key ends at the first dot of its last part, as in WebDataset; names with more dots keep their own labels", async () => {
  const jpeg = Buffer.from('picture')
  const cls = (label: number): Buffer => Buffer.from(String(label))
  await shard(
    [
      member('set.v1/0000.seg.jpg', jpeg),
      member('set.v1/0000.cls', cls(3)),
      member('p.v2.jpg', jpeg),
      member('p.v2.cls', cls(1)),
      member('p.v3.jpg', jpeg),
      member('p.v3.cls', cls(2)),
      end,
    ],
    ({ items, classes }) => {
      assert.equal(
        items.map(({ label }) => label),
        [3, 1, 2],
      )
      assert.equal(classes, ['0', '1', '2', '3'])
    },
  )
})

test('sizes that are negative, no numbers or too large, headers that are damaged and names without end are refused', async () => {
  const jpeg = Buffer.from('picture')
  await refused([header('back.jpg', '-0000001000\0'), padded(jpeg), end], /byte 0: back\.jpg has no size/)
  await refused([header('back.jpg', Buffer.alloc(12, 0xff)), padded(jpeg), end], /has no size/)
  await refused([header('far.jpg', Buffer.from([0x80, 0x7f, ...Array<number>(10).fill(0xff)])), end], /has no size/)
  await refused([header('word.jpg', '0000000zzzz\0'), padded(jpeg), end], /has no size/)
  await refused([header('long.jpg', octal(1e6)), padded(jpeg), end], /is cut off: long\.jpg at byte 0 claims 1000000 bytes/)
  await refused([member('a.jpg', jpeg), header('L', octal(2 ** 21), 'L'), Buffer.alloc(2 ** 21), end], /extended header of 2097152 bytes/)
  for (const records of ['99 path=a.jpg\n', '0 path=a\n', 'path=a.jpg\n', '11 pathabc\n', '-5 a=b\n'])
    await refused([member('x', Buffer.from(records), 'x'), member('a.jpg', jpeg), end], /no list of "length key=value"/)
  await refused([member('x', Buffer.from('10 size=-5\n'.replace('10', '11')), 'x'), member('a.jpg', jpeg), end], /has no size/)
  const wrong = member('a.jpg', jpeg)
  wrong[0] = 0x62
  await refused([wrong, end], /not a tar file \(bad header at byte 0\)/)
  await refused([member('a.jpg', jpeg), Buffer.alloc(100, 1)], /cut off inside of a header/)
  await refused(
    [member('a.jpg', jpeg), member('c.cls', Buffer.from('5')), member('a.cls', Buffer.from('100000000')), end],
    /label 100000000/,
    /999999/,
  )
})

test('compressed shards are explained in a sentence', async () => {
  await withFolder(async (root) => {
    const bytes = gzipSync(Buffer.concat([member('a.jpg', Buffer.from('picture')), end]))
    mkdirSync(join(root, 'folder'))
    for (const path of ['a.tar.gz', 'a.tgz', 'folder/a.tar.gz', 'named.tar']) writeFileSync(join(root, path), bytes)
    for (const path of ['a.tar.gz', 'a.tgz', 'folder', 'named.tar'])
      await rejectsError(() => openSource(join(root, path)), 'DATA', /compressed/, /unpack it/)
    writeFileSync(join(root, 'folder', 'b.tar'), Buffer.concat([member('a.jpg', Buffer.from('picture')), end]))
    assert.equal((await openSource(join(root, 'folder'))).skipped, [{ what: 'compressed shard', count: 1, names: ['a.tar.gz'] }])
    mkdirSync(join(root, 'odd', 'x.tar'), { recursive: true })
    await rejectsError(() => openSource(join(root, 'odd')), 'DATA', /x\.tar cannot be read/, /EISDIR/)
  })
})

test('check-data and the start of a run say what they skip', async () => {
  await withFolder(async (root) => {
    const picture = await sharp({ create: { width: 40, height: 40, channels: 3, background: '#c40' } })
      .jpeg()
      .toBuffer()
    const data = join(root, 's.tar')
    const writer = new TarWriter(data)
    for (let i = 0; i < 8; ++i) writer.add(`${i}.jpg`, picture)
    for (let i = 0; i < 7; ++i) writer.add(`${i}.json`, Buffer.from('{}'))
    writer.close()
    const checked = runCli(['check-data', data])
    assert.match(checked.out, /7 skipped \(\.json file\): s\.tar:0\.json, .*s\.tar:4\.json, and 2 more/)
    const settings = 'imageSize=32 batchSize=4 depth=18 baseChannels=4 hidden=8 queueLength=16 epochs=1 knnImages=10 workers=1 device=cpu'
    const run = runCli(['pretrain', `data=${data}`, ...settings.split(' '), '--out', join(root, 'run')])
    assert.is(run.code, 0, run.err)
    assert.match(run.out, /7 skipped \(\.json file\)/)
    assert.ok(readFileSync(join(root, 'run', 'metrics.jsonl')).length > 0)
  })
})

test.run()
