/**
 * Writes the built-in pictures as a data set in VOC's layout, with the class of every pixel and a box for every object:
 * `node dist/examples/scenesTree.js scenes-voc` and then `densecl eval segmentation` or `eval detection` with `--data scenes-voc`. What
 * there is to find is the object, whatever its shape and texture.
 */
import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

import { encode } from 'fast-png'

import { scene } from '../src/data/index.js'

const [root = 'scenes-voc', train = '400', val = '40'] = process.argv.slice(2)

const folder = (...parts: string[]): string => {
  const path = join(root, ...parts)
  mkdirSync(path, { recursive: true })
  return path
}
const [images, masks, boxes] = [folder('JPEGImages'), folder('SegmentationClass'), folder('Annotations')]
// Segmentation reads the class of a pixel's number there, detection the names that objects may have.
writeFileSync(join(root, 'classes.txt'), 'background\nobject\n')
const lists = [folder('ImageSets', 'Main'), folder('ImageSets', 'Segmentation')]

for (const [split, count, seed] of [
  ['train', Number(train), 100],
  ['val', Number(val), 101],
] as const) {
  const names = Array.from({ length: count }, (_, i) => `${split}_${i}`)
  names.forEach((name, i) => {
    const { pixels, mask, box } = scene(seed, i)
    const { width, height, data } = pixels
    writeFileSync(join(images, `${name}.png`), encode({ width, height, data, channels: 3 }))
    writeFileSync(join(masks, `${name}.png`), encode({ width, height, data: mask, channels: 1 }))
    const [left, top, right, bottom] = box
    writeFileSync(
      join(boxes, `${name}.xml`),
      `<annotation><size><width>${width}</width><height>${height}</height></size><object><name>object</name><bndbox>` +
        `<xmin>${left + 1}</xmin><ymin>${top + 1}</ymin><xmax>${right}</xmax><ymax>${bottom}</ymax></bndbox></object></annotation>\n`,
    )
  })
  for (const list of lists) writeFileSync(join(list, `${split}.txt`), `${names.join('\n')}\n`)
}
console.log(`${root}: ${train} pictures for training, ${val} for testing`)
