/** COCO trees with boxes: annotations/instances_<split>.json beside the folders of the images. */
import { existsSync } from 'node:fs'
import { join } from 'node:path'

import { z } from 'zod'

import { fail } from '../tensor/errors.js'
import {
  type BoxFaults,
  boxHeight,
  type BoxItem,
  type BoxObject,
  type BoxReading,
  type BoxSource,
  boxWidth,
  fault,
  unlessFaulty,
} from './boxes.js'
import { readMask } from './cocoMasks.js'
import { imageFolder, readCocoFile } from './cocoSource.js'
import { isImage, namesIn, Skips } from './source.js'

const whole = z.number().int()
const rows = {
  images: z.object({ id: whole, file_name: z.string(), width: whole.positive(), height: whole.positive() }),
  annotations: z.object({
    image_id: whole,
    category_id: whole,
    bbox: z.tuple([z.number(), z.number(), z.number(), z.number()]),
    area: z.number().optional(),
    iscrowd: z.union([z.literal(0), z.literal(1), z.boolean()]).optional(),
  }),
  categories: z.object({ id: whole, name: z.string() }),
}
/** Only what a row names is kept: masks are most of a file. */
const rowsWithMasks = { ...rows, annotations: rows.annotations.extend({ segmentation: z.unknown().optional() }) }

/**
 * Opens annotations/instances_<split>.json for each of `splits`. Categories are ordered by their ids. With `classes`, the file's
 * categories must have the same names. Objects whose box has no area are skipped and counted. Throws DATA where the files differ in
 * their categories or an annotation names an image or a category that its file does not have; with `faults` such annotations are kept
 * there and left out, and the images that no file names. With `masks` those of objects are read by the rules of readMask().
 */
export function openCocoBoxes(path: string, splits: readonly string[], { classes, faults, masks = false }: BoxReading = {}): BoxSource {
  const skips = new Skips()
  let categories: { id: number; name: string }[] | undefined
  const named = new Map<string, Set<string>>()
  const items = splits.flatMap((split) => {
    const file = join(path, 'annotations', `instances_${split}.json`)
    if (!existsSync(file)) fail('DATA', `data: ${file} does not exist: expected the annotations of the split ${split}`)
    const read = readCocoFile(file, masks ? rowsWithMasks : rows)
    const own = (read.categories ?? fail('DATA', `data: ${file} has no list "categories"`)).sort((a, b) => a.id - b.id)
    expectClasses(
      file,
      own.map(({ name }) => name),
      categories?.map(({ name }) => name) ?? classes,
    )
    categories = own
    const annotations = read.annotations ?? fail('DATA', `data: ${file} has no list "annotations"`)
    return itemsOf(file, read.images, annotations, own, { skips, named, faults, masks })
  })
  if (faults !== undefined)
    for (const [folder, names] of named)
      for (const name of namesIn(folder))
        if (isImage(name) && !names.has(name)) faults.notes.add('image that these splits do not name', name)
  return {
    layout: 'coco',
    items,
    classes: categories!.map(({ name }) => name),
    categoryIds: categories!.map(({ id }) => id),
    masks,
    skipped: skips.list(),
  }
}

/** Throws DATA where a file has not the classes that others have, in their order. */
function expectClasses(file: string, names: readonly string[], expected: readonly string[] = names): void {
  const at = Array.from({ length: Math.max(names.length, expected.length) }, (_, i) => i).find((i) => names[i] !== expected[i])
  if (at === undefined) return
  const wanted = expected[at] ?? `the ${expected.length} of the others alone`
  fail('DATA', `data: ${file}: class ${at + 1} in the order of the ids is ${names[at] ?? 'absent'}: expected ${wanted}`)
}

function itemsOf(
  file: string,
  images: z.output<typeof rows.images>[],
  annotations: (z.output<typeof rows.annotations> & { segmentation?: unknown })[],
  categories: readonly { id: number }[],
  { skips, named, faults, masks }: { skips: Skips; named: Map<string, Set<string>>; faults: BoxFaults | undefined; masks: boolean },
): BoxItem[] {
  const root = imageFolder(file, images[0]?.file_name)
  if (images.length > 0) named.set(root, new Set([...(named.get(root) ?? []), ...images.map(({ file_name: name }) => name)]))
  const labels = new Map(categories.map(({ id }, label) => [id, label]))
  const byId = new Map<number, BoxItem>()
  for (const { id, file_name: name, width, height } of images)
    byId.set(id, { name, kind: 'file', path: join(root, name), id: String(id), width, height, objects: [] })
  annotations.forEach(({ image_id: image, category_id: category, bbox: [x, y, width, height], area, iscrowd, segmentation }, i) => {
    const [item, label] = [byId.get(image), labels.get(category)]
    if (item === undefined || label === undefined) {
      if (item === undefined)
        fault(faults, 'annotation without image', `${file}: annotations[${i}].image_id is ${image}, which no image has`)
      else fault(faults, 'unknown class', `${file}: annotations[${i}].category_id is ${category}, which no category has`)
      return
    }
    const object: BoxObject = {
      label,
      box: [x, y, x + width, y + height],
      difficult: false,
      truncated: false,
      crowd: iscrowd === 1 || iscrowd === true,
      area: area ?? width * height,
    }
    const name = `annotations[${i}] of ${item.name}`
    if (!(boxWidth(object.box) > 0 && boxHeight(object.box) > 0)) {
      skips.add('box without area', name)
      return
    }
    item.objects.push(object)
    if (!masks) return
    const place = { at: `${file}: annotations[${i}]`, name, image: item }
    const mask = unlessFaulty(faults, 'mask that is damaged', () => readMask(segmentation, place, faults?.notes ?? skips))
    if (mask !== undefined) object.mask = mask
  })
  return [...byId.values()]
}
