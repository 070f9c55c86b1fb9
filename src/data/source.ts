/** What a source of images is: a list of plain items, so that workers can be told which to read, and how it is opened. */
import { closeSync, openSync, readdirSync, readFileSync, type Stats, statSync } from 'node:fs'
import { extname } from 'node:path'

import { readText as readTextOf } from '../files/look.js'
import { readAt } from '../files/readAt.js'
import { DenseclError, fail, systemReason } from '../tensor/errors.js'
import { largest } from '../tensor/numbers.js'
import { decode, decodeChannels, fileForGpu, type JpegFile, type Pixels } from './decode.js'
import { readShardBytes, type RemoteShard } from './remoteShard.js'
import { scene } from './scenes.js'

/**
 * An image: a file, some bytes of one, here or on another machine, or a built-in scene. `mask` is the file of the classes of its pixels,
 * for segmentation.
 */
export type Item = { name: string; label?: number; mask?: string } & (
  | { kind: 'file'; path: string }
  | { kind: 'tar'; path: string; offset: number; size: number }
  | { kind: 'remote'; shard: RemoteShard; offset: number; size: number; crc: number }
  | { kind: 'scene'; seed: number; index: number }
)

/** A data set: its images and, where they have labels, its classes. */
export interface Source {
  /** That of the data source which opened it. */
  format: string
  items: Item[]
  /** Names of the labels, when the source has labels. */
  classes?: string[]
  /** What lies among the images and is not read. */
  skipped?: Skipped[]
}

/** Things of one sort that are not read. */
export interface Skipped {
  /** The sort, as a noun in the singular. */
  what: string
  count: number
  /** The first of them. */
  names: string[]
}

/** The names that are kept of one sort of what is skipped. */
const skippedNames = 5

/** What is skipped while a source is read: sorts are counted, the first few of each named. */
export class Skips {
  readonly #sorts = new Map<string, Skipped>()

  add(what: string, name: string): void {
    let sort = this.#sorts.get(what)
    if (sort === undefined) this.#sorts.set(what, (sort = { what, count: 0, names: [] }))
    sort.count += 1
    if (sort.names.length < skippedNames) sort.names.push(name)
  }

  /** Adds what was skipped elsewhere. */
  addAll({ what, count, names }: Skipped): void {
    for (const name of names) this.add(what, name)
    this.#sorts.get(what)!.count += count - names.length
  }

