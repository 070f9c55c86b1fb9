/** Pixels: masks, and images as training decodes them. */
import { createRequire } from 'node:module'
import { crc32, deflateSync } from 'node:zlib'

import fc from 'fast-check'

import { channelsOf, decode, decodeChannels, maxPixels } from '../../../src/data/decode.js'
import { decodeMask } from '../../../src/data/masks.js'
import { decodeNpy, isNpy } from '../../../src/data/npy.js'
import type { FuzzedReader } from '../reader.js'

const big = (value: number): Buffer => {
  const bytes = Buffer.alloc(4)
  bytes.writeUInt32BE(value >>> 0)
  return bytes
}
function chunk(type: string, data: Buffer, damaged = false): Buffer {
  const body = Buffer.concat([Buffer.from(type, 'latin1'), data])
  return Buffer.concat([big(data.length), body, big(damaged ? 0 : crc32(body))])
}
const signature = Buffer.from('\x89PNG\r\n\x1a\n', 'latin1')
const frame = (width: number, height: number, depth: number, type: number, interlace = 0): Buffer =>
  chunk('IHDR', Buffer.concat([big(width), big(height), Buffer.from([depth, type, 0, 0, interlace])]))
const end = chunk('IEND', Buffer.alloc(0))
const soundMasks = [
  [frame(3, 2, 8, 0), chunk('IDAT', deflateSync(Buffer.from([0, 0, 1, 2, 0, 3, 4, 255]))), end],
  [frame(5, 2, 4, 3), chunk('PLTE', Buffer.alloc(48)), chunk('IDAT', deflateSync(Buffer.from([0, 0x12, 0x34, 0x50, 0, 1, 0, 0]))), end],
  [frame(9, 2, 1, 0), chunk('IDAT', deflateSync(Buffer.from([0, 0xff, 0x80, 1, 0, 0]))), end],
]
const sides = fc.oneof(
  { weight: 4, arbitrary: fc.integer({ min: 1, max: 12 }) },
  { weight: 1, arbitrary: fc.constantFrom(0, 1, 255, 4096, 20_001, 2 ** 31, 2 ** 32 - 1) },
)

/** PNGs whose checksums hold. */
const png = fc
  .record({
    width: sides,
    height: sides,
    depth: fc.constantFrom(1, 2, 4, 8, 8, 8, 16, 3),
    type: fc.constantFrom(0, 0, 3, 3, 2, 4, 6, 1),
    interlace: fc.constantFrom(0, 0, 0, 1, 2),
    samples: fc.uint8Array({ minLength: 1, maxLength: 200 }),
    palette: fc.constantFrom(0, 3, 48, 768, 5),
    extra: fc.constantFrom('', 'tRNS', 'iCCP', 'tEXt', 'zTXt', 'acTL', 'fdAT', 'pHYs', 'IHDR', 'gAMA', 'CgBI'),
    data: fc.uint8Array({ maxLength: 32 }),
    split: fc.boolean(),
    damaged: fc.constantFrom(false, false, false, true),
  })
  .map(({ width, height, depth, type, interlace, samples, palette, extra, data, split, damaged }) => {
    const row = Math.ceil((width * depth) / 8) + 1
    // Rows as they should be, where that is few bytes.
    const rows = row * height < 4096 ? Buffer.alloc(row * height, samples) : Buffer.from(samples)
    if (row * height < 4096) for (let y = 0; y < height; ++y) rows[y * row] = samples[y % samples.length]!
    for (let y = 0; y < height && row * height < 4096; ++y) rows[y * row]! %= 6
    const deflated = deflateSync(rows)
    const cut = split ? deflated.length >> 1 : deflated.length
    return Buffer.concat([
      signature,
      frame(width, height, depth, type, interlace),
      ...(palette > 0 && type === 3 ? [chunk('PLTE', Buffer.alloc(palette))] : []),
      ...(extra === '' ? [] : [chunk(extra, Buffer.from(data))]),
      chunk('IDAT', deflated.subarray(0, cut), damaged),
      ...(split ? [chunk('IDAT', deflated.subarray(cut))] : []),
      end,
    ])
  })

export const mask: FuzzedReader = {
  file: 'fuzzed.png',
  pixels: true,
  seeds: () => soundMasks.map((parts) => Buffer.concat([signature, ...parts])),
  words: ['IHDR', 'PLTE', 'IDAT', 'IEND', 'tRNS', 'iCCP', 'acTL', '\0\0\0\0', '\xff\xff\xff\xff'],
  structured: () => png,
  read: (path, bytes) => decodeMask(bytes, path, 21),
}

const array = (descr: string, shape: string, values: Uint8Array, fortran = 'False', version = 1, length?: number): Buffer => {
  const header = Buffer.from(`{'descr': '${descr}', 'fortran_order': ${fortran}, 'shape': (${shape}), }`.padEnd(100, ' ') + '\n', 'latin1')
  const size = Buffer.alloc(version === 1 ? 2 : 4)
  size.writeUIntLE((length ?? header.length) % 2 ** (8 * size.length), 0, size.length)
  return Buffer.concat([Buffer.from('\x93NUMPY', 'latin1'), Buffer.from([version, 0]), size, header, values])
}
const mostly = <T>(usual: T[], ...others: T[]): fc.Arbitrary<T> =>
  fc.oneof({ weight: 6, arbitrary: fc.constantFrom(...usual) }, { weight: 1, arbitrary: fc.constantFrom(...others) })
