/** What is scored without looking: masks whose answer is known, and counts by another way. */
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'

import { encode } from 'fast-png'
import * as assert from 'uvu/assert'

import { ignoredLabel } from '../../src/data/masks.js'
import type { SegmentationSource } from '../../src/data/segmentationSources.js'
import { blindScores } from '../../src/eval/blindSegmentation.js'
import { Random } from '../../src/tensor/random.js'
import { rejectsError, suite, withFolder } from '../support/suite.js'

const test = suite('blind segmentation')

const classes = ['sky', 'road', 'car']

/** A source whose masks are drawn by a function of place. */
function sourceOf(
  folder: string,
  name: string,
  count: number,
  width: number,
  height: number,
  label: (x: number, y: number, i: number) => number,
) {
  const items = Array.from({ length: count }, (_, i) => {
    const mask = join(folder, `${name}${i}.png`)
    const data = new Uint8Array(width * height)
    for (let y = 0; y < height; ++y) for (let x = 0; x < width; ++x) data[y * width + x] = label(x, y, i)
    writeFileSync(mask, encode({ width, height, data, channels: 1, depth: 8 }))
    return { name: `${name}${i}`, kind: 'file', path: mask, mask }
  })
  return { layout: 'voc', items, classes } as unknown as SegmentationSource
}

test('a layout that never changes is known without looking, at any size; the most frequent class alone is half of it', async () => {
  await withFolder(async (folder) => {
    const train = sourceOf(folder, 'a', 3, 128, 64, (_, y) => (y < 32 ? 0 : 1))
    const val = sourceOf(folder, 'b', 2, 192, 128, (_, y) => (y < 64 ? 0 : 1))
    const { position, majority } = await blindScores(train, val)
    assert.is(position.meanIou, 1)
    assert.is(position.pixelAccuracy, 1)
    // Of equals the first: half of the pixels right, the other class never found.
    assert.is(majority.pixelAccuracy, 0.5)
    assert.equal(majority.iou.slice(0, 2), [0.5, 0])
    assert.ok(Number.isNaN(majority.iou[2]))
  })
})

test('where nothing depends on place, both answer the most frequent class; pixels without a label count nowhere', async () => {
  await withFolder(async (folder) => {
    const random = new Random(5)
    const drawn = (): number => [2, 2, 2, 2, 0, 1, ignoredLabel][random.below(7)]!
    const train = sourceOf(folder, 'a', 30, 64, 64, drawn)
    const labels: number[] = []
    const val = sourceOf(folder, 'b', 2, 64, 64, () => {
      const label = drawn()
      labels.push(label)
      return label
    })
    const { position, majority } = await blindScores(train, val)
    const counted = labels.filter((label) => label !== ignoredLabel)
    assert.is(majority.pixelAccuracy, counted.filter((label) => label === 2).length / counted.length)
    assert.ok(Math.abs(position.pixelAccuracy - majority.pixelAccuracy) < 0.05)
  })
})

test('a mask of a class that is none is an error with its name', async () => {
  await withFolder(async (folder) => {
    const train = sourceOf(folder, 'a', 1, 8, 8, () => 3)
    await rejectsError(() => blindScores(train, train), 'DATA', /a0\.png/, /class 3/)
  })
})

test.run()
