/** `images.js FOLDER`: scenes as class folders of JPEG files in FOLDER/train and FOLDER/val, where no real images are to be had. */
import { mkdirSync } from 'node:fs'
import { join } from 'node:path'

import sharp from 'sharp'

import { scene } from '../src/data/scenes.js'

const folder = process.argv[2]
if (folder === undefined) {
  console.error('usage: images.js FOLDER')
  process.exit(2)
}
for (const [split, seed, count] of [
  ['train', 1, 24],
  ['val', 2, 10],
] as const) {
  for (let index = 0; index < count; ++index) {
    const { pixels, label } = scene(seed, index)
    const at = join(folder, split, `class${label}`)
    mkdirSync(at, { recursive: true })
    await sharp(pixels.data, { raw: { width: pixels.width, height: pixels.height, channels: 3 } })
      .jpeg()
      .toFile(join(at, `${index}.jpg`))
  }
}