  list = (): Skipped[] => [...this.#sorts.values()]
}

/** A sentence for each sort of what a source skips. */
export const skippedLines = ({ skipped = [] }: Pick<Source, 'skipped'>): string[] =>
  skipped.map(({ what, count, names }) => {
    const more = count > names.length ? `, and ${count - names.length} more` : ''
    return `${count} skipped (${what}): ${names.join(', ')}${more}`
  })

/** Labels are indices into a list of classes: one of a billion would make a list of a billion names. */
const mostClasses = 1_000_000

/** The names of the classes of labelled items: `named`, and numbers where it ends. Throws DATA for a label of 1,000,000 or more. */
export function classNames(path: string, items: readonly Item[], named: readonly string[] = []): string[] {
  const last = largest(items.map(({ label }) => label!))
  if (last >= mostClasses) {
    const { name } = items.find(({ label }) => label === last)!
    fail('DATA', `data: ${path} gives ${name} the label ${last}: expected labels from 0 to ${mostClasses - 1}`)
  }
  return Array.from({ length: last + 1 }, (_, i) => (named[i] ?? '') || String(i))
}

/** The part of a data set that is read. */
export type Split = 'train' | 'val'

/** Where shards of other machines are kept. */
export interface ShardCache {
  /** `shards` in the user's cache folder, or DENSECL_SHARD_CACHE, when absent. */
  shardCache?: string | null
  /** 50, or DENSECL_SHARD_CACHE_GIGABYTES, when absent. */
  shardCacheGigabytes?: number | null
}

/** A kind of source: a row of the table in sources.ts. */
export interface DataSource {
  /** What `format` calls it. */
  readonly format: string
  /** What a path of it is, as a message lists it. */
  readonly describe: string
  /** Its paths name nothing on the disk. */
  readonly virtual?: boolean
  /** Whether a path that may not exist looks like one of these; of the table the first that says so is taken. */
  recognises(path: string): boolean
  /** Lists the images. Only sources that hold both splits look at `split`, and those of other machines at `cache`. */
  open(path: string, split: Split, cache: ShardCache): Omit<Source, 'format'> | Promise<Omit<Source, 'format'>>
}

export const imageExtensions: ReadonlySet<string> = new Set(['.jpg', '.jpeg', '.png', '.webp', '.tif', '.tiff', '.npy'])
export const isImage = (name: string): boolean => imageExtensions.has(extname(name).toLowerCase())

/** Videos, of which src/data/videos.ts makes images. */
export const videoExtensions: ReadonlySet<string> = new Set([
  ...['.mp4', '.m4v', '.mov', '.mkv', '.webm', '.avi', '.mpg', '.mpeg', '.mts', '.m2ts', '.wmv', '.flv', '.3gp', '.ogv'],
])
export const isVideo = (name: string): boolean => videoExtensions.has(extname(name).toLowerCase())

/** Undefined for what is not there, or cannot be looked at. */
function statusOf(path: string): Stats | undefined {
  try {
    return statSync(path, { throwIfNoEntry: false })
  } catch {
    return undefined // a link to itself, or a folder without rights
  }
}

export const isFolder = (path: string): boolean => statusOf(path)?.isDirectory() === true

/** A file with one of the extensions, which are given in small letters. */
export const isFileOf = (path: string, ...extensions: readonly string[]): boolean =>
  statusOf(path)?.isFile() === true && extensions.includes(extname(path).toLowerCase())

/** The names in a folder, sorted. */
export function namesIn(folder: string): string[] {
  try {
    return readdirSync(folder).sort()
  } catch (error) {
    return fail('DATA', `data: the folder ${folder} cannot be read (${systemReason(error)})`)
  }
}

/** A file as text. Throws DATA with its name. */
export const readText = (path: string): string => readTextOf(path, 'DATA', `data: ${path}`)

/** The item of an image that is stored. */
export type StoredItem = Item & { kind: 'file' | 'tar' | 'remote' }

/** The bytes of a stored image; throws DECODE with its name, and FETCH where another machine does not give them. */
export async function readItemBytes(item: StoredItem, signal?: AbortSignal): Promise<Buffer> {
  if (item.kind === 'remote') return readShardBytes(item, signal)
  try {
    if (item.kind === 'file') return readFileSync(item.path)
    const descriptor = openSync(item.path, 'r')
    try {
      return readAt(descriptor, item.offset, item.size)
    } finally {
      closeSync(descriptor)
    }
  } catch (error) {
    return fail('DECODE', `${item.name}: cannot be read (${systemReason(error)})`)
  }
}

/** Whether an error says that an image is broken: a server that is away says nothing of its images. */
export const isBroken = (error: unknown): error is DenseclError => error instanceof DenseclError && error.code !== 'FETCH'

/**
 * The decoded image of an item with so many channels (decodeChannels()), reduced to about `mostPixels` where that is cheaper; throws as
 * readItemBytes(), which gives its bytes where `bytes` does not, and DECODE with its name.
 */
export async function loadPixels(item: Item, mostPixels?: number, channels = 3, bytes?: Promise<Buffer>): Promise<Pixels> {
  if (item.kind !== 'scene') return decodeChannels(await (bytes ?? readItemBytes(item)), item.name, channels, mostPixels)
  const { pixels } = scene(item.seed, item.index)
  return channels === 3 ? pixels : fail('DECODE', `${item.name}: is a built-in scene, which has 3 channels: expected ${channels}`)
}

/** loadPixels() of a colour image, but for a JPEG that a GPU can decode (fileForGpu()) the file as it is. */
export async function loadForGpu(item: Item, mostPixels: number, bytes?: Promise<Buffer>): Promise<Pixels | JpegFile> {
  if (item.kind === 'scene') return loadPixels(item)
  const file = await (bytes ?? readItemBytes(item))
  return fileForGpu(file, item.name, mostPixels) ?? decode(file, item.name, mostPixels)
}
