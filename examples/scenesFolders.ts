/**
 * Writes built-in pictures as a data set of labelled photographs is laid out, a folder for each class in train/ and in val/:
 * `node dist/examples/scenesFolders.js photos`, and then whatever takes `--data`, `--train` or `--val`.
 */
import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

import { encode } from 'fast-png'

import { scene, sceneClasses } from '../src/data/index.js'

const [root = 'photos', train = '400', val = '100'] = process.argv.slice(2)

for (const [split, count, seed] of [
  ['train', Number(train), 100],
  ['val', Number(val), 101],
] as const)
  for (let i = 0; i < count; ++i) {
    const { pixels, label } = scene(seed, i)
    const { width, height, data } = pixels
    const folder = join(root, split, sceneClasses[label]!.replaceAll(' ', '-'))
    mkdirSync(folder, { recursive: true })
    writeFileSync(join(folder, `${i}.png`), encode({ width, height, data, channels: 3 }))
  }
console.log(`${root}: ${train} pictures for training, ${val} for testing, of ${sceneClasses.length} classes`)
