/** VOC trees with boxes: lists of ImageSets/Main, an XML file of Annotations for each image; several years joined. */
import { existsSync } from 'node:fs'
import { join } from 'node:path'

import { fail } from '../tensor/errors.js'
import { boxArea, type BoxFaults, boxHeight, type BoxItem, type BoxObject, type BoxSource, boxWidth, fault, unlessFaulty } from './boxes.js'
import { isImage, namesIn, readText, Skips } from './source.js'
import { namedClasses, namesOfSet, vocClasses, vocImages, vocRoot } from './voc.js'
import { parseVocAnnotation, type VocAnnotation } from './vocAnnotation.js'

/** A list of a tree: `train`, or `2012:train` for that of the folder VOC2012 in a VOCdevkit. */
function treeOf(path: string, split: string): { root: string; list: string } {
  const [, year, list] = /^(?:(\d{4}):)?(.+)$/.exec(split) ?? fail('DATA', `data: the split ${JSON.stringify(split)} has no name`)
  if (year === undefined) return { root: vocRoot(path), list: list! }
  const candidates = [`VOC${year}`, `VOCdevkit/VOC${year}`].map((folder) => join(path, folder))
  const root = candidates.find((folder) => existsSync(join(folder, 'JPEGImages')))
  return {
    root: root ?? fail('DATA', `data: ${path} has no ${split}: expected a folder JPEGImages in ${candidates.join(' or ')}`),
    list: list!,
  }
}

/**
 * Opens lists of a VOC tree, or of the trees of several years: `splits` of the form `trainval` or `2007:trainval`. Labels are indices
 * into `classes`; without them, into VOC's twenty where no object has another name, the lines of classes.txt, or the names that are
 * found, sorted. Objects whose box has no area are skipped and counted. Throws DATA where a listed image, its annotation or its size
 * is missing, or an object is of no class; with `faults` that is kept there and left out, and what of the tree does not belong together.
 */
export function openVocBoxes(path: string, splits: readonly string[], classes?: readonly string[], faults?: BoxFaults): BoxSource {
  const skips = new Skips()
  const images = new Map<string, Map<string, string>>()
  const named = splits.flatMap((split) => {
    const { root, list } = treeOf(path, split)
    if (!images.has(root)) images.set(root, vocImages(root))
    return namesOfSet(root, 'Main', list).flatMap((id) => {
      const file = images.get(root)!.get(id)
      const xml = join(root, 'Annotations', `${id}.xml`)
      if (file === undefined)
        fault(faults, 'listed image that is not there', `${split} names ${id}, which is not in ${join(root, 'JPEGImages')}`)
      else if (!existsSync(xml)) fault(faults, 'listed image without annotation', `${file} of ${split} has no annotation: expected ${xml}`)
      else {
        const annotation = unlessFaulty(faults, 'annotation that cannot be read', () => parseVocAnnotation(readText(xml), xml))
        return annotation === undefined ? [] : [{ id, file, xml, image: join(root, 'JPEGImages', file), annotation }]
      }
      return []
    })
  })
  if (faults !== undefined) for (const [root, files] of images) noteStrays(root, files, faults)
  const known = classes ?? classesOf(path, named)
  const labels = new Map(known.map((name, label) => [name, label]))
  const items = named.flatMap(({ id, file, xml, image, annotation: { width = 0, height = 0, objects } }): BoxItem[] => {
    if (!(width > 0 && height > 0)) {
      fault(faults, 'annotation without size', `${xml}: <size> is ${width}x${height}: expected the size of ${file} in pixels`)
      return []
    }
    const kept = objects.flatMap(({ name, box, difficult, truncated }): BoxObject[] => {
      const label = labels.get(name)
      if (label === undefined) {
        fault(faults, 'unknown class', `${xml} has an object ${name}: expected one of ${known.join(', ')}`)
        return []
      }
      if (boxWidth(box) > 0 && boxHeight(box) > 0) return [{ label, box, difficult, truncated, crowd: false, area: boxArea(box) }]
      skips.add('box without area', `${name} of ${file}`)
      return []
    })
    return [{ name: file, kind: 'file', path: image, id, width, height, objects: kept }]
  })
  return { layout: 'voc', items, classes: known, skipped: skips.list() }
}

/** Images and annotations of a tree, listed or not, of which the other half is missing. */
function noteStrays(root: string, images: ReadonlyMap<string, string>, { notes }: BoxFaults): void {
  const folder = join(root, 'Annotations')
  const annotations = new Set(existsSync(folder) ? namesIn(folder).filter((name) => name.endsWith('.xml')) : [])
  for (const name of annotations) if (!images.has(name.slice(0, -4))) notes.add('annotation without image', name)
  for (const [id, file] of images) if (isImage(file) && !annotations.has(`${id}.xml`)) notes.add('image without annotation', file)
}

function classesOf(path: string, named: readonly { annotation: VocAnnotation }[]): readonly string[] {
  // A tree with masks names what no box is of.
  const own = namedClasses(path)?.filter((name) => name !== 'background')
  if (own !== undefined) return own
  const found = new Set(named.flatMap(({ annotation }) => annotation.objects.map(({ name }) => name)))
  return [...found].every((name) => (vocClasses as readonly string[]).includes(name)) ? vocClasses : [...found].sort()
}
