/**
 * JPEG files that the device decodes itself: nvJPEG on a GPU that has it, a stand-in for it on `simt`, which has the decoder and settings
 * of the CPU, so that views must be the CPU's to the bit.
 */
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

import sharp, { type Sharp } from 'sharp'
import * as assert from 'uvu/assert'

import { fileForGpu } from '../../src/data/decode.js'
import { Loader } from '../../src/data/loader.js'
import type { LoaderOptions } from '../../src/data/loaderOptions.js'
import { loadNvjpeg, openNvjpeg } from '../../src/data/nvjpeg.js'
import { scene } from '../../src/data/scenes.js'
import type { Item } from '../../src/data/source.js'
import { DenseclError } from '../../src/tensor/errors.js'
import { native } from '../../src/tensor/native.js'
import { Tensor } from '../../src/tensor/tensor.js'
import { device } from '../support/devices.js'
import { nvjpegStandIn } from '../support/nvjpeg.js'
import { hasStandIns, noStandIns } from '../support/standIn.js'
import { rejectsError, suite, testWhere, throwsError, withFolder } from '../support/suite.js'

const test = suite(`nvJPEG on ${device}`, device)

const onSimt = device === 'simt'
if (onSimt && hasStandIns) process.env.DENSECL_NVJPEG = nvjpegStandIn()

/** Why nvJPEG cannot be used here; empty where it can. */
function reason(): string {
  if (onSimt && !hasStandIns) return noStandIns
  try {
    loadNvjpeg()
    return ''
  } catch (error) {
    if (!(error instanceof DenseclError)) throw error
    return error.message
  }
}
const missing = reason()
const has = missing === ''

const picture = (seed: number): Sharp => {
  const { data, width, height } = scene(seed, 0).pixels
  return sharp(data, { raw: { width, height, channels: 3 } })
}
/** A JPEG of which a stretch of codes is no code. */
async function damaged(seed: number): Promise<Buffer> {
  const bytes = await picture(seed).jpeg().toBuffer()
  const scan = bytes.indexOf(Buffer.from([0xff, 0xda])) + 14
  return bytes.fill(Buffer.from([0xff, 0]), scan, scan + 200)
}

/** Images that the engines of a GPU take, and others. */
const plain: Record<string, () => Sharp> = {
  'a.jpg': () => picture(1).jpeg(),
  'b.jpg': () => picture(2).jpeg({ chromaSubsampling: '4:4:4', quality: 95 }),
  'c.jpg': () => picture(3).resize(97, 61).jpeg({ quality: 40 }),
  'd.jpg': () => picture(4).toColourspace('b-w').jpeg(),
}
const others: Record<string, () => Sharp> = {
  'e.jpg': () => picture(5).jpeg({ progressive: true }),
  'f.jpg': () => picture(6).toColourspace('cmyk').jpeg(),
  'g.jpg': () => picture(7).withMetadata({ orientation: 6 }).jpeg(),
  'h.jpg': () => picture(8).resize(400, 300).jpeg(),
  'i.png': () => picture(9).png(),
}

/** The items of images that are written to a folder, in classes by their place. */
async function itemsIn(folder: string, images: Record<string, () => Sharp | Promise<Buffer>>): Promise<Item[]> {
  const items: Item[] = []
  for (const [name, make] of Object.entries(images)) {
    const made = make()
    const path = join(folder, name)
    writeFileSync(path, await ('toBuffer' in made ? made.toBuffer() : made))
    items.push({ kind: 'file', name, path, label: items.length })
  }
  return items
}

interface Seen {
  views: Float32Array[]
  labels: Int32Array[]
  loader: Loader
}

/** What a Loader gives of all items, in some epochs. */
async function load(items: Item[], options: Partial<LoaderOptions>, epochs = 1): Promise<Seen> {
  const { height, width } = scene(1, 0).pixels
  const loader = new Loader({
    items,
    imageSize: 32,
    batchSize: items.length,
    views: 'augmented',
    device,
    mostPixels: height * width,
    workers: 2,
    cacheMegabytes: 0,
    maxBroken: 0.5,
    ...options,
  })
  const seen: Seen = { views: [], labels: [], loader }
  const requests = Array.from({ length: epochs }, (_, epoch) => ({ epoch, indices: Int32Array.from(items.keys()) }))
  try {
    for await (const batch of loader.batches(requests)) {
      seen.labels.push(batch.labels)
      for (const view of batch.views()) {
        seen.views.push(Float32Array.from(view.data()))
        view.dispose()
      }
    }
  } finally {
    await loader.close()
  }
  return seen
}