const counted = (count: number): Uint8Array => Uint8Array.from({ length: count }, (_, i) => i)

export const npy: FuzzedReader = {
  file: 'fuzzed.npy',
  pixels: true,
  seeds: () => [
    array('|u1', '4, 3', counted(12)),
    array('|u1', '2, 3, 9', counted(54)),
    array('<u2', '2, 3, 3', counted(36), 'False', 2),
    array('|u1', '2, 3, 1', counted(6), 'False', 3),
  ],
  words: [
    '|u1',
    '<u2',
    '<f4',
    '>u2',
    '|b1',
    'True',
    'False',
    ', ',
    '()',
    '(',
    ')',
    '1e9',
    '-1',
    '4294967296',
    "'shape'",
    "'descr'",
    '{',
    '}',
  ],
  structured: () =>
    fc
      .record({
        descr: mostly(['|u1', '<u2'], '>u2', '<f4', '|O', '', "|u1'", '|u1\0'),
        shape: fc.oneof(
          {
            weight: 4,
            arbitrary: fc.array(fc.integer({ min: 1, max: 6 }), { minLength: 1, maxLength: 4 }).map((sides) => sides.join(', ')),
          },
          { weight: 1, arbitrary: fc.array(sides, { minLength: 1, maxLength: 4 }).map((all) => all.join(',')) },
          { weight: 1, arbitrary: fc.constantFrom('4,', ',', '3,,4', '1e3, 2', '-1, -12', '99999999999999999999, 1', '0x3, 4', '3 4') },
        ),
        fortran: mostly(['False'], 'True', '0', ''),
        version: mostly([1, 2, 3], 0, 255),
        length: mostly<number | undefined>([undefined], 0, 20, 65_535, 2 ** 31, 2 ** 32 - 1),
        values: fc.integer({ min: 0, max: 150 }).map(counted),
        fitting: mostly([true], false),
      })
      .map(({ descr, shape, fortran, version, length, values, fitting }) => {
        const count = shape.split(',').reduce((product, side) => product * (Number(side) || 1), 1) * (descr === '<u2' ? 2 : 1)
        return array(descr, shape, fitting && count > 0 && count < 5000 ? counted(count) : values, fortran, version, length)
      }),
  async read(path, bytes) {
    const file = Buffer.from(bytes)
    // What is no array any more goes the way of other images.
    const channels = isNpy(file) ? channelsOf(decodeNpy(file, path, maxPixels)) : 3
    const { width, height, data } = await decodeChannels(file, path, channels)
    if (data.length !== width * height * channels) throw new Error(`${width}x${height} pixels of ${channels} are ${data.length} bytes`)
  },
}

/** The sizes that are asked for change the way that libvips takes. */
const mostPixels = [undefined, 100] as const
const jpegWords = [
  '\xff\xd8',
  '\xff\xd9',
  '\xff\xc0',
  '\xff\xc2',
  '\xff\xc4',
  '\xff\xda',
  '\xff\xdb',
  '\xff\xdd',
  '\xff\xe1',
  '\xff\xee',
  'Exif\0\0',
  'II*\0',
]

export const image: FuzzedReader = {
  file: 'fuzzed.jpg',
  pixels: true,
  async seeds() {
    const sharp = createRequire(import.meta.url)('sharp') as {
      default?: typeof import('sharp')
    } & typeof import('sharp') as unknown as (typeof import('sharp'))['default']
    const noise = (channels: 1 | 3 | 4, width = 24, height = 16) =>
      sharp(Buffer.from(Array.from({ length: width * height * channels }, (_, i) => (i * 2654435761) >>> 24)), {
        raw: { width, height, channels },
      })
    const cmyk = noise(4).toColourspace('cmyk').jpeg()
    return Promise.all(
      [
        noise(3).jpeg({ quality: 60 }),
        noise(3).jpeg({ quality: 40, progressive: true }),
        noise(1).jpeg(),
        noise(3).withMetadata({ orientation: 6 }).jpeg(),
        cmyk,
        noise(3).png(),
        noise(4).png({ palette: true }),
        noise(3).webp({ quality: 50 }),
        noise(4).webp({ lossless: true }),
        noise(3).tiff(),
        noise(3).gif(),
      ].map((each) => each.toBuffer()),
    )
  },
  words: [...jpegWords, 'RIFF', 'WEBP', 'VP8 ', 'VP8L', 'VP8X', 'IHDR', 'IDAT', '<svg xmlns="http://www.w3.org/2000/svg">', 'MM\0*'],
  structured: () => png,
  async read(path, bytes) {
    const { width, height, data } = await decode(Buffer.from(bytes), path, mostPixels[bytes.length % 2])
    if (data.length !== width * height * 3) throw new Error(`${width}x${height} pixels are ${data.length} bytes`)
  },
}
