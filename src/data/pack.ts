/**
 * Packs a source into WebDataset shards of JPEGs no larger than training needs: files that are read in one sweep, and decoded
 * without pixels that every crop would average away.
 */
import { createHash } from 'node:crypto'
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { join } from 'node:path'
import { crc32 } from 'node:zlib'

import { z } from 'zod'

import { makeFolder, removeLeftovers, writeTextAtomic } from '../files/atomic.js'
import { FileLock, untilSure } from '../files/lock.js'
import { DenseclError, fail } from '../tensor/errors.js'
import { interrupted } from '../tensor/interruption.js'
import { decode, exifOrientation, isJpeg, jpegFrame, libvips, type Pixels } from './decode.js'
import { indexOf, indexText, type ShardList } from './shardIndex.js'
import { isBroken, type Item, loadPixels, readItemBytes, type Source } from './source.js'
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
  /** Set where it ended early: how many images of the source were seen. */
  interruptedAt?: number
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

/** What is said of the shards that are complete, in pack.json beside them: whose they are, and the image that comes next. */
const packState = z.object({
  /** SHA-256 of what the shards are made of: the options, and the names of the images. */
  source: z.string(),
  next: z.int().min(0),
  report: z.object({
    images: z.int(),
    encoded: z.int(),
    shards: z.array(z.string()),
    bytesBefore: z.number(),
    bytesAfter: z.number(),
    broken: z.array(z.object({ name: z.string(), reason: z.string() })),
  }),
})
type PackState = z.output<typeof packState>

function sourceDigest({ items, classes }: Source, options: PackOptions): string {
  const hash = createHash('sha256').update(JSON.stringify([options, classes]))
  for (const { name, label } of items) hash.update(`${name}\0${label ?? ''}\n`)
  return hash.digest('hex')
}

/** What is packed already: nothing in a folder without shards. */
function begun(folder: string, digest: string, resume: boolean): PackState {
  const path = join(folder, 'pack.json')
  const has = readdirSync(folder).some((name) => name.endsWith('.tar'))
  if (has && !resume) fail('WRITE', `${folder} holds shards already: expected a folder without .tar files, or --resume to go on with them`)
  if (!existsSync(path) || (!has && !resume)) {
    if (has) fail('WRITE', `${folder} holds shards, but no pack.json that says how far they go: expected a folder without .tar files`)
    return { source: digest, next: 0, report: { images: 0, encoded: 0, shards: [], bytesBefore: 0, bytesAfter: 0, broken: [] } }
  }
  let state: PackState
  try {
    state = packState.parse(JSON.parse(readFileSync(path, 'utf8')))
  } catch {
    return fail('FORMAT', `${path}: is damaged; pack into another folder`)
  }
  if (state.source !== digest) fail('CONFIG', `pack: ${path} is of other images or options; pack into another folder`)
  return state
}

/**
 * Writes shards into `folder` in the order of the source; broken images are left out and named. The folder must hold no shards, or with
 * `resume` those that were written before the same was cut off, which are kept. Throws RUN while another process packs into it.
 */
export async function packSource(
  source: Source,
  folder: string,
  options: PackOptions & { resume?: boolean },
  onImage: (done: number) => void = () => undefined,
): Promise<PackReport> {
  makeFolder(folder)
  const lock = new FileLock(join(folder, 'pack.lock'))
  await untilSure(lock.path)
  const holder = lock.take()
  if (holder !== undefined) fail('RUN', `${folder}: process ${holder.pid} on ${holder.host} packs into it since ${holder.since}`)
  try {
    return await packInto(source, folder, options, onImage)
  } finally {
    lock.release()
  }
}

async function packInto(
  source: Source,
  folder: string,
  { resume = false, ...options }: PackOptions & { resume?: boolean },
  onImage: (done: number) => void,
): Promise<PackReport> {
  const digest = sourceDigest(source, options)
  removeLeftovers(folder)
  const { next, report } = begun(folder, digest, resume)
  const keep = (following: number): void =>
    writeTextAtomic(join(folder, 'pack.json'), `${JSON.stringify({ source: digest, next: following, report })}\n`)
  // Before the first shard gets its name: whose it is must be known from then on.
  if (next === 0) keep(0)
  /** The images of the shard that is written. */
  let listed: ShardList['images'] = []
  /** Whatever ends the process from here on, this shard need not be written again. */
  const complete = (shard: TarWriter, following: number): void => {
    shard.close()
    writeTextAtomic(indexOf(shard.path), indexText(listed, shard.bytes))
    listed = []
    report.shards.push(shard.path)
    keep(following)
  }
  let shard: TarWriter | undefined
  let last = next
  try {
    for await (const { item, index, packed } of inOrder(source.items, next, (item) => pack(item, options))) {
      if (interrupted()) {
        shard?.abandon()
        return { ...begun(folder, digest, true).report, interruptedAt: index }
      }
      last = index + 1
      if (packed instanceof DenseclError) report.broken.push({ name: item.name, reason: packed.message })
      else {
        shard ??= new TarWriter(join(folder, `shard-${String(report.shards.length).padStart(6, '0')}.tar`))
        const key = String(index).padStart(9, '0')
        const [name, label] = [`${key}.jpg`, item.label === undefined ? {} : { label: item.label }]
        listed.push({ name, offset: shard.add(name, packed.jpeg), size: packed.jpeg.length, crc: crc32(packed.jpeg), ...label })
        if (item.label !== undefined) shard.add(`${key}.cls`, Buffer.from(String(item.label)))
        report.images += 1
        report.encoded += Number(packed.encoded)
        report.bytesBefore += packed.before
        report.bytesAfter += packed.jpeg.length
        if (shard.bytes >= options.shardBytes) {
          complete(shard, last)
          shard = undefined
        }
      }
      onImage(index + 1)
    }
    if (shard !== undefined) complete(shard, last)
  } catch (error) {
    shard?.abandon()
    throw error
  }
  if (source.classes !== undefined && !existsSync(join(folder, 'classes.txt')))
    writeTextAtomic(join(folder, 'classes.txt'), source.classes.map((name) => `${name}\n`).join(''))
  return report
}

/** Several images at a time from `first` on, given back in their order: libvips works beside this thread. */
async function* inOrder(
  items: readonly Item[],
  first: number,
  work: (item: Item) => Promise<Packed>,
): AsyncGenerator<{ item: Item; index: number; packed: Packed | DenseclError }> {
  const ahead = 2 * availableParallelism()
  const running: Promise<Packed | DenseclError>[] = []
  const start = (index: number): void => {
    if (index < items.length)
      running.push(work(items[index]!).catch((error: unknown) => (isBroken(error) ? error : Promise.reject(error as Error))))
  }
  for (let i = 0; i < ahead; ++i) start(first + i)
  for (let index = first; index < items.length; ++index) {
    const packed = await running.shift()!
    start(index + ahead)
    yield { item: items[index]!, index, packed }
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