/** On a GPU another inverse transform rounds otherwise: of normalised values, which are 4.4 at most, single ones may differ by more. */
function assertSame(actual: Seen, expected: Seen): void {
  assert.is(actual.views.length, expected.views.length)
  for (const [at, view] of actual.views.entries()) {
    const other = expected.views[at]!
    assert.is(view.length, other.length)
    const differences = view.map((value, i) => Math.abs(value - other[i]!))
    const mean = differences.reduce((sum, value) => sum + value, 0) / differences.length
    assert.ok(onSimt ? differences.every((value) => value === 0) : mean < 0.02, `view ${at} differs by ${mean} on the average`)
  }
  assert.equal(actual.labels, expected.labels)
}

testWhere(has, missing, test, 'views of a batch of all kinds are those of images that workers decode', () =>
  withFolder(async (folder) => {
    const items = await itemsIn(folder, { ...others, ...plain })
    for (const cacheMegabytes of [0, 64]) {
      const [onCpu, onGpu] = [await load(items, { cacheMegabytes }, 3), await load(items, { cacheMegabytes, decode: 'gpu' }, 3)]
      assertSame(onGpu, onCpu)
      assert.is(onGpu.loader.spent.onGpu, 3 * Object.keys(plain).length)
      assert.is(onGpu.loader.spent.images, 3 * items.length)
      assert.is(onCpu.loader.spent.onGpu, 0)
    }
  }),
)

testWhere(has, missing, test, 'a damaged file is named and replaced as it is on the CPU, and not given to the GPU again', () =>
  withFolder(async (folder) => {
    const cut = async (): Promise<Buffer> => (await picture(11).jpeg().toBuffer()).subarray(0, 900)
    const items = await itemsIn(folder, { ...plain, 'damaged.jpg': () => damaged(10), 'cut.jpg': cut })
    const [onCpu, onGpu] = [await load(items, {}, 6), await load(items, { decode: 'gpu' }, 6)]
    assertSame(onGpu, onCpu)
    assert.equal([...onGpu.loader.broken.keys()].sort(), ['cut.jpg', 'damaged.jpg'])
    assert.equal(onGpu.loader.broken, onCpu.loader.broken)
    assert.equal([...onGpu.loader.refused.keys()], ['damaged.jpg'])
    assert.match(onGpu.loader.refused.get('damaged.jpg')!, /bad JPEG|not supported|failed|incomplete/)
    assert.is(onGpu.loader.spent.images, 6 * items.length)
    await rejectsError(() => load(items, { decode: 'gpu', maxBroken: 0 }), 'DATA', /cannot be read, more than maxBroken 0 allows: .*jpg/)
  }),
)

/** Calls `body` while the stand-in misbehaves so. */
async function misbehaving<Result>(how: Record<string, string>, body: () => Promise<Result>): Promise<Result> {
  Object.assign(process.env, how)
  try {
    return await body()
  } finally {
    for (const name of Object.keys(how)) delete process.env[name]
  }
}
const told = 'the library of a GPU does not fail when it is told to'

testWhere(has && onSimt, missing || told, test, 'what it refuses of sound files, workers decode from then on', () =>
  withFolder(async (folder) => {
    const items = await itemsIn(folder, plain)
    const onCpu = await load(items, {}, 6)
    for (const cacheMegabytes of [0, 64]) {
      const log = join(folder, `${cacheMegabytes}.txt`)
      const how = { NVJPEG_STANDIN_REFUSE: '97', NVJPEG_STANDIN_LOG: log }
      const onGpu = await misbehaving(how, () => load(items, { decode: 'gpu', cacheMegabytes }, 6))
      assertSame(onGpu, onCpu)
      assert.equal([...onGpu.loader.refused], [['c.jpg', 'this JPEG is not supported']])
      assert.is(onGpu.loader.broken.size, 0)
      assert.is(onGpu.loader.spent.onGpu, 6 * (items.length - 1))
      // The four batches that were sent ahead are refused, and tried file by file.
      const refused = ['decode 4 4', 'decode 1 0', 'decode 1 0', 'decode 1 4', 'decode 1 0']
      const lines = readFileSync(log, 'utf8').trim().split('\n')
      assert.equal(lines, [refused, refused, refused, refused, ['decode 3 0', 'decode 3 0']].flat())
    }
  }),
)

