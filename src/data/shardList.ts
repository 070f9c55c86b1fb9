/** What a shard on another machine holds: its tar headers and the checksums of its images, read once and kept in the cache. */
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { crc32 } from 'node:zlib'

import { makeFolder } from '../files/atomic.js'
import { FileLock } from '../files/lock.js'
import { DenseclError, fail } from '../tensor/errors.js'
import { stopIfInterrupted } from '../tensor/interruption.js'
import { decoded, shownAddress } from './addresses.js'
import { blockBytes, BlockFolder } from './blockCache.js'
import { readRange, readTextAt } from './fetching.js'
import { blockLength, fetchWhole, type RemoteShard } from './remoteShard.js'
import { indexOf, listOfIndex, listOfText, listText, type ShardList } from './shardIndex.js'
import { Skips } from './source.js'
import { readTar } from './tarReader.js'
import { mostLabelBytes, ShardListing } from './tarSource.js'

/** The last part of the path of an address. */
const nameOf = (url: string): string => decoded(new URL(url).pathname.split('/').at(-1)!)

/** The list of a shard out of the cache, of its index, or made by reading it through; one process of a machine does so at a time. */
export async function listOf(shard: RemoteShard, progress: Progress, signal: AbortSignal): Promise<ShardList> {
  const folder = new BlockFolder(shard.cache, shard.key)
  makeFolder(folder.path)
  const lock = new FileLock(join(folder.path, 'list.lock'))
  for (;;) {
    const kept = listOfText(folder.readList() ?? '', shard.size)
    if (kept !== undefined) {
      progress.listed(shard.size)
      return kept
    }
    if (lock.take() === undefined) break
    await sleep(200, undefined, { signal })
    stopIfInterrupted()
  }
  try {
    const list = (await listBeside(shard, progress, signal)) ?? (await madeList(shard, progress, signal))
    folder.writeList(listText(list, shard.size))
    return list
  } finally {
    lock.release()
  }
}

/** The most bytes of an index: a million images. */
const mostIndexBytes = 2 ** 26

/** What `pack` has left beside a shard; undefined where it is not there, or not of this shard. A signed address has no neighbours. */
async function listBeside(shard: RemoteShard, progress: Progress, signal: AbortSignal): Promise<ShardList | undefined> {
  const url = new URL(shard.url)
  if (url.search !== '') return undefined
  url.pathname = indexOf(url.pathname)
  const text = await readTextAt(url.href, mostIndexBytes, signal).catch((error: unknown) => {
    // What is wrong with the server is found out by what is needed of it.
    if (error instanceof DenseclError && error.code === 'FETCH') return undefined
    throw error
  })
  const list = listOfIndex(text ?? '', shard.size, nameOf(shard.url))
  if (list !== undefined) progress.listed(shard.size)
  return list
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

/** Milliseconds between two words about shards that are being listed. */
const wordEvery = 10_000

/** Says how far the listing of shards is, where it takes long. */
export class Progress {
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
