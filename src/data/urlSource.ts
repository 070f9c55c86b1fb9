/** Tar shards on other machines, by a pattern of addresses or a list of them: what each holds is listed once and kept in the cache. */
import { createHash } from 'node:crypto'
import { closeSync, openSync, readSync } from 'node:fs'
import { join } from 'node:path'

import { cacheFolder } from '../files/cache.js'
import { fail } from '../tensor/errors.js'
import { unlessInterrupted } from '../tensor/interruption.js'
import { addressesOf, isAddress, shownAddress, withSecrets } from './addresses.js'
import { type CacheLimits, openCache } from './blockCache.js'
import { lookAt, readTextAt, type RemoteFile } from './fetching.js'
import type { RemoteShard } from './remoteShard.js'
import { listOf, Progress } from './shardList.js'
import { type DataSource, isFileOf, type Item, readText, type ShardCache, type Skipped, Skips, type Source } from './source.js'
import { labelled } from './tarSource.js'

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

/** Shards that are looked at or listed at a time. */
const together = 8

async function readShards(path: string, cache: CacheLimits): Promise<Omit<Source, 'format'>> {
  const urls = allAddresses(path)
  const known = new Set<string>()
  for (const url of urls) {
    if (known.has(url)) fail('DATA', `data: ${path} names ${shownAddress(url)} twice: expected each shard once`)
    known.add(url)
  }
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
