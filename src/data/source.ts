/** What a source of images is: a list of plain items, so that workers can be told which to read, and how it is opened. */
import { closeSync, openSync, readdirSync, readSync, statSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { extname } from 'node:path'

import { fail } from '../tensor/errors.js'
import { decode, type Pixels } from './decode.js'
import { scene } from './scenes.js'

/** An image: a file, some bytes of one, or a built-in scene. `mask` is the file of the classes of its pixels, for segmentation. */
export type Item = { name: string; label?: number; mask?: string } & (
  | { kind: 'file'; path: string }
  | { kind: 'tar'; path: string; offset: number; size: number }
  | { kind: 'scene'; seed: number; index: number }
)

/** A data set: its images and, where they have labels, its classes. */
export interface Source {
  /** That of the data source which opened it. */
  format: string
  items: Item[]
  /** Names of the labels, when the source has labels. */
  classes?: string[]
}

/** The part of a data set that is read. */
export type Split = 'train' | 'val'

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
  /** Lists the images. Only sources that hold both splits look at `split`. */
  open(path: string, split: Split): Omit<Source, 'format'> | Promise<Omit<Source, 'format'>>
}

export const imageExtensions: ReadonlySet<string> = new Set(['.jpg', '.jpeg', '.png', '.webp', '.tif', '.tiff'])
export const isImage = (name: string): boolean => imageExtensions.has(extname(name).toLowerCase())

export const isFolder = (path: string): boolean => statSync(path, { throwIfNoEntry: false })?.isDirectory() === true

/** A file with one of the extensions, which are given in small letters. */
export const isFileOf = (path: string, ...extensions: readonly string[]): boolean =>
  statSync(path, { throwIfNoEntry: false })?.isFile() === true && extensions.includes(extname(path).toLowerCase())

/** The names in a folder, sorted. */
export function namesIn(folder: string): string[] {
  try {
    return readdirSync(folder).sort()
  } catch (error) {
    return fail('DATA', `data: the folder ${folder} cannot be read (${(error as NodeJS.ErrnoException).code ?? String(error)})`)
  }
}

/** The bytes of a stored image; throws DECODE with its name. */
export async function readItemBytes(item: Item & { kind: 'file' | 'tar' }): Promise<Buffer> {
  try {
    if (item.kind === 'file') return await readFile(item.path)
    const descriptor = openSync(item.path, 'r')
    try {
      const bytes = Buffer.alloc(item.size)
      readSync(descriptor, bytes, 0, item.size, item.offset)
      return bytes
    } finally {
      closeSync(descriptor)
    }
  } catch (error) {
    return fail('DECODE', `${item.name}: cannot be read (${(error as NodeJS.ErrnoException).code ?? String(error)})`)
  }
}

/** The decoded image of an item, reduced to about `mostPixels` where that is cheaper; throws DECODE with its name. */
export async function loadPixels(item: Item, mostPixels?: number): Promise<Pixels> {
  if (item.kind === 'scene') return scene(item.seed, item.index).pixels
  return decode(await readItemBytes(item), item.name, mostPixels)
}
