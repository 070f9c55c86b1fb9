/** Images with masks: VOC trees, whatever their classes, and Cityscapes. */
import { existsSync, readdirSync } from 'node:fs'
import { basename, join } from 'node:path'

import { fail } from '../tensor/errors.js'
import type { Item } from './source.js'
import { namedClasses, namesOfSet, vocClasses, vocImages, vocRoot } from './voc.js'

/** An image of a source and the path of its mask. */
export type SegmentedItem = Item & { kind: 'file'; mask: string }

/** Images with masks, and the names of their classes. */
export interface SegmentationSource {
  layout: 'voc' | 'cityscapes'
  items: SegmentedItem[]
  classes: readonly string[]
  /** Index of a mask's file to class, where they differ. */
  map?: readonly number[]
}

/** The evaluated classes of Cityscapes, and the index that label files ("labelIds") give each. */
const cityscapes = {
  road: 7,
  sidewalk: 8,
  building: 11,
  wall: 12,
  fence: 13,
  pole: 17,
  'traffic light': 19,
  'traffic sign': 20,
  vegetation: 21,
  terrain: 22,
  sky: 23,
  person: 24,
  rider: 25,
  car: 26,
  truck: 27,
  bus: 28,
  train: 31,
  motorcycle: 32,
  bicycle: 33,
} as const

/**
 * Opens a VOC tree (JPEGImages, SegmentationClass, ImageSets/Segmentation; SegmentationClassAug for masks that are not in the
 * first) or Cityscapes (leftImg8bit, gtFine). `splits` are lists of the former, folders of the latter. Names of classes are those
 * of classes.txt, else VOC's 21. Throws DATA where a listed image or its mask is missing.
 */
export function openSegmentation(path: string, splits: readonly string[]): SegmentationSource {
  if (!existsSync(path)) return fail('DATA', `data: ${path} does not exist`)
  const source = existsSync(join(path, 'leftImg8bit')) ? openCityscapes(path, splits) : openVoc(path, splits)
  if (source.items.length === 0) fail('DATA', `data: ${path} has no image in ${splits.join(', ')}`)
  const missing = source.items.filter(({ mask }) => !existsSync(mask))
  if (missing.length > 0)
    fail(
      'DATA',
      `data: ${missing.length} of ${source.items.length} images have no mask, such as ${missing[0]!.name}: expected ${missing[0]!.mask}`,
    )
  return source
}

/** What a data set trains on when nothing is said: VOC's own list, and the additional one where it is there. */
export function defaultSplits(path: string): { train: string[]; val: string[] } {
  if (existsSync(join(path, 'leftImg8bit'))) return { train: ['train'], val: ['val'] }
  const has = (name: string): boolean => existsSync(join(vocRoot(path), 'ImageSets', 'Segmentation', `${name}.txt`))
  return { train: has('aug') ? ['train', 'aug'] : has('trainaug') ? ['trainaug'] : ['train'], val: ['val'] }
}

function openVoc(path: string, splits: readonly string[]): SegmentationSource {
  const root = vocRoot(path)
  const images = vocImages(root)
  const items = splits.flatMap((split) =>
    namesOfSet(root, 'Segmentation', split).map((name): SegmentedItem => {
      const file = images.get(name) ?? fail('DATA', `data: ${split} names ${name}, which is not in ${join(root, 'JPEGImages')}`)
      const [mask, additional] = ['SegmentationClass', 'SegmentationClassAug'].map((folder) => join(root, folder, `${name}.png`)) as [
        string,
        string,
      ]
      return {
        name: file,
        kind: 'file',
        path: join(root, 'JPEGImages', file),
        mask: !existsSync(mask) && existsSync(additional) ? additional : mask,
      }
    }),
  )
  return { layout: 'voc', items, classes: namedClasses(root) ?? ['background', ...vocClasses] }
}

function openCityscapes(root: string, splits: readonly string[]): SegmentationSource {
  const suffix = '_leftImg8bit.png'
  let map: number[] | undefined
  const items = splits.flatMap((split) => {
    const folder = join(root, 'leftImg8bit', split)
    if (!existsSync(folder)) return fail('DATA', `data: ${folder} does not exist: expected a folder for the split ${split}`)
    return readdirSync(folder)
      .sort()
      .flatMap((city) =>
        readdirSync(join(folder, city))
          .filter((name) => name.endsWith(suffix))
          .sort()
          .map((name): SegmentedItem => {
            const stem = join(root, 'gtFine', split, city, `${basename(name, suffix)}_gtFine`)
            const trained = `${stem}_labelTrainIds.png`
            if (!existsSync(trained)) map ??= labelIds()
            return {
              name: `${city}/${name}`,
              kind: 'file',
              path: join(folder, city, name),
              mask: existsSync(trained) ? trained : `${stem}_labelIds.png`,
            }
          }),
      )
  })
  if (map !== undefined && items.some(({ mask }) => mask.endsWith('_labelTrainIds.png')))
    fail('DATA', `data: ${root} has _labelTrainIds.png for some images and not for others: expected all or none`)
  return { layout: 'cityscapes', items, classes: Object.keys(cityscapes), ...(map === undefined ? {} : { map }) }
}

function labelIds(): number[] {
  const map = new Array<number>(256).fill(255)
  Object.values(cityscapes).forEach((id, label) => (map[id] = label))
  return map
}
