import { readFileSync } from 'node:fs'
import { join } from 'node:path'

import fc from 'fast-check'
import sharp from 'sharp'
import * as assert from 'uvu/assert'

import { decode, decodePart, jpegFrame, type Pixels, recycle } from '../../src/data/decode.js'
import { packageRoot } from '../../src/tensor/addon.js'
import { native } from '../../src/tensor/native.js'
import { Random } from '../../src/tensor/random.js'
import { rejectsError, suite, testWhere, throwsError } from '../support/suite.js'

const test = suite('jpeg')

/** Smooth waves with some noise: all coefficients occur, and none that no encoder would write. */
function raw(width: number, height: number, channels: 1 | 3, seed = 0): import('sharp').Sharp {
  const random = new Random(seed)
  const data = Uint8Array.from({ length: width * height * channels }, (_, i) => {
    const [x, y] = [Math.floor(i / channels) % width, Math.floor(i / channels / width)]
    const wave = Math.sin(x / 7 + seed) + Math.cos(y / (5 + (i % channels)))
    return Math.min(255, Math.max(0, 128 + 55 * wave + 40 * (random.uniform() - 0.5)))
  })
  return sharp(data, { raw: { width, height, channels } })
}

type Sampling = '4:2:0' | '4:4:4'
const jpegs = fc.record({
  width: fc.integer({ min: 1, max: 150 }),
  height: fc.integer({ min: 1, max: 90 }),
  quality: fc.constantFrom(5, 50, 90, 100),
  progressive: fc.boolean(),
  chromaSubsampling: fc.constantFrom<Sampling>('4:2:0', '4:4:4'),
  grey: fc.boolean(),
  seed: fc.nat(1000),
})
const encoded = ({
  width,
  height,
  grey,
  seed,
  ...how
}: { width: number; height: number; grey: boolean; seed: number } & import('sharp').JpegOptions) =>
  (grey ? raw(width, height, 1, seed).toColourspace('b-w') : raw(width, height, 3, seed)).jpeg(how).toBuffer()

test('pixels are libvips’ to the bit, of every size, quality, subsampling and order of scans', async () => {
  await fc.assert(
    fc.asyncProperty(jpegs, async (made) => {
      const bytes = await encoded(made)
      const ours = await decode(bytes, 'made.jpg')
      const { data, info } = await sharp(bytes).toColourspace('srgb').raw().toBuffer({ resolveWithObject: true })
      assert.equal([ours.width, ours.height, info.channels], [made.width, made.height, 3])
      assert.is(Buffer.compare(data, ours.data), 0)
    }),
    { numRuns: Number(process.env.DENSECL_TEST_RUNS ?? 150) },
  )
})

const fixture = (name: string): Buffer => readFileSync(join(packageRoot, 'tests', 'fixtures', 'jpeg', name))
const vipsReads = async (name: string): Promise<boolean> =>
  sharp(fixture(name))
    .raw()
    .toBuffer()
    .then(
      () => true,
      () => false,
    )
const names = ['vertical.jpg', 'horizontal.jpg']
const allRead = (await Promise.all(names.map(vipsReads))).every(Boolean)
testWhere(
  allRead,
  'this libvips has no arithmetic coding',
  test,
  '4:2:2, and 4:4:0 of arithmetic coding, are libvips’ to the bit',
  async () => {
    for (const name of names) {
      const bytes = fixture(name)
      const { data } = await sharp(bytes).toColourspace('srgb').raw().toBuffer({ resolveWithObject: true })
      assert.is(Buffer.compare(data, (await decode(bytes, name)).data), 0, name)
    }
  },
)

test('a part of an image, reduced by any factor, is cut out of the whole to the bit', async () => {
  const share = fc.double({ min: 0, max: 1, noNaN: true, maxExcluded: true })
  const parts = fc.record({ x: share, y: share, width: share, height: share, reduce: fc.constantFrom<1 | 2 | 4 | 8>(1, 2, 4, 8) })
  await fc.assert(
    fc.asyncProperty(jpegs, parts, async (made, { reduce, ...shares }) => {
      const bytes = await encoded(made)
      const [width, height] = [Math.ceil(made.width / reduce), Math.ceil(made.height / reduce)]
      const whole = decodePart(bytes, 'whole', { x: 0, y: 0, width, height }, reduce).data
      const [x, y] = [Math.floor(shares.x * width), Math.floor(shares.y * height)]
      const part = { x, y, width: 1 + Math.floor(shares.width * (width - x)), height: 1 + Math.floor(shares.height * (height - y)) }
      const { data } = decodePart(bytes, 'part', part, reduce)
      for (let row = 0; row < part.height; ++row) {
        const from = 3 * ((y + row) * width + x)
        assert.equal(data.subarray(3 * row * part.width, 3 * (row + 1) * part.width), whole.subarray(from, from + 3 * part.width))
      }
    }),
    { numRuns: Number(process.env.DENSECL_TEST_RUNS ?? 150) },
  )
})

