/** Masks of found objects in the pixels of their image, and in pictures. */
import * as assert from 'uvu/assert'

import type { FoundObject } from '../../src/detection/detect.js'
import { maskedObjects } from '../../src/detection/foundMasks.js'
import { decodeMask, maskArea, maskBounds } from '../../src/data/runLengths.js'
import { drawMasks } from '../../src/report/instanceMasks.js'
import { pasteMasks } from '../../src/ops/pasteMasks.js'
import { Random } from '../../src/tensor/random.js'
import { scope, Tensor } from '../../src/tensor/tensor.js'
import { suite } from '../support/suite.js'

const test = suite('masks of found objects')

const found = (random: Random, height: number, width: number): FoundObject => {
  const [x, y] = [random.uniform(0, width - 5), random.uniform(0, height - 5)]
  const box = [x, y, Math.min(width, x + random.uniform(2, 60)), Math.min(height, y + random.uniform(2, 60))] as const
  return { label: 1, score: 0.5, box, mask: { side: 28, values: Float64Array.from({ length: 784 }, () => random.uniform()) } }
}

test('their runs are the pixels that the op gives, however many there are', () => {
  const [height, width] = [900, 1500]
  const random = new Random(5, 1)
  // More than are made at a time.
  const objects = Array.from({ length: 60 }, () => found(random, height, width))
  const masked = maskedObjects(objects, { height, width })
  for (const i of [0, 30, 59])
    scope(() => {
      const { box, mask } = objects[i]!
      const x = Tensor.from(mask!.values, [1, 28, 28], 'f32')
      const pixels = pasteMasks(x, Tensor.from([...box], [1, 4], 'f32'), { height, width }).data()
      assert.equal([...decodeMask(masked[i]!.mask!)], [...pixels])
    })
  assert.equal(
    masked.map(({ mask: _, ...object }) => object),
    objects.map(({ mask: _, ...object }) => object),
  )
})

test('a full mask fills its box; objects without mask have none', () => {
  const mask = { side: 28, values: new Float64Array(784).fill(1) }
  const [full, none, below] = maskedObjects(
    [
      { label: 0, score: 1, box: [10, 20, 66, 76], mask },
      { label: 0, score: 1, box: [1, 2, 3, 4] },
      { label: 0, score: 1, box: [10, 20, 66, 76], mask: { side: 28, values: new Float64Array(784).fill(0.49) } },
    ],
    { height: 100, width: 100 },
  )
  // Corners are a quarter where edges are a half.
  assert.ok(maskArea(full!.mask!) >= 56 * 56 - 4)
  assert.equal(maskBounds(full!.mask!), [10, 20, 56, 56])
  assert.is(none!.mask, undefined)
  assert.equal([...below!.mask!.counts], [10_000])
  assert.equal(maskedObjects([], { height: 9, width: 9 }), [])
})

test('drawn masks change their own pixels alone: the outline more than what is within, which stays as it was without a fill', () => {
  const [height, width] = [10, 12]
  const pixels = { height, width, data: new Uint8Array(3 * height * width).fill(100) }
  // Columns 2 to 6, rows 1 to 7.
  const counts = Uint32Array.from([21, ...[7, 3, 7, 3, 7, 3, 7, 3, 7], 52])
  const drawn = (filled: boolean): number[] => {
    const { data } = drawMasks(pixels, [{ mask: { height, width, counts }, colour: [200, 0, 100], filled }], 1)
    return Array.from({ length: height * width }, (_, i) => data[3 * i]!)
  }
  const at = (values: number[], x: number, y: number): number => values[y * width + x]!
  const [filled, outlined] = [drawn(true), drawn(false)]
  for (let y = 0; y < height; ++y)
    for (let x = 0; x < width; ++x) {
      const inside = x >= 2 && x <= 6 && y >= 1 && y <= 7
      const edge = inside && (x === 2 || x === 6 || y === 1 || y === 7)
      assert.is(at(filled, x, y), edge ? 190 : inside ? 140 : 100)
      assert.is(at(outlined, x, y), edge ? 190 : 100)
    }
  assert.ok(
    pixels.data.every((value) => value === 100),
    'the picture itself stays',
  )
})

test.run()
