/** COCO's annotations, and those of iNaturalist, which have the same form and classes. */
import { existsSync } from 'node:fs'
import { basename, dirname, join } from 'node:path'

import { z } from 'zod'

import { fail } from '../tensor/errors.js'
import { untilInterrupted } from '../tensor/interruption.js'
import { firstIssue } from '../tensor/issues.js'
import { type DataSource, isFileOf, type Item, readText, type Source } from './source.js'

export const cocoSource = {
  format: 'coco',
  describe: 'a COCO .json',
  recognises: (path) => isFileOf(path, '.json'),
  open: readCoco,
} as const satisfies DataSource

const id = z.union([z.number(), z.string()])
const imageRow = z.object({ file_name: z.string(), id: id.optional() })
/** Captions and panoptic annotations have no category of their own. */
const annotationRow = z.object({ image_id: id.optional(), category_id: id.optional(), bbox: z.unknown().optional() })
const categoryRow = z.object({ id, name: z.union([z.string(), z.number()]).optional() })

/** What a reader asks of the rows of each list of an annotation file. */
interface CocoRows {
  images: z.ZodType
  annotations: z.ZodType
  categories: z.ZodType
}
type CocoFile<Rows extends CocoRows> = { images: z.output<Rows['images']>[] } & {
  [Key in 'annotations' | 'categories']: z.output<Rows[Key]>[] | undefined
}
const labelRows = { images: imageRow, annotations: annotationRow, categories: categoryRow }

/** The list `key` of an annotation file; the first row that is not as it must be is named. */
function rowsOf<Row extends z.ZodType>(path: string, parsed: object, key: keyof CocoRows, row: Row): z.output<Row>[] | undefined {
  const rows: unknown = (parsed as Record<string, unknown>)[key]
  if (rows === undefined) return undefined
  if (!Array.isArray(rows)) return fail('DATA', `data: ${path}: "${key}" is no list, as COCO annotations have it`)
  const read: z.output<Row>[] = []
  for (const value of untilInterrupted(rows as unknown[])) {
    const { data, error } = row.safeParse(value)
    if (error !== undefined) {
      return fail('DATA', `data: ${path}: ${firstIssue(error, `${key}[${read.length}]`)}`)
    }
    read.push(data)
  }
  return read
}

/** The lists of an annotation file. Throws DATA with the name of the row that is not of its form. */
export function readCocoFile<Rows extends CocoRows>(path: string, expected: Rows): CocoFile<Rows> {
  const text = readText(path)
  let parsed: unknown
  try {
    parsed = JSON.parse(text)
  } catch (error) {
    return fail('DATA', `data: ${path} is not JSON (${error instanceof Error ? error.message : String(error)})`)
  }
  const file = typeof parsed === 'object' && parsed !== null ? parsed : {}
  const list = <Key extends keyof CocoRows>(key: Key): z.output<Rows[Key]>[] | undefined => rowsOf(path, file, key, expected[key])
  return {
    images: list('images') ?? fail('DATA', `data: ${path} has no list "images" as COCO annotations have`),
    annotations: list('annotations'),
    categories: list('categories'),
  }
}

/** Classes of images, as iNaturalist has them: one annotation without a box for each. */
function cocoLabels({ images, annotations, categories }: CocoFile<typeof labelRows>): { labels: number[]; classes: string[] } | undefined {
  if (
    annotations === undefined ||
    categories === undefined ||
    annotations.length !== images.length ||
    annotations.some(({ bbox }) => bbox !== undefined)
  )
    return undefined
  const places = new Map(categories.map(({ id }, i) => [id, i]))
  const byImage = new Map(annotations.map(({ image_id: image, category_id: category }) => [image, places.get(category!)]))
  const labels = images.map(({ id }) => byImage.get(id))
  return labels.every((label) => label !== undefined)
    ? { labels, classes: categories.map(({ id, name }) => String(name ?? id)) }
    : undefined
}

/** The folder of the images of annotations `x.json`: that of the same split, `../x` without `instances_`, or `../images`. */
export function imageFolder(path: string, first: string | undefined): string {
  const split = basename(path, '.json').replace(/^(instances|captions|person_keypoints|image_info)_/, '')
  const roots = [
    dirname(path),
    join(dirname(path), '..', split),
    join(dirname(path), '..', 'images', split),
    join(dirname(path), '..', 'images'),
    join(dirname(path), split),
  ]
  if (first === undefined) return ''
  return (
    roots.find((folder) => existsSync(join(folder, first))) ?? fail('DATA', `data: ${first} of ${path} is in none of ${roots.join(', ')}`)
  )
}

function readCoco(path: string): Omit<Source, 'format'> {
  const parsed = readCocoFile(path, labelRows)
  const names = parsed.images.map((image) => image.file_name)
  const root = imageFolder(path, names[0])
  const known = cocoLabels(parsed)
  const items = names.map((name, i): Item => ({
    name,
    kind: 'file',
    path: join(root, name),
    ...(known === undefined ? {} : { label: known.labels[i]! }),
  }))
  return { items, ...(known === undefined ? {} : { classes: known.classes }) }
}
