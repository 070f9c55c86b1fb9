/** Tar files whose members are images, read in place. */
import { existsSync, readFileSync } from 'node:fs'
import { basename, dirname, extname, join } from 'node:path'

import { fail } from '../tensor/errors.js'
import { untilInterrupted } from '../tensor/interruption.js'
import { classNames, type DataSource, isFolder, isImage, type Item, namesIn, Skips, type Source } from './source.js'
import { isCompressedTar, type TarMember, tarMembers, unpackFirst } from './tarReader.js'

const isTar = (name: string): boolean => extname(name).toLowerCase() === '.tar'

export const tarSource = {
  format: 'tar',
  describe: 'a tar shard',
  recognises(path) {
    if (!isFolder(path)) return existsSync(path) && (isTar(path) || isCompressedTar(path))
    const names = namesIn(path)
    return names.some((name) => isTar(name) || isCompressedTar(name)) && !names.some(isImage)
  },
  open: readTar,
} as const satisfies DataSource

/** The longest file with a label that is read. */
export const mostLabelBytes = 64

/**
 * WebDataset shards: the members of a key, which is a name up to its first dot, are one sample; `.cls` is its label. Of names that
 * are equal up to their last dot only, the label is that of the same stem. Images are read in place later.
 */
function readTar(path: string): Omit<Source, 'format'> {
  const skips = new Skips()
  const items: Item[] = []
  const shards = shardsOf(path, skips)
  for (const shard of shards)
    for (const { name, offset, size, label } of readShard(shard, skips))
      items.push({ name, kind: 'tar', path: shard, offset, size, ...(label === undefined ? {} : { label }) })
  const names = join(dirname(shards[0]!), 'classes.txt')
  return { ...labelled(path, items, () => (existsSync(names) ? readFileSync(names, 'utf8') : '')), skipped: skips.list() }
}

/** Items with their classes, which `pack` leaves beside its shards, or without labels where one has none. */
export function labelled(path: string, items: Item[], classes: () => string): Pick<Source, 'items' | 'classes'> {
  if (items.length === 0 || !items.every((item) => item.label !== undefined)) return { items: items.map(({ label: _, ...item }) => item) }
  return { items, classes: classNames(path, items, classes().split(/\r?\n/)) }
}

function shardsOf(path: string, skips: Skips): string[] {
  if (!isFolder(path)) return isCompressedTar(path) ? fail('DATA', `data: ${path} is compressed: ${unpackFirst}`) : [path]
  const names = namesIn(path)
  const compressed = names.filter(isCompressedTar)
  const shards = names.filter(isTar)
  if (shards.length === 0 && compressed.length > 0)
    fail('DATA', `data: ${path} holds compressed shards, such as ${compressed[0]}: ${unpackFirst}`)
  for (const name of compressed) skips.add('compressed shard', name)
  return shards.map((name) => join(path, name))
}

/** A name up to the first dot of its last part, and up to the last. */
function stems(name: string): { key: string; stem: string } {
  const from = name.lastIndexOf('/') + 1
  const dot = name.indexOf('.', from)
  return { key: dot < 0 ? name : name.slice(0, dot), stem: name.slice(0, name.length - extname(name).length) }
}

/** An image of a shard: its name begins with that of the shard. */
export interface Listed {
  name: string
  offset: number
  size: number
  label?: number
}

/** What the members of a shard are, one after the other: images, labels of images, and what is skipped. */
export class ShardListing {
  readonly #images: Listed[] = []
  readonly #labels = new Map<string, number>()

  constructor(
    readonly shard: string,
    readonly skips: Skips,
  ) {}

  /** Takes a member, whose bytes `read` gives; true for an image. */
  add({ name, offset, size, other }: TarMember, read: () => Buffer): boolean {
    const full = `${this.shard}:${name}`
    if (other !== undefined) this.skips.add(other, full)
    // The attributes of a file that macOS packs beside it, under its name.
    else if (basename(name).startsWith('._')) this.skips.add('file of attributes of macOS', full)
    else if (isImage(name)) return this.#images.push({ name: full, offset, size }) > 0
    else if (extname(name) === '.cls') {
      const text = size > mostLabelBytes ? '' : read().toString('utf8').trim()
      if (/^\d+$/.test(text) && Number.isSafeInteger(Number(text))) this.#labels.set(stems(name).stem, Number(text))
      else this.skips.add('label that is no whole number', full)
    } else this.skips.add(extname(name) === '' ? 'file without an extension' : `${extname(name)} file`, full)
    return false
  }

  /** The images, with their labels. */
  images(): Listed[] {
    for (const image of this.#images) {
      const { key, stem } = stems(image.name.slice(this.shard.length + 1))
      const label = this.#labels.get(stem) ?? this.#labels.get(key)
      if (label !== undefined) image.label = label
    }
    return this.#images
  }
}

function readShard(shard: string, skips: Skips): Listed[] {
  const listing = new ShardListing(basename(shard), skips)
  for (const member of untilInterrupted(tarMembers(shard))) listing.add(member, member.read)
  return listing.images()
}
