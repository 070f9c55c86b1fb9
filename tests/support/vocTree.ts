/** Small data sets in VOC's layout, drawn here: what lies in a picture shows in its colours. */
import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

import { encode } from 'fast-png'

import { Random } from '../../src/tensor/random.js'

export const colours: readonly [number, number, number][] = [
  [40, 40, 40],
  [220, 40, 40],
  [40, 200, 60],
  [50, 70, 230],
]

export const greyPng = (labels: Uint8Array, width: number, height: number): Uint8Array =>
  encode({ width, height, data: labels, channels: 1, depth: 8 })
export const colourPng = (rgb: Uint8Array, width: number, height: number): Uint8Array =>
  encode({ width, height, data: rgb, channels: 3, depth: 8 })

/** A picture of rectangles on a background, and the class of each pixel; a frame of one pixel has no class. */
export function drawn(random: Random, width: number, height: number): { rgb: Uint8Array; labels: Uint8Array } {
  const labels = new Uint8Array(width * height)
  for (let shape = 0; shape < 3; ++shape) {
    const [w, h] = [4 + random.below(width / 2), 4 + random.below(height / 2)]
    const [left, top, label] = [random.below(width - w + 1), random.below(height - h + 1), 1 + random.below(3)]
    for (let y = top; y < top + h; ++y) labels.fill(label, y * width + left, y * width + left + w)
  }
  const rgb = new Uint8Array(3 * labels.length)
  labels.forEach((label, i) => colours[label]!.forEach((value, c) => (rgb[3 * i + c] = value + random.below(20) - 10)))
  for (let y = 0; y < height; ++y)
    for (let x = 0; x < width; ++x) if (x === 0 || y === 0 || x === width - 1 || y === height - 1) labels[y * width + x] = 255
  return { rgb, labels }
}

/** JPEGImages, SegmentationClass, lists for segmentation and classification, and classes.txt. */
export function writeVocTree(
  root: string,
  { train, val, width = 48, height = 40 }: { train: number; val: number; width?: number; height?: number },
): void {
  const folder = (...parts: string[]): string => {
    const path = join(root, ...parts)
    mkdirSync(path, { recursive: true })
    return path
  }
  const [images, masks, segmentation, main] = [
    folder('JPEGImages'),
    folder('SegmentationClass'),
    folder('ImageSets', 'Segmentation'),
    folder('ImageSets', 'Main'),
  ]
  const names = ['background', 'red', 'green', 'blue']
  writeFileSync(join(root, 'classes.txt'), names.map((name, i) => `${i} ${name}\n`).join('') + '255 void\n')
  for (const [split, count] of [
    ['train', train],
    ['val', val],
  ] as const) {
    const keys = Array.from({ length: count }, (_, i) => `${split}_${i}`)
    const presence = keys.map((key, i) => {
      const { rgb, labels } = drawn(new Random(split === 'train' ? 1 : 2, i), width, height)
      writeFileSync(join(images, `${key}.png`), colourPng(rgb, width, height))
      writeFileSync(join(masks, `${key}.png`), greyPng(labels, width, height))
      return names.map((_, c) => labels.includes(c))
    })
    for (const list of [segmentation, main]) writeFileSync(join(list, `${split}.txt`), keys.map((key) => `${key}\n`).join(''))
    for (const c of [1, 2, 3])
      writeFileSync(
        join(main, `${names[c]!}_${split}.txt`),
        keys.map((key, i) => `${key} ${presence[i]![c] === true ? ' 1' : '-1'}\n`).join(''),
      )
  }
}
