/** The layout of PASCAL VOC: where images, lists and labels are. */
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { extname, join } from 'node:path'

import { fail } from '../tensor/errors.js'
import type { Item } from './source.js'

export const vocClasses = [
  'aeroplane',
  'bicycle',
  'bird',
  'boat',
  'bottle',
  'bus',
  'car',
  'cat',
  'chair',
  'cow',
  'diningtable',
  'dog',
  'horse',
  'motorbike',
  'person',
  'pottedplant',
  'sheep',
  'sofa',
  'train',
  'tvmonitor',
] as const

/** The folder with JPEGImages: `path` itself, or where the archives of the challenge put it. */
export function vocRoot(path: string): string {
  if (!existsSync(path)) fail('DATA', `data: ${path} does not exist: expected a VOC tree, a folder with JPEGImages`)
  const candidates = ['', 'VOC2007', 'VOC2012', 'VOCdevkit/VOC2007', 'VOCdevkit/VOC2012'].map((folder) => join(path, folder))
  return (
    candidates.find((folder) => existsSync(join(folder, 'JPEGImages'))) ??
    fail('DATA', `data: ${path} is no VOC tree: expected a folder JPEGImages in it or in VOCdevkit/VOC2007`)
  )
}

/** File names of the images by their names in lists. */
export function vocImages(root: string): Map<string, string> {
  return new Map(
    readdirSync(join(root, 'JPEGImages'))
      .sort()
      .map((file) => [file.slice(0, -extname(file).length), file]),
  )
}

/** The names in ImageSets/<kind>/<split>.txt. */
export function namesOfSet(root: string, kind: 'Main' | 'Segmentation', split: string): string[] {
  const folder = join(root, 'ImageSets', kind)
  const file = join(folder, `${split}.txt`)
  if (!existsSync(file)) {
    const there = existsSync(folder)
      ? readdirSync(folder)
          .filter((name) => !name.includes('_'))
          .map((name) => name.replace(/\.txt$/, ''))
      : []
    return fail('DATA', `data: ${file} does not exist: expected a split among ${there.join(', ') || `the lists of ${folder}`}`)
  }
  return rows(file).map(([name]) => name!)
}

const rows = (file: string): string[][] =>
  readFileSync(file, 'utf8')
    .split('\n')
    .map((line) => line.trim())
    .filter(Boolean)
    .map((line) => line.split(/\s+/))

/** What a picture has of a class: an object, none, or only ones that are marked as difficult. */
export type Presence = 1 | 0 | -1

/** A split of a VOC tree with the presence of each class in each image. */
export interface LabelledSplit {
  items: Item[]
  /** The presence of each class, by name, in each item. */
  presence: Map<string, Int8Array>
}

/**
 * A split of VOC's classification task: ImageSets/Main/<split>.txt, and <class>_<split>.txt with 1, -1 or 0 for each image, which
 * here are 1, 0 and -1: present, absent, only difficult. VOC's classes in their order, or those that have files.
 */
export function openVocClassification(path: string, split: string): LabelledSplit {
  const root = vocRoot(path)
  const images = vocImages(root)
  const names = namesOfSet(root, 'Main', split)
  const items = names.map((name): Item => {
    const file = images.get(name) ?? fail('DATA', `data: ${split} names ${name}, which is not in ${join(root, 'JPEGImages')}`)
    return { name: file, kind: 'file', path: join(root, 'JPEGImages', file) }
  })
  const suffix = `_${split}.txt`
  const found = readdirSync(join(root, 'ImageSets', 'Main'))
    .filter((name) => name.endsWith(suffix))
    .map((name) => name.slice(0, -suffix.length))
    .sort()
  if (found.length === 0) fail('DATA', `data: ${path} has no labels for ${split}: expected ImageSets/Main/<class>${suffix}`)
  const all: readonly string[] = vocClasses.every((name) => found.includes(name)) ? vocClasses : found
  const places = new Map(names.map((name, i) => [name, i]))
  return { items, presence: new Map(all.map((name) => [name, presenceOf(join(root, 'ImageSets', 'Main', `${name}${suffix}`), places)])) }
}

function presenceOf(file: string, places: Map<string, number>): Int8Array {
  const values = new Int8Array(places.size)
  const seen = new Uint8Array(places.size)
  for (const [name, text] of rows(file)) {
    const at = places.get(name!) ?? fail('DATA', `data: ${file} labels ${name}, which its split does not list`)
    const value = Number(text)
    if (value !== 1 && value !== -1 && value !== 0) fail('DATA', `data: ${file} has the label ${text} for ${name}: expected 1, -1 or 0`)
    values[at] = value === 0 ? -1 : value === 1 ? 1 : 0
    seen[at] = 1
  }
  const missing = seen.indexOf(0)
  if (missing >= 0) fail('DATA', `data: ${file} has no label for ${[...places.keys()][missing]}`)
  return values
}

/** The names in the classes.txt of a tree: one a line, perhaps after its index; 255 is no class. */
export function namedClasses(root: string): string[] | undefined {
  const file = join(root, 'classes.txt')
  if (!existsSync(file)) return undefined
  const lines = readFileSync(file, 'utf8')
    .split('\n')
    .map((line) => /^(?:(\d+)[\s:,]+)?(\S.*)$/.exec(line.trim()))
  return lines.flatMap((parts) => (parts === null || parts[1] === '255' ? [] : [parts[2]!]))
}
