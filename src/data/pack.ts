/**
 * Packs a source into WebDataset shards of JPEGs no larger than training needs: files that are read in one sweep, and decoded
 * without pixels that every crop would average away.
 */
import { existsSync, mkdirSync, readdirSync, writeFileSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { join } from 'node:path'

import { DenseclError, fail } from '../tensor/errors.js'
import { decode, exifOrientation, isJpeg, jpegFrame, libvips, type Pixels } from './decode.js'
import { type Item, loadPixels, readItemBytes, type Source } from './source.js'
import { TarWriter } from './tar.js'

interface PackOptions {
  /** Images of more pixels are reduced to about this many. */
  mostPixels: number
  /** Quality of the JPEGs that are written anew, 1 to 100. */
  quality: number
  /** A shard is closed when it has this many bytes. */
  shardBytes: number
}

interface PackReport {
  images: number
  /** Written anew: too large, rotated, or no RGB JPEG. The others are copied byte for byte. */
  encoded: number
  shards: string[]
  bytesBefore: number
  bytesAfter: number
  broken: { name: string; reason: string }[]
}

interface Packed {
  jpeg: Buffer
  encoded: boolean
  before: number
}

/** Writes shards into `folder`, which must not hold any, in the order of the source; broken images are left out and named. */
export async function packSource(
  source: Source,
  folder: string,
  options: PackOptions,
  onImage: (done: number) => void = () => undefined,
): Promise<PackReport> {
  mkdirSync(folder, { recursive: true })
  if (readdirSync(folder).some((name) => name.endsWith('.tar')))
    fail('WRITE', `${folder} holds shards already: expected a folder without .tar files`)
  const report: PackReport = { images: 0, encoded: 0, shards: [], bytesBefore: 0, bytesAfter: 0, broken: [] }
  let shard: TarWriter | undefined
  try {
    for await (const { item, index, packed } of inOrder(source.items, (item) => pack(item, options))) {
      if (packed instanceof DenseclError) report.broken.push({ name: item.name, reason: packed.message })
      else {
        if (shard === undefined) {
          shard = new TarWriter(join(folder, `shard-${String(report.shards.length).padStart(6, '0')}.tar`))
          report.shards.push(shard.path)
        }
        const key = String(index).padStart(9, '0')
        shard.add(`${key}.jpg`, packed.jpeg)
        if (item.label !== undefined) shard.add(`${key}.cls`, Buffer.from(String(item.label)))
        report.images += 1
        report.encoded += Number(packed.encoded)
        report.bytesBefore += packed.before
        report.bytesAfter += packed.jpeg.length
        if (shard.bytes >= options.shardBytes) {
          shard.close()
          shard = undefined
        }
      }
      onImage(index + 1)
    }
    shard?.close()
  } catch (error) {
    shard?.abandon()
    throw error
  }
  if (source.classes !== undefined && !existsSync(join(folder, 'classes.txt')))
    writeFileSync(join(folder, 'classes.txt'), source.classes.map((name) => `${name}\n`).join(''))
  return report
}

/** Several images at a time, given back in their order: libvips works beside this thread. */
async function* inOrder(
  items: readonly Item[],
  work: (item: Item) => Promise<Packed>,
): AsyncGenerator<{ item: Item; index: number; packed: Packed | DenseclError }> {
  const ahead = 2 * availableParallelism()
  const running: Promise<Packed | DenseclError>[] = []
  const start = (index: number): void => {
    if (index < items.length)
      running.push(work(items[index]!).catch((error: unknown) => (error instanceof DenseclError ? error : Promise.reject(error as Error))))
  }
  for (let i = 0; i < ahead; ++i) start(i)
  for (const [index, item] of items.entries()) {
    const packed = await running.shift()!
    start(index + ahead)
    yield { item, index, packed }
  }
}

/** A JPEG of at most about mostPixels: the file itself where it is one. Every image is decoded once, so that none is broken later. */
async function pack(item: Item, { mostPixels, quality }: PackOptions): Promise<Packed> {
  if (item.kind === 'scene') return { jpeg: await encode(await loadPixels(item), quality), encoded: true, before: 0 }
  const bytes = await readItemBytes(item)
  const pixels = await decode(bytes, item.name, mostPixels)
  if (isJpeg(bytes) && exifOrientation(bytes) === 1) {
    const { width, height, components } = jpegFrame(bytes, item.name)
    if (components === 3 && width * height <= mostPixels) return { jpeg: bytes, encoded: false, before: bytes.length }
  }
  return { jpeg: await encode(pixels, quality), encoded: true, before: bytes.length }
}

/** Full chroma resolution: colours are augmented later. */
async function encode({ width, height, data }: Pixels, quality: number): Promise<Buffer> {
  const sharp = await libvips('pack')
  return sharp(data, { raw: { width, height, channels: 3 } })
    .jpeg({ quality, chromaSubsampling: '4:4:4' })
    .toBuffer()
}
