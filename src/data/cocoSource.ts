/** COCO's annotations, and those of iNaturalist, which have the same form and classes. */
import { existsSync } from 'node:fs'
import { basename, dirname, join } from 'node:path'

import { z } from 'zod'

import { fail } from '../tensor/errors.js'
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

interface CocoFile {
  images: z.output<typeof imageRow>[]
  annotations: z.output<typeof annotationRow>[] | undefined
  categories: z.output<typeof categoryRow>[] | undefined
}

/** The list `key` of an annotation file; the first row that is not as it must be is named. */
function rowsOf<T>(path: string, parsed: object, key: keyof CocoFile, row: z.ZodType<T>): T[] | undefined {
  const rows: unknown = (parsed as Record<string, unknown>)[key]
  if (rows === undefined) return undefined
  if (!Array.isArray(rows)) return fail('DATA', `data: ${path}: "${key}" is no list, as COCO annotations have it`)
  return rows.map((value: unknown, i) => {
    const { data, error } = row.safeParse(value)
    if (error === undefined) return data
    const { path: at, message } = error.issues[0]!
    return fail('DATA', `data: ${path}: ${[`${key}[${i}]`, ...at.map(String)].join('.')}: ${message}`)
  })
}

function parseCoco(path: string): CocoFile {
  const text = readText(path)
  let parsed: unknown
  try {
    parsed = JSON.parse(text)
  } catch (error) {
    return fail('DATA', `data: ${path} is not JSON (${error instanceof Error ? error.message : String(error)})`)
  }
  const file = typeof parsed === 'object' && parsed !== null ? parsed : {}
  const images = rowsOf(path, file, 'images', imageRow) ?? fail('DATA', `data: ${path} has no list "images" as COCO annotations have`)
  return {
    images,
    annotations: rowsOf(path, file, 'annotations', annotationRow),
    categories: rowsOf(path, file, 'categories', categoryRow),
  }
}

/** Classes of images, as iNaturalist has them: one annotation without a box for each. */
function cocoLabels({ images, annotations, categories }: CocoFile): { labels: number[]; classes: string[] } | undefined {
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

/** COCO annotations `x.json` name files relative to the folder of the same split, `../x` without `instances_`, or `../images`. */
function readCoco(path: string): Omit<Source, 'format'> {
  const parsed = parseCoco(path)
  const split = basename(path, '.json').replace(/^(instances|captions|person_keypoints|image_info)_/, '')
  const roots = [
    dirname(path),
    join(dirname(path), '..', split),
    join(dirname(path), '..', 'images', split),
    join(dirname(path), '..', 'images'),
    join(dirname(path), split),
  ]
  const names = parsed.images.map((image) => image.file_name)
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
  return { items, ...(known === undefined ? {} : { classes: known.classes }) }
}
