/** Where images come from. A source is a list of plain items, so that workers can be told which to read. */
import { closeSync, existsSync, openSync, readdirSync, readFileSync, readSync, statSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { basename, dirname, extname, join, resolve } from 'node:path'

import { fail } from '../tensor/errors.js'
import { decode, type Pixels } from './decode.js'
import { scene, sceneClasses } from './scenes.js'
import { vocImages } from './voc.js'
import { largest } from '../tensor/numbers.js'

/** `mask`: the file of the classes of its pixels, for segmentation. */
export type Item = { name: string; label?: number; mask?: string } & (
  | { kind: 'file'; path: string }
  | { kind: 'tar'; path: string; offset: number; size: number }
  | { kind: 'scene'; seed: number; index: number }
)

export interface Source {
  format: SourceFormat
  items: Item[]
  /** Names of the labels, when the source has labels. */
  classes?: string[]
}

export const sourceFormats = ['folder', 'list', 'coco', 'voc', 'tar', 'scenes'] as const
export type SourceFormat = (typeof sourceFormats)[number]

const imageExtensions = new Set(['.jpg', '.jpeg', '.png', '.webp', '.tif', '.tiff'])
export const isImage = (name: string): boolean => imageExtensions.has(extname(name).toLowerCase())

/** Images that `scenes` and `scenes:N` stand for; validation images are drawn from another seed. */
export const defaultScenes = 4000

/**
 * Opens `path`: a folder (class folders give labels), a folder of tar shards or one shard, a VOC tree, a COCO annotation
 * file, a text list (a path a line, relative to the list, then optionally a label), or `scenes[:count]`.
 */
export async function openSource(path: string, options: { format?: SourceFormat | 'auto'; split?: 'train' | 'val' } = {}): Promise<Source> {
  const format = options.format === undefined || options.format === 'auto' ? detect(path) : options.format
  if (format !== 'scenes' && !existsSync(path)) fail('DATA', `data: ${path} does not exist`)
  const source = await readers[format](path, options.split ?? 'train')
  if (source.items.length === 0) fail('DATA', `data: ${path} (read as ${format}) holds no image (${[...imageExtensions].join(' ')})`)
  return source
}

function detect(path: string): SourceFormat {
  if (/^scenes(:\d+)?$/.test(path)) return 'scenes'
  if (!existsSync(path)) return fail('DATA', `data: ${path} does not exist`)
  if (!statSync(path).isDirectory()) {
    const extension = extname(path).toLowerCase()
    if (extension === '.tar') return 'tar'
    if (extension === '.json') return 'coco'
    if (extension === '.txt' || extension === '.lst' || extension === '.csv') return 'list'
    return fail('DATA', `data: ${path} is none of: a folder, a tar shard, a COCO .json, a text list .txt`)
  }
  if (existsSync(join(path, 'JPEGImages')) && existsSync(join(path, 'ImageSets'))) return 'voc'
  const names = list(path)
  return names.some((name) => name.endsWith('.tar')) && !names.some(isImage) ? 'tar' : 'folder'
}

function list(folder: string): string[] {
  try {
    return readdirSync(folder).sort()
  } catch (error) {
    return fail('DATA', `data: the folder ${folder} cannot be read (${(error as NodeJS.ErrnoException).code ?? String(error)})`)
  }
}

const readers: Record<SourceFormat, (path: string, split: 'train' | 'val') => Source | Promise<Source>> = {
  folder: readFolder,
  list: readList,
  coco: readCoco,
  voc: readVoc,
  tar: readTar,
  scenes(path, split) {
    const count = Number(path.split(':')[1] ?? (split === 'train' ? defaultScenes : defaultScenes / 4))
    const seed = split === 'train' ? 1 : 2
    return {
      format: 'scenes',
      classes: sceneClasses,
      items: Array.from({ length: count }, (_, index) => ({
        name: `scene ${index}`,
        kind: 'scene' as const,
        seed,
        index,
        label: index % sceneClasses.length,
      })),
    }
  },
}

/** Subfolders that hold images, at any depth below, are the classes; images directly in the folder have none. */
function readFolder(root: string): Source {
  const walk = (folder: string): string[] =>
    list(folder).flatMap((name) => {
      const path = join(folder, name)
      if (isImage(name)) return [path]
      return statSync(path, { throwIfNoEntry: false })?.isDirectory() === true ? walk(path) : []
    })
  const paths = walk(root)
  const classOf = (path: string): string => path.slice(root.length).split(/[\\/]/).find(Boolean)!
  const flat = paths.some((path) => dirname(path) === resolve(root) || dirname(path) === root.replace(/[\\/]$/, ''))
  const classes = flat ? [] : [...new Set(paths.map(classOf))]
  const items = paths.map((path): Item => ({
    name: path,
    kind: 'file',
    path,
    ...(classes.length > 1 ? { label: classes.indexOf(classOf(path)) } : {}),
  }))
  return { format: 'folder', items, ...(classes.length > 1 ? { classes } : {}) }
}

function readList(path: string): Source {
  const rows = readFileSync(path, 'utf8')
    .split('\n')
    .map((line) => line.trim())
    .filter((line) => line !== '' && !line.startsWith('#'))
  const parsed = rows.map((row) => {
    const [, file, label] = /^(.*?)(?:[\s,]+(\d+))?$/.exec(row)!
    return { file: file!, label: label === undefined ? undefined : Number(label) }
  })
  const labelled = parsed.every(({ label }) => label !== undefined)
  const items = parsed.map(({ file, label }): Item => ({
    name: file,
    kind: 'file',
    path: resolve(dirname(path), file),
    ...(labelled ? { label: label! } : {}),
  }))
  if (!labelled || items.length === 0) return { format: 'list', items }
  return { format: 'list', items, classes: Array.from({ length: largest(items.map((item) => item.label!)) + 1 }, (_, i) => String(i)) }
}

interface CocoFile {
  images?: { file_name?: unknown; id?: unknown }[]
  annotations?: { image_id: unknown; category_id: unknown; bbox?: unknown }[]
  categories?: { id: unknown; name?: unknown }[]
}

/** Classes of images, as iNaturalist has them: one annotation without a box for each. */
function cocoLabels({ images, annotations, categories }: CocoFile): { labels: number[]; classes: string[] } | undefined {
  if (
    annotations === undefined ||
    categories === undefined ||
    annotations.length !== images!.length ||
    annotations.some(({ bbox }) => bbox !== undefined)
  )
    return undefined
  const places = new Map(categories.map(({ id }, i) => [id, i]))
  const byImage = new Map(annotations.map(({ image_id: image, category_id: category }) => [image, places.get(category)]))
  const labels = images!.map(({ id }) => byImage.get(id))
  return labels.every((label) => label !== undefined)
    ? { labels, classes: categories.map(({ id, name }) => String(name ?? id)) }
    : undefined
}

/** COCO annotations `x.json` name files relative to the folder of the same split, `../x` without `instances_`, or `../images`. */
function readCoco(path: string): Source {
  let parsed: CocoFile
  try {
    parsed = JSON.parse(readFileSync(path, 'utf8')) as typeof parsed
  } catch (error) {
    return fail('DATA', `data: ${path} is not JSON (${error instanceof Error ? error.message : String(error)})`)
  }
  if (!Array.isArray(parsed.images)) return fail('DATA', `data: ${path} has no list "images" as COCO annotations have`)
  const split = basename(path, '.json').replace(/^(instances|captions|person_keypoints|image_info)_/, '')
  const roots = [
    dirname(path),
    join(dirname(path), '..', split),
    join(dirname(path), '..', 'images', split),
    join(dirname(path), '..', 'images'),
    join(dirname(path), split),
  ]
  const names = parsed.images.map((image, i) =>
    typeof image.file_name === 'string' ? image.file_name : fail('DATA', `data: image ${i} of ${path} has no file_name`),
  )
  const root =
    names[0] === undefined
      ? ''
      : (roots.find((folder) => existsSync(join(folder, names[0]!))) ??
        fail('DATA', `data: ${names[0]} of ${path} is in none of ${roots.join(', ')}`))
  const known = cocoLabels(parsed)
  const items = names.map((name, i): Item => ({
    name,
    kind: 'file',
    path: join(root, name),
    ...(known === undefined ? {} : { label: known.labels[i]! }),
  }))
  return { format: 'coco', items, ...(known === undefined ? {} : { classes: known.classes }) }
}

/** JPEGImages of a VOC tree; ImageSets/Main/<split>.txt chooses when it is there. */
function readVoc(root: string, split: 'train' | 'val'): Source {
  const byName = vocImages(root)
  const set = ['Main', 'Segmentation'].map((kind) => join(root, 'ImageSets', kind, `${split}.txt`)).find((file) => existsSync(file))
  const names =
    set === undefined
      ? [...byName.keys()]
      : readFileSync(set, 'utf8')
          .split('\n')
          .map((line) => line.trim().split(/\s+/)[0]!)
          .filter(Boolean)
  const items = names.map((name): Item => {
    const file = byName.get(name) ?? fail('DATA', `data: ${set} names ${name}, which is not in ${join(root, 'JPEGImages')}`)
    return { name: file, kind: 'file', path: join(root, 'JPEGImages', file) }
  })
  return { format: 'voc', items }
}

/** WebDataset shards: the members of a key are one sample; `.cls` is its label. Images are read in place later. */
async function readTar(path: string): Promise<Source> {
  const shards = statSync(path).isDirectory()
    ? list(path)
        .filter((name) => name.endsWith('.tar'))
        .map((name) => join(path, name))
    : [path]
  const items: Item[] = []
  for (const shard of shards) {
    const labels = new Map<string, number>()
    const found: (Item & { key: string })[] = []
    for (const { name, offset, size } of tarMembers(shard)) {
      const key = name.slice(0, name.length - extname(name).length)
      if (isImage(name)) found.push({ name: `${basename(shard)}:${name}`, kind: 'tar', path: shard, offset, size, key })
      else if (extname(name) === '.cls') {
        const label = Number((await readItemBytes({ name, kind: 'tar', path: shard, offset, size })).toString('utf8').trim())
        if (Number.isSafeInteger(label) && label >= 0) labels.set(key, label)
      }
    }
    for (const { key, ...item } of found) items.push(labels.has(key) ? { ...item, label: labels.get(key)! } : item)
  }
  if (items.length === 0 || !items.every((item) => item.label !== undefined))
    return { format: 'tar', items: items.map(({ label: _, ...item }) => item) }
  // `pack` leaves the names of the classes beside its shards.
  const names = join(dirname(shards[0]!), 'classes.txt')
  const named = existsSync(names) ? readFileSync(names, 'utf8').split('\n') : []
  const count = items.reduce((most, item) => Math.max(most, item.label! + 1), 0)
  return { format: 'tar', items, classes: Array.from({ length: count }, (_, i) => named[i] ?? String(i)) }
}

/** Name, place and size of the regular files of an uncompressed tar (USTAR, with GNU long names). */
function* tarMembers(path: string): Generator<{ name: string; offset: number; size: number }> {
  const descriptor = openSync(path, 'r')
  try {
    const end = statSync(path).size
    const header = Buffer.alloc(512)
    let longName: string | undefined
    for (let at = 0; at + 512 <= end;) {
      readSync(descriptor, header, 0, 512, at)
      if (header[0] === 0) return
      const text = (from: number, length: number): string => header.toString('utf8', from, from + length).replace(/\0.*$/s, '')
      const size = parseInt(text(124, 12).trim() || '0', 8)
      if (text(257, 5) !== 'ustar' || !Number.isSafeInteger(size))
        fail('DATA', `data: ${path} is not a tar file (bad header at byte ${at})`)
      if (at + 512 + size > end) fail('DATA', `data: ${path} is cut off: ${text(0, 100)} at byte ${at} claims ${size} bytes`)
      const type = String.fromCharCode(header[156]!)
      if (type === 'L') {
        const name = Buffer.alloc(size)
        readSync(descriptor, name, 0, size, at + 512)
        longName = name.toString('utf8').replace(/\0.*$/s, '')
      } else {
        const prefix = text(345, 155)
        if (type === '0' || type === '\0')
          yield { name: longName ?? (prefix === '' ? text(0, 100) : `${prefix}/${text(0, 100)}`), offset: at + 512, size }
        longName = undefined
      }
      at += 512 + Math.ceil(size / 512) * 512
    }
  } finally {
    closeSync(descriptor)
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
