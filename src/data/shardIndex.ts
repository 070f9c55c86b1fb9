/**
 * What a tar shard holds, as text: images by their place, with a checksum of each. The cache keeps one of every shard of another machine
 * that was read through; `pack` writes one beside each of its shards, so that none need be.
 */
import { z } from 'zod'

import type { Skipped } from './source.js'
import type { Listed } from './tarSource.js'

/** What a shard holds. */
export interface ShardList {
  /** With the checksum (CRC-32) of its bytes. */
  images: (Listed & { crc: number })[]
  skipped: Skipped[]
}

const shardList = z.object({
  format: z.literal(1),
  /** Of the shard. */
  bytes: z.int().min(0),
  images: z.array(
    z.tuple([z.string(), z.int().min(0), z.int().min(0), z.int().min(0), z.int().min(0).nullable()]), // name, offset, size, checksum, label
  ),
  skipped: z.array(z.object({ what: z.string(), count: z.int(), names: z.array(z.string()) })),
})

export function listText({ images, skipped }: ShardList, bytes: number): string {
  const rows = images.map(({ name, offset, size, crc, label }) => [name, offset, size, crc, label ?? null])
  return JSON.stringify({ format: 1, bytes, images: rows, skipped })
}

/** The list in a text; undefined where it is damaged, or that of a shard of another number of bytes. */
export function listOfText(text: string, bytes: number): ShardList | undefined {
  try {
    const { images, skipped, bytes: known } = shardList.parse(JSON.parse(text))
    if (known !== bytes || images.some(([, offset, size]) => offset + size > bytes)) return undefined
    return {
      images: images.map(([name, offset, size, crc, label]) => ({ name, offset, size, crc, ...(label === null ? {} : { label }) })),
      skipped,
    }
  } catch {
    return undefined
  }
}

/** The file beside a shard, by its path or address, that lists the members of it. */
export const indexOf = (shard: string): string => `${shard}.index.json`

/** Its text: names are those of members, since a shard may be called otherwise later. */
export const indexText = (images: ShardList['images'], bytes: number): string => `${listText({ images, skipped: [] }, bytes)}\n`

/** What an index says of a shard of `bytes` bytes that is called `shard`; undefined as listOfText(). */
export function listOfIndex(text: string, bytes: number, shard: string): ShardList | undefined {
  const list = listOfText(text, bytes)
  return list && { ...list, images: list.images.map((image) => ({ ...image, name: `${shard}:${image.name}` })) }
}
