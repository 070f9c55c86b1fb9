/** Masks of boxes as pixels of an image. */
import fc from 'fast-check'
import * as assert from 'uvu/assert'

import { pasteMasks } from '../../src/ops/pasteMasks.js'
import { resizeBilinear } from '../../src/ops/resizeBilinear.js'
import { Random } from '../../src/tensor/random.js'
import { scope, Tensor } from '../../src/tensor/tensor.js'
import { suite, throwsError } from '../support/suite.js'

const test = suite('pasteMasks')

const pasted = (values: number[], size: [number, number], box: number[], height: number, width: number): number[] =>
  scope(() => Array.from(pasteMasks(Tensor.from(values, [1, ...size], 'f64'), Tensor.from(box, [1, 4], 'f64'), { height, width }).data()))

test('it is the bilinear resize of the mask in a frame of zeros, at least one half', () => {
  fc.assert(
    fc.property(fc.integer(), (seed) => {
      const random = new Random(seed, 1)
      const [p, q] = [1 + random.below(6), 1 + random.below(6)]
      const values = Array.from({ length: p * q }, () => random.uniform())
      const framed = new Float64Array((p + 2) * (q + 2))
      values.forEach((value, i) => (framed[(Math.floor(i / q) + 1) * (q + 2) + (i % q) + 1] = value))
      const times = 8
      scope(() => {
        const image = Tensor.from(framed, [1, p + 2, q + 2, 1], 'f64')
        // Of cells `times` pixels wide, so that the frame is whole pixels.
        const large = resizeBilinear(image, [(p + 2) * times, (q + 2) * times]).data()
        const again = pasted(values, [p, q], [times, times, (q + 1) * times, (p + 1) * times], (p + 2) * times, (q + 2) * times)
        large.forEach((value, i) => {
          if (Math.abs(value - 0.5) > 1e-9) assert.is(again[i], Number(value >= 0.5))
        })
      })
    }),
    { numRuns: 50 },
  )
})

test('of a mask of one cell the pixels are left where the zeros around it are not nearer', () => {
  assert.equal(pasted([1], [1, 1], [2, 1, 6, 3], 4, 8), [
    ...[0, 0, 0, 0, 0, 0, 0, 0],
    ...[0, 0, 0, 1, 1, 0, 0, 0],
    ...[0, 0, 0, 1, 1, 0, 0, 0],
    ...[0, 0, 0, 0, 0, 0, 0, 0],
  ])
})

test('it moves with its box by whole pixels, and what is outside of the image is not there', () => {
  fc.assert(
    fc.property(fc.integer(), fc.integer({ min: -9, max: 9 }), fc.integer({ min: -9, max: 9 }), (seed, dx, dy) => {
      const random = new Random(seed, 2)
      const values = Array.from({ length: 12 }, () => random.below(17) / 16)
      const box = [4, 5, 8, 8]
      const [height, width] = [12, 14]
      const still = pasted(values, [3, 4], box, height, width)
      const moved = pasted(values, [3, 4], [box[0]! + dx, box[1]! + dy, box[2]! + dx, box[3]! + dy], height, width)
      for (let y = 0; y < height; ++y)
        for (let x = 0; x < width; ++x) {
          const [fromX, fromY] = [x - dx, y - dy]
          if (fromX < 0 || fromX >= width || fromY < 0 || fromY >= height) continue
          assert.is(moved[y * width + x], still[fromY * width + fromX])
        }
    }),
  )
})

test('a value of exactly the threshold is within', () => {
  const count = (threshold: number): number =>
    scope(() =>
      pasteMasks(Tensor.from([0.5], [1, 1, 1]), Tensor.from([-100, -100, 101, 101], [1, 4]), { height: 1, width: 1, threshold }).item(),
    )
  assert.is(count(0.5), 1)
  assert.is(count(0.5000001), 0)
})

test('boxes without area, turned over or not finite have no pixel; what does not fit is refused', () => {
  for (const box of [
    [3, 3, 3, 6],
    [6, 6, 3, 3],
    [NaN, 1, 5, 5],
    [-Infinity, 0, Infinity, 8],
    [1e300, 0, 1.1e300, 8],
    [0, 0, 5, Infinity],
  ])
    assert.equal(pasted([1, 1, 1, 1], [2, 2], box, 8, 8), new Array<number>(64).fill(0), box.join(' '))
  scope(() => {
    const [x, boxes] = [Tensor.zeros([2, 3, 3]), Tensor.zeros([2, 4])]
    const size = { height: 5, width: 5 }
    assert.equal(pasteMasks(Tensor.zeros([0, 3, 3]), Tensor.zeros([0, 4]), size).shape, [0, 5, 5])
    throwsError(() => pasteMasks(Tensor.zeros([2, 3]), boxes, size), 'SHAPE', /pasteMasks: expected x of rank 3/)
    throwsError(() => pasteMasks(x, Tensor.zeros([1, 4]), size), 'SHAPE', /pasteMasks: expected boxes \[2,4\]/)
    throwsError(() => pasteMasks(x, Tensor.zeros([2, 4], 'f64'), size), 'DTYPE', /pasteMasks/)
    throwsError(() => pasteMasks(x, boxes, { ...size, width: 0 }), 'ARGUMENT', /pasteMasks: expected width/)
    throwsError(() => pasteMasks(x, boxes, { ...size, threshold: NaN }), 'ARGUMENT', /expected a positive threshold/)
  })
})

test.run()