test('a reduced image is the means of the whole, but for what its blocks leave out', async () => {
  const bytes = await raw(128, 96, 3).blur(3).jpeg({ quality: 95 }).toBuffer()
  const whole = (await decode(bytes, 'whole')).data
  for (const reduce of [2, 4, 8] as const) {
    const [width, height] = [128 / reduce, 96 / reduce]
    const { data } = decodePart(bytes, 'reduced', { x: 0, y: 0, width, height }, reduce)
    for (let i = 0; i < data.length; ++i) {
      const [x, y, c] = [Math.floor(i / 3) % width, Math.floor(i / 3 / width), i % 3]
      let sum = 0
      for (let v = 0; v < reduce; ++v) for (let u = 0; u < reduce; ++u) sum += whole[3 * ((y * reduce + v) * 128 + x * reduce + u) + c]!
      assert.ok(Math.abs(data[i]! - sum / reduce ** 2) < 12, `reduced by ${reduce}: ${data[i]} for ${sum / reduce ** 2}`)
    }
  }
})

test('the next image lies in the memory of the last one where that was given back, and nowhere else in memory that is read', async () => {
  const files = await Promise.all(
    [1, 2, 3, 4, 5].map((seed) =>
      raw(50 - 4 * seed, 30, 3, seed)
        .jpeg()
        .toBuffer(),
    ),
  )
  const fresh = await Promise.all(files.map(async (bytes) => (await sharp(bytes).toColourspace('srgb').raw().toBuffer()).toString('hex')))
  const decoded = async (i: number): Promise<Pixels> => decode(files[i]!, `${i}.jpg`)
  const hex = ({ data }: Pixels): string => Buffer.from(data).toString('hex')
  const [first, second] = [await decoded(0), await decoded(1)]
  recycle(first)
  const third = await decoded(2)
  // The first was not the last: the second is still read.
  assert.equal([first, second, third].map(hex), fresh.slice(0, 3))
  recycle(third)
  const fourth = await decoded(3)
  assert.is(fourth.data.buffer, third.data.buffer)
  const fifth = await decoded(4)
  assert.equal([second, fourth, fifth].map(hex), [fresh[1], fresh[3], fresh[4]])
})

test('what is damaged is refused: cut scans, junk among codes, another frame than the header’s, too many scans', async () => {
  const bytes = await raw(64, 48, 3).jpeg({ quality: 90 }).toBuffer()
  const scan = bytes.indexOf(Buffer.from([0xff, 0xda])) + 14
  const junk = Buffer.from(bytes)
  // A code of ones alone is none.
  junk.fill(Buffer.from([0xff, 0]), scan, scan + 200)
  await rejectsError(() => decode(junk, 'junk.jpg'), 'DECODE', /junk\.jpg: not a whole JPEG \(/)
  const short = Buffer.concat([bytes.subarray(0, scan + 100), Buffer.from([0xff, 0xd9])])
  await rejectsError(() => decode(short, 'short.jpg'), 'DECODE', /short\.jpg: not a whole JPEG \(.*premature end/i)
  const out = new Uint8Array(3 * 64 * 47)
  throwsError(() => native.decodeJpeg(bytes, [64, 47], 1, [0, 0, 64, 47], out), 'DECODE', /its frame is 64x48 pixels/)
  const progressive = await raw(64, 48, 3).jpeg({ progressive: true }).toBuffer()
  const last = progressive.lastIndexOf(Buffer.from([0xff, 0xda]))
  const scans = Buffer.concat(Array.from({ length: 501 }, () => progressive.subarray(last, -2)))
  const many = Buffer.concat([progressive.subarray(0, last), scans, Buffer.from([0xff, 0xd9])])
  await rejectsError(() => decode(many, 'many.jpg'), 'DECODE', /many\.jpg: not a whole JPEG/)
  // A sound one is decoded after all of them.
  assert.is((await decode(bytes, 'sound.jpg')).width, 64)
})

test('parts outside of the image, other formats and wrong sizes are refused', async () => {
  const bytes = await raw(20, 10, 3).jpeg().toBuffer()
  const part = { x: 0, y: 0, width: 20, height: 10 }
  throwsError(() => decodePart(bytes, 'i.jpg', { ...part, x: 1 }), 'ARGUMENT', /part of the 20x10 pixels of i\.jpg but received/)
  throwsError(() => decodePart(bytes, 'i.jpg', part, 2), 'ARGUMENT', /part of the 10x5 pixels/)
  throwsError(() => decodePart(bytes, 'i.jpg', { ...part, y: -1 }), 'ARGUMENT')
  throwsError(() => decodePart(bytes, 'i.jpg', { ...part, width: 0.5 }), 'ARGUMENT')
  throwsError(() => decodePart(Buffer.from('GIF89a'), 'i.gif', part), 'DECODE', /i\.gif: expected a JPEG/)
  throwsError(() => native.decodeJpeg(bytes, [20, 10], 3, [0, 0, 7, 4], new Uint8Array(84)), 'ARGUMENT', /1, 2, 4 or 8/)
  throwsError(() => native.decodeJpeg(bytes, [20, 10], 1, [0, 0, 20, 10], new Uint8Array(10)), 'SHAPE', /3 bytes for each pixel/)
  assert.equal(jpegFrame(bytes, 'i.jpg'), { width: 20, height: 10, components: 3 })
})

test.run()
