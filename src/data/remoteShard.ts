/** The bytes of a shard on another machine: out of the cache of blocks where they are there, else from its server. */
import { crc32 } from 'node:zlib'

import { fail } from '../tensor/errors.js'
import { shownAddress } from './addresses.js'
import { blockBytes, BlockFolder, type CacheLimits } from './blockCache.js'
import { readRange, readWhole, type RemoteFile } from './fetching.js'

/** A shard on another machine, as plain data that workers are sent. */
export interface RemoteShard extends RemoteFile {
  cache: CacheLimits
  /** The name of its folder in the cache. */
  key: string
  /** Whether its blocks are kept in the cache. */
  keep: boolean
}

/** Bytes of a shard, with the checksum (CRC-32) that they had when the shard was listed. */
export interface Checked {
  shard: RemoteShard
  offset: number
  size: number
  crc: number
}

/** Throws FETCH where they cannot be had, or are others than when the shard was listed. */
export async function readShardBytes({ shard, offset, size, crc }: Checked, signal?: AbortSignal): Promise<Buffer> {
  // What lies in the cache may be damaged: then the server is asked.
  for (const fresh of [false, true]) {
    const bytes = await (shard.keep
      ? readBlocks(shard, offset, offset + size, fresh, signal)
      : readRange(shard, offset, offset + size, signal))
    if (crc32(bytes) === crc) return bytes
  }
  const which = `the bytes ${offset} to ${offset + size - 1}`
  return fail('FETCH', `${shownAddress(shard.url)}: ${which} have another checksum than when the shard was listed: was it changed?`)
}

async function readBlocks(shard: RemoteShard, from: number, to: number, fresh: boolean, signal?: AbortSignal): Promise<Buffer> {
  const first = Math.floor(from / blockBytes)
  const count = Math.ceil(to / blockBytes) - first
  const parts = Array.from({ length: Math.max(0, count) }, async (_, i): Promise<Buffer> => {
    const [index, start] = [first + i, (first + i) * blockBytes]
    const part = [Math.max(from, start) - start, Math.min(to - start, blockBytes)] as const
    const kept = fresh ? undefined : new BlockFolder(shard.cache, shard.key).read(index, blockLength(shard, index), ...part)
    return kept ?? (await fetchBlock(shard, index, signal)).subarray(...part)
  })
  const all = await Promise.all(parts)
  return all.length === 1 ? all[0]! : Buffer.concat(all)
}

export const blockLength = ({ size }: RemoteFile, index: number): number => Math.min(blockBytes, size - index * blockBytes)

/** What is on its way to this thread, by its place in the cache: images beside each other lie in one block. */
const coming = new Map<string, Promise<Buffer>>()

function fetchBlock(shard: RemoteShard, index: number, signal?: AbortSignal): Promise<Buffer> {
  return once(`${shard.cache.folder}\0${shard.key}\0${index}`, async () => {
    const folder = new BlockFolder(shard.cache, shard.key)
    const length = blockLength(shard, index)
    if (!shard.ranges) {
      await fetchWhole(shard, signal)
      return folder.read(index, length, 0, length) ?? lost(shard)
    }
    const bytes = await readRange(shard, index * blockBytes, index * blockBytes + length, signal)
    folder.write(index, bytes)
    return bytes
  })
}

/** All blocks of a shard whose server gives no parts. */
export async function fetchWhole(shard: RemoteShard, signal?: AbortSignal): Promise<void> {
  const folder = new BlockFolder(shard.cache, shard.key)
  await once(`${shard.cache.folder}\0${shard.key}`, async () => {
    await readWhole(shard, blockBytes, (index, bytes) => folder.write(index, bytes), signal)
    return Buffer.alloc(0)
  })
}

const lost = ({ url, cache }: RemoteShard): never =>
  fail(
    'FETCH',
    `${shownAddress(url)}: was fetched, but is not in ${cache.folder}: its server gives no parts of it, so that it must be kept there`,
  )

/** What `body` gives, also to whoever asks for it meanwhile. */
function once(key: string, body: () => Promise<Buffer>): Promise<Buffer> {
  const known = coming.get(key)
  if (known !== undefined) return known
  const made = body().finally(() => coming.delete(key))
  coming.set(key, made)
  return made
}
