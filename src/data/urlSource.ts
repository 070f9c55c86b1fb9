/** Tar shards on other machines, by a pattern of addresses or a list of them: what each holds is listed once and kept in the cache. */
import { createHash } from 'node:crypto'
import { closeSync, openSync, readSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { crc32 } from 'node:zlib'

import { z } from 'zod'

import { cacheFolder } from '../files/cache.js'
import { makeFolder } from '../files/atomic.js'
import { FileLock } from '../files/lock.js'
import { fail } from '../tensor/errors.js'
import { stopIfInterrupted, unlessInterrupted } from '../tensor/interruption.js'
import { addressesOf, isAddress, shownAddress, withSecrets } from './addresses.js'
import { blockBytes, BlockFolder, type CacheLimits, openCache } from './blockCache.js'
import { lookAt, readRange, readTextAt, type RemoteFile } from './fetching.js'
import { blockLength, fetchWhole, type RemoteShard } from './remoteShard.js'
import { type DataSource, isFileOf, type Item, readText, type Skipped, Skips, type Source } from './source.js'
import { labelled, type Listed, mostLabelBytes, ShardListing } from './tarSource.js'
import { readTar } from './tarReader.js'

/** Where shards of other machines are kept. */
export interface ShardCache {
  /** `shards` in the user's cache folder, or DENSECL_SHARD_CACHE, when absent. */
  shardCache?: string | null
  /** 50, or DENSECL_SHARD_CACHE_GIGABYTES, when absent. */
  shardCacheGigabytes?: number | null
}

export const urlSource = {
  format: 'url',
  describe: 'addresses https://... of tar shards, or a text list of them',
  virtual: true,
  recognises: (path) => isAddress(path) || isListOfAddresses(path),
  open: (path, _, cache) => readShards(path, cacheOf(cache)),
} as const satisfies DataSource

function cacheOf({ shardCache, shardCacheGigabytes }: ShardCache): CacheLimits {
  const stated = process.env.DENSECL_SHARD_CACHE_GIGABYTES
  const gigabytes = shardCacheGigabytes ?? (stated === undefined ? 50 : Number(stated))
  if (!(gigabytes > 0)) fail('CONFIG', `DENSECL_SHARD_CACHE_GIGABYTES is ${stated}: expected a number above 0`)
  return { folder: shardCache ?? process.env.DENSECL_SHARD_CACHE ?? join(cacheFolder(), 'shards'), bytes: gigabytes * 1e9 }
}

/** Whether the first line of a text file, comments aside, is an address. */
function isListOfAddresses(path: string): boolean {
  if (!isFileOf(path, '.txt', '.lst', '.csv')) return false
  const start = Buffer.alloc(2 ** 16)
  const descriptor = openSync(path, 'r')
  try {
    const lines = start.toString('utf8', 0, readSync(descriptor, start)).split(/\r\n|\n|\r/)
    return isAddress(lines.map((line) => line.trim()).find((line) => line !== '' && !line.startsWith('#')) ?? '')
  } finally {
    closeSync(descriptor)
  }
}

/** The addresses of `path`, a pattern or a list of patterns. A list is not shown in messages: its lines may hold secrets. */
function allAddresses(path: string): string[] {
  if (isAddress(path)) return addressesOf(withSecrets(path))
  return readText(path)
    .split(/\r\n|\n|\r/)
    .map((line) => line.trim())
    .flatMap((line, i) => {
      if (line === '' || line.startsWith('#')) return []
      if (!isAddress(line) || /\s/.test(line))
        fail('DATA', `data: line ${i + 1} of ${path} is no address: expected one https://... in each line, as in the first`)
      return addressesOf(line)
    })
}

/** The last part of the path of an address. */
const nameOf = (url: string): string => decodeURIComponent(new URL(url).pathname.split('/').at(-1)!)

/** Shards that are looked at or listed at a time. */
const together = 8

/** Milliseconds between two words about shards that are being listed. */
const wordEvery = 10_000

async function readShards(path: string, cache: CacheLimits): Promise<Omit<Source, 'format'>> {
  const urls = allAddresses(path)
  const twice = urls.find((url, i) => urls.indexOf(url) !== i)
  if (twice !== undefined) fail('DATA', `data: ${path} names ${shownAddress(twice)} twice: expected each shard once`)
  openCache(cache)
  const controller = new AbortController()
  const { signal } = controller
  try {
    const files = await unlessInterrupted(forEach(urls, 2 * together, (url) => lookAt(url, signal)))
    const shards = planned(files, cache)
    const progress = new Progress(shards)
    const lists = await unlessInterrupted(forEach(shards, together, (shard) => listOf(shard, progress, signal)))
    const items: Item[] = []
    for (const [i, { images }] of lists.entries())
      for (const { name, offset, size, crc, label } of images)
        items.push({ name, kind: 'remote', shard: shards[i]!, offset, size, crc, ...(label === undefined ? {} : { label }) })
    const classes = items.length > 0 && items.every(({ label }) => label !== undefined) ? await classesBeside(urls[0]!, signal) : ''
    return { ...labelled(path, items, () => classes), skipped: mergeSkips(lists.map(({ skipped }) => skipped)) }
  } finally {
    controller.abort()
  }
}

/**
 * Which shards are kept: the first that fit into nine tenths of the cache; of the others each image is fetched when it is wanted. In a
 * random order what is used last says nothing of what is used next: blocks that push each other out would be fetched for one image each.
 * Throws DATA where a shard must be kept and does not fit.
 */
function planned(files: readonly RemoteFile[], cache: CacheLimits): RemoteShard[] {
  const room = 0.9 * cache.bytes
  const whole = files.filter(({ ranges }) => !ranges)
  const must = whole.reduce((sum, { size }) => sum + size, 0)
  const gigabytes = (bytes: number): string => `${(bytes / 1e9).toPrecision(3)} GB`
  if (must > room)
    fail(
      'DATA',
      `data: the server of ${shownAddress(whole[0]!.url)} gives no parts of files, so that all ${whole.length} shards, ` +
        `${gigabytes(must)}, must be kept in ${cache.folder}: expected a cache of at least ${gigabytes(must / 0.9)} ` +
        `(--shard-cache-gigabytes) but received ${gigabytes(cache.bytes)}`,
    )
  let free = room - must
  return files.map((file) => {
    const keep = !file.ranges || file.size <= free
    if (keep && file.ranges) free -= file.size
    return { ...file, cache, key: keyOf(file), keep }
  })
}

/** Two versions of a file have two keys; one has the same whatever its address is signed with, if the server tells versions apart. */
function keyOf({ url, size, version }: RemoteFile): string {
  const { origin, pathname, search } = new URL(url)
  return createHash('sha256')
    .update(JSON.stringify([origin, pathname, size, version === '' ? search : version]))
    .digest('hex')
    .slice(0, 32)
}

/** What a shard holds. */
interface ShardList {
  images: (Listed & { crc: number })[]
  skipped: Skipped[]
}

const shardList = z.object({
  format: z.literal(1),
  images: z.array(
    z.tuple([z.string(), z.int().min(0), z.int().min(0), z.int().min(0), z.int().nullable()]), // name, offset, size, checksum, label
  ),
  skipped: z.array(z.object({ what: z.string(), count: z.int(), names: z.array(z.string()) })),
})

function keptList(folder: BlockFolder, size: number): ShardList | undefined {
  const text = folder.readList()
  if (text === undefined) return undefined
  try {
    const { images, skipped } = shardList.parse(JSON.parse(text))
    if (images.some(([, offset, bytes]) => offset + bytes > size)) return undefined
    return {
      images: images.map(([name, offset, bytes, crc, label]) => ({ name, offset, size: bytes, crc, ...(label === null ? {} : { label }) })),
      skipped,
    }
  } catch {
    return undefined // damaged: it is made again
  }
}

/** The list of a shard out of the cache, or made by reading it through; one process of a machine does so at a time. */
async function listOf(shard: RemoteShard, progress: Progress, signal: AbortSignal): Promise<ShardList> {
  const folder = new BlockFolder(shard.cache, shard.key)
  makeFolder(folder.path)
  const lock = new FileLock(join(folder.path, 'list.lock'))
  for (;;) {
    const kept = keptList(folder, shard.size)
    if (kept !== undefined) {
      progress.listed(shard.size)
      return kept
    }
    if (lock.take() === undefined) break
    await sleep(200, undefined, { signal })
    stopIfInterrupted()
  }
  try {
    const list = await madeList(shard, progress, signal)
    const rows = list.images.map(({ name, offset, size, crc, label }) => [name, offset, size, crc, label ?? null])
    folder.writeList(JSON.stringify({ format: 1, images: rows, skipped: list.skipped }))
    return list
  } finally {
    lock.release()
  }
}

async function madeList(shard: RemoteShard, progress: Progress, signal: AbortSignal): Promise<ShardList> {
  const skips = new Skips()
  const listing = new ShardListing(nameOf(shard.url), skips)
  const sums: number[] = []
  if (!shard.ranges) await fetchWhole(shard, signal)
  const windows = new Windows(shard, progress, signal)
  const reader = readTar(shownAddress(shard.url), shard.size)
  for (let { value, done } = reader.next(); done !== true;) {
    if ('length' in value!) {
      ;({ value, done } = reader.next(await windows.read(value.position, value.length)))
      continue
    }
    const { offset, size } = value!
    const content = size <= mostLabelBytes ? await windows.read(offset, size) : Buffer.alloc(0)
    if (listing.add(value!, () => content)) sums.push(await windows.checksum(offset, size))
    ;({ value, done } = reader.next())
  }
  progress.listed(0)
  return { images: listing.images().map((image, i) => ({ ...image, crc: sums[i]! })), skipped: skips.list() }
}

/** Bytes that are fetched by one request while a shard is read through. */
const windowBlocks = 4
const windowBytes = windowBlocks * blockBytes

/** A shard from its beginning to its end: the window that is read, and the next, which is on its way. */
class Windows {
  readonly #shard: RemoteShard
  readonly #progress: Progress
  readonly #signal: AbortSignal
  readonly #held = new Map<number, Promise<Buffer>>()

  constructor(shard: RemoteShard, progress: Progress, signal: AbortSignal) {
    this.#shard = shard
    this.#progress = progress
    this.#signal = signal
  }

  async read(position: number, length: number): Promise<Buffer> {
    const parts: Buffer[] = []
    for await (const part of this.#parts(position, length)) parts.push(part)
    return parts.length === 1 ? parts[0]! : Buffer.concat(parts)
  }

  async checksum(position: number, length: number): Promise<number> {
    let sum = 0
    for await (const part of this.#parts(position, length)) sum = crc32(part, sum)
    return sum
  }

  async *#parts(position: number, length: number): AsyncGenerator<Buffer> {
    for (let at = position; at < position + length;) {
      const index = Math.floor(at / windowBytes)
      const window = await this.#window(index)
      const from = at - index * windowBytes
      const part = window.subarray(from, Math.min(window.length, from + position + length - at))
      at += part.length
      yield part
    }
  }

  #window(index: number): Promise<Buffer> {
    for (const known of this.#held.keys()) if (known < index) this.#held.delete(known)
    const made = this.#held.get(index) ?? this.#fetch(index)
    if ((index + 1) * windowBytes < this.#shard.size && !this.#held.has(index + 1)) void this.#fetch(index + 1)
    return made
  }

  #fetch(index: number): Promise<Buffer> {
    const made = this.#bytes(index)
    made.catch(() => undefined) // reported where it is awaited
    this.#held.set(index, made)
    return made
  }

  async #bytes(index: number): Promise<Buffer> {
    stopIfInterrupted()
    const { size, keep, cache, key } = this.#shard
    const folder = new BlockFolder(cache, key)
    const [from, to] = [index * windowBytes, Math.min(size, (index + 1) * windowBytes)]
    const blocks = Array.from({ length: Math.ceil((to - from) / blockBytes) }, (_, i) => index * windowBlocks + i)
    const kept = keep ? blocks.map((block) => folder.read(block, blockLength(this.#shard, block), 0, blockLength(this.#shard, block))) : []
    if (keep && kept.every((block) => block !== undefined)) return this.#came(Buffer.concat(kept))
    if (!this.#shard.ranges)
      return fail('FETCH', `${shownAddress(this.#shard.url)}: was fetched, but is not in ${cache.folder}: is there room on the disk?`)
    const bytes = await readRange(this.#shard, from, to, this.#signal)
    if (keep) for (const block of blocks) folder.write(block, bytes.subarray(block * blockBytes - from, (block + 1) * blockBytes - from))
    return this.#came(bytes)
  }

  #came(bytes: Buffer): Buffer {
    this.#progress.read(bytes.length)
    return bytes
  }
}

interface Amount {
  shards: number
  bytes: number
}

/** How far the listing of shards is, in a unit of which all bytes are at least one. */
export function listingLine(done: Amount, all: Amount): string {
  const [unit, name] = all.bytes >= 1e9 ? [1e9, 'GB'] : all.bytes >= 1e6 ? [1e6, 'MB'] : [1e3, 'kB']
  const read = [done, all].map(({ bytes }) => (bytes / unit).toFixed(1)).join(' of ')
  return `shards listed ${done.shards} of ${all.shards}, once for all: ${read} ${name} read`
}

/** Says how far the listing of shards is, where it takes long. */
class Progress {
  readonly #all: Amount
  #shards = 0
  #bytes = 0
  #last = Date.now()

  constructor(shards: readonly RemoteShard[]) {
    this.#all = { shards: shards.length, bytes: shards.reduce((sum, { size }) => sum + size, 0) }
  }

  read(bytes: number): void {
    this.#bytes += bytes
    if (Date.now() - this.#last < wordEvery) return
    this.#last = Date.now()
    console.error(listingLine({ shards: this.#shards, bytes: this.#bytes }, this.#all))
  }

  listed(bytes: number): void {
    this.#shards += 1
    this.#bytes += bytes
  }
}

/** The names of the classes, which `pack` leaves beside its shards; empty where they are not there. A signed address has no neighbours. */
async function classesBeside(url: string, signal: AbortSignal): Promise<string> {
  if (new URL(url).search !== '') return ''
  return (await readTextAt(new URL('classes.txt', url).href, 2 ** 24, signal)) ?? ''
}

function mergeSkips(lists: readonly (readonly Skipped[])[]): Skipped[] {
  const skips = new Skips()
  for (const list of lists) for (const skipped of list) skips.addAll(skipped)
  return skips.list()
}

/** Results in order, of at most `most` at a time. */
async function forEach<T, R>(all: readonly T[], most: number, body: (each: T) => Promise<R>): Promise<R[]> {
  const results: R[] = []
  let next = 0
  const work = async (): Promise<void> => {
    while (next < all.length) {
      const i = next++
      results[i] = await body(all[i]!)
    }
  }
  await Promise.all(Array.from({ length: Math.min(most, all.length) }, work))
  return results
}
