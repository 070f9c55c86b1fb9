/** VOC trees with boxes for tests: rectangles of two colours on noise. */
import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

import { Random } from '../../src/tensor/random.js'
import { colourPng } from './vocTree.js'

/** Images of one or two red or green rectangles on noise, wide or tall, `scale` times 64 x 48, and their annotations. */
export function writeBoxTree(root: string, count: number, scale = 1): void {
  for (const folder of ['Annotations', 'JPEGImages', 'ImageSets/Main']) mkdirSync(join(root, folder), { recursive: true })
  const names = Array.from({ length: count }, (_, i) => `image${i}`)
  names.forEach((name, i) => {
    const random = new Random(3, i)
    const [width, height] = (i % 3 === 0 ? [48, 64] : [64, 48]).map((side) => scale * side) as [number, number]
    const rgb = Uint8Array.from({ length: width * height * 3 }, () => 90 + random.below(30))
    const objects = Array.from({ length: 1 + (i % 2) }, (_, k) => {
      const [w, h] = [scale * (16 + random.below(10)), scale * (16 + random.below(10))]
      const [left, top] = [random.below(width - w), random.below(height - h)]
      const colour = (i + k) % 2
      for (let y = top; y < top + h; ++y)
        for (let x = left; x < left + w; ++x) for (let c = 0; c < 3; ++c) rgb[(y * width + x) * 3 + c] = c === colour ? 250 : 10
      return (
        `<object><name>${['red', 'green'][colour]}</name><bndbox><xmin>${left + 1}</xmin><ymin>${top + 1}</ymin>` +
        `<xmax>${left + w}</xmax><ymax>${top + h}</ymax></bndbox></object>`
      )
    })
    writeFileSync(join(root, 'JPEGImages', `${name}.png`), colourPng(rgb, width, height))
    const size = `<size><width>${width}</width><height>${height}</height></size>`
    writeFileSync(join(root, 'Annotations', `${name}.xml`), `<annotation>${size}${objects.join('')}</annotation>`)
  })
  for (const list of ['train', 'val']) writeFileSync(join(root, 'ImageSets', 'Main', `${list}.txt`), `${names.join('\n')}\n`)
}
