/** COCO trees with masks for tests: diamonds of two colours on noise. */
import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

import { Random } from '../../src/tensor/random.js'
import { colourPng } from './vocTree.js'

const [width, height] = [64, 48]

/** `count` images of 64 x 48 with one or two red or green diamonds, whose polygons are annotated; training and validation alike. */
export function writeMaskTree(root: string, count: number): void {
  const names = ['red', 'green']
  const annotations: object[] = []
  const images = Array.from({ length: count }, (_, i) => {
    const random = new Random(7, i)
    const rgb = Uint8Array.from({ length: width * height * 3 }, () => 90 + random.below(30))
    for (let k = 0; k <= i % 2; ++k) {
      const radius = 9 + random.below(5)
      const [x, y] = [radius + random.below(width - 2 * radius), radius + random.below(height - 2 * radius)]
      const colour = (i + k) % 2
      for (let row = 0; row < height; ++row)
        for (let column = 0; column < width; ++column)
          if (Math.abs(row + 0.5 - y) + Math.abs(column + 0.5 - x) <= radius)
            for (let c = 0; c < 3; ++c) rgb[(row * width + column) * 3 + c] = c === colour ? 250 : 10
      annotations.push({
        id: annotations.length + 1,
        image_id: i + 1,
        category_id: colour + 1,
        bbox: [x - radius, y - radius, 2 * radius, 2 * radius],
        area: 2 * radius * radius,
        iscrowd: 0,
        segmentation: [[x - radius, y, x, y - radius, x + radius, y, x, y + radius]],
      })
    }
    const bytes = colourPng(rgb, width, height)
    const name = `image${i}.png`
    for (const split of ['train2017', 'val2017']) {
      mkdirSync(join(root, split), { recursive: true })
      writeFileSync(join(root, split, name), bytes)
    }
    return { id: i + 1, file_name: name, width, height }
  })
  mkdirSync(join(root, 'annotations'), { recursive: true })
  const file = JSON.stringify({ images, annotations, categories: names.map((name, i) => ({ id: i + 1, name })) })
  for (const split of ['train2017', 'val2017']) writeFileSync(join(root, 'annotations', `instances_${split}.json`), file)
}