testWhere(has && onSimt, missing || told, test, 'what fails whatever the files are ends the work in a sentence', () =>
  withFolder(async (folder) => {
    const items = await itemsIn(folder, plain)
    const failing = (status: string) => misbehaving({ NVJPEG_STANDIN_DECODE: status }, () => load(items, { decode: 'gpu' }))
    for (const [status, said] of [
      ['5', 'no memory'],
      ['1', 'not initialized'],
    ] as const)
      await rejectsError(() => failing(status), 'TOOL', new RegExp(`decoding JPEGs: nvJPEG says ${said}`))
    // What it says of each file is no failure: workers decode all of them.
    const { spent, refused } = (await failing('77')).loader
    assert.is(spent.onGpu, 0)
    assert.equal(
      [...refused.values()],
      items.map(() => 'status 77'),
    )
  }),
)

test('what a GPU takes is said by the header alone', async () => {
  const most = 300 * 300
  for (const [images, fits] of [
    [plain, true],
    [others, false],
  ] as const)
    for (const [name, make] of Object.entries(images))
      assert.is(fileForGpu(await make().toBuffer(), name, name === 'h.jpg' ? 399 * 300 : most) !== undefined, fits, name)
  const bytes = await plain['c.jpg']!().toBuffer()
  const { data, ...size } = fileForGpu(bytes, 'c.jpg', 97 * 61)!
  assert.equal(size, { width: 97, height: 61, encoded: true })
  assert.is(data, bytes)
  assert.is(fileForGpu(bytes, 'c.jpg', 97 * 61 - 1), undefined)
  throwsError(() => fileForGpu(bytes.subarray(0, -2), 'c.jpg', most), 'DECODE', /c\.jpg: the JPEG is cut off/)
  // A file that is longer than its pixels has no room in their place.
  const long = Buffer.concat([bytes, Buffer.alloc(3 * 97 * 61), Buffer.from([0xff, 0xd9])])
  assert.is(fileForGpu(long, 'c.jpg', 97 * 61), undefined)
})

testWhere(has, missing, test, 'a decoder is opened once, for views that the device makes', () => {
  assert.match(openNvjpeg(device), /^nvJPEG 1\d\.\d+\.\d+, by /)
  assert.is(openNvjpeg(device), openNvjpeg(device))
  const loading = { items: [] as Item[], imageSize: 32, batchSize: 1, decode: 'gpu' as const }
  for (const options of [
    { ...loading, views: 'augmented', device: 'cpu' },
    { ...loading, views: 'centre', device },
  ] as const)
    throwsError(
      () => new Loader(options),
      'ARGUMENT',
      /expected a GPU that makes the views of colour images, for its decoder, but received/,
    )
})

testWhere(has, missing, test, 'images start and end inside of their memory', () => {
  const target = Tensor.empty([100], 'u8', device)
  const memory = new Uint8Array(100)
  const start = (offset: number, ...row: number[]) => native.startImages!(target.handle, memory, offset, Float64Array.from(row))
  throwsError(() => start(0, 10, 0, 4, 8), 'SHAPE', /an image of 4x8 pixels at byte 10 does not fit into 100 bytes/)
  throwsError(() => start(50, 0, 0, 4, 5), 'SHAPE', /4x5 pixels at byte 0 does not fit into 50 bytes/)
  throwsError(() => start(0, 90, 11, 1, 1), 'ARGUMENT', /the bytes of a file/)
  throwsError(() => start(0, 1.5, 0, 1, 1), 'ARGUMENT', /the place of an image/)
  throwsError(() => start(0, 0, 0, 1), 'SHAPE', /rows of 4 numbers/)
  target.dispose()
})

test.run()
