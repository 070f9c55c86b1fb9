/** COCO's annotations, and those of iNaturalist, which have the same form and classes. */
import { existsSync, readFileSync } from 'node:fs'
import { basename, dirname, join } from 'node:path'

import { fail } from '../tensor/errors.js'
import { type DataSource, isFileOf, type Item, type Source } from './source.js'

export const cocoSource = {
  format: 'coco',
  describe: 'a COCO .json',
  recognises: (path) => isFileOf(path, '.json'),
  open: readCoco,
} as const satisfies DataSource

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
function readCoco(path: string): Omit<Source, 'format'> {
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
  return { items, ...(known === undefined ? {} : { classes: known.classes }) }
}
