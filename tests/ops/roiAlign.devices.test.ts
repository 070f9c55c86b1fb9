/**
 * RoIAlign on the device under test where random boxes do not get to: boxes that are not finite or far larger than the map, more boxes than
 * a block looks at in one round, weights that add up, gradients that depend on nothing but an image's own boxes. Channels choose the
 * kernels: 5 go one by one, 40 by vectors, 64 and 128 of bf16 by products, where the bins of a column fill them.
 */
import * as assert from 'uvu/assert'

import { Tape } from '../../src/autograd/tape.js'
import { roiAlign, type RoiAlignOptions } from '../../src/ops/roiAlign.js'
import { Random } from '../../src/tensor/random.js'
import { type FloatDType, scope, type Shape, Tensor, withDevice } from '../../src/tensor/tensor.js'
import { device } from '../support/devices.js'
import { suite } from '../support/suite.js'
import { randomBoxes } from './cases/roiAlign.js'

const test = suite(`roiAlign on ${device}`, device)
const forms = ([5, 40, 64, 128] as const).flatMap((channels) => (['f32', 'bf16'] as const).map((dtype) => ({ channels, dtype })))

const boxesOf = (values: ArrayLike<number>): Tensor => Tensor.from(values, [values.length / 4, 4], 'f32')
const imagesOf = (values: readonly number[]): Tensor => Tensor.from(Int32Array.from(values), [values.length], 'i32')
const normals = (random: Random, shape: Shape, dtype: FloatDType): Tensor =>
  Tensor.from(
    Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, () => random.normal()),
    shape,
    dtype,
  )
/** Bins of a map, and what they send back of `dy`, which is 1 where absent. */
function both(x: Tensor, boxes: Tensor, images: Tensor, options: RoiAlignOptions, dy?: Tensor): { y: Float64Array; dx: Float64Array } {
  const tape = new Tape().watch([x])
  const y = tape.record(() => roiAlign(x, boxes, images, options))
  const [dx] = tape.backward(y, [x], dy ?? Tensor.full(y.shape, 1, y.dtype))
  return { y: Float64Array.from(y.data()), dx: Float64Array.from(dx!.data()) }
}

for (const { channels, dtype } of forms) {
  const name = `${channels} channels in ${dtype}`

  test(`${name}: a box that is not finite has NaN and sends nothing, one that is far larger than the map ends`, () => {
    withDevice(device, () =>
      scope(() => {
        const x = Tensor.full([1, 5, 5, channels], 2, dtype)
        const boxes = [
          [NaN, 1, 2, 2],
          [1, 1, Infinity, 2],
          [1, -1e30, 2, 1e30],
        ]
        for (const size of [1, 12]) {
          const { y, dx } = both(x, boxesOf(boxes.flat()), imagesOf([0, 0, 0]), { size })
          assert.ok(y.every(Number.isNaN) && dx.every((value) => value === 0))
        }
        // Along each side 2^20 samples, of which those at -1/2 .. 5 count: the border is repeated up to there.
        const { y } = both(x, boxesOf([-(2 ** 19), -(2 ** 19), 2 ** 19, 2 ** 19]), imagesOf([0]), { size: 1, aligned: false })
        assert.ok(y.every((value) => Math.abs(value / ((2 * 36) / 2 ** 40) - 1) < 2 ** -7))
      }),
    )
  })

  test(`${name}: bins of a constant map are that constant, and what a box sends back adds up to its bins`, () => {
    withDevice(device, () =>
      scope(() => {
        const random = new Random(3)
        for (const size of [1, 7, 14, 19]) {
          const boxes = Array.from({ length: 6 }, () => [
            random.uniform(1, 18),
            random.uniform(1, 18),
            random.uniform(20, 38),
            random.uniform(20, 38),
          ]).flat()
          for (const samplingRatio of [0, 3]) {
            const options = { size, samplingRatio }
            const { y, dx } = both(Tensor.full([1, 40, 40, channels], 1, dtype), boxesOf(boxes), imagesOf([0, 0, 0, 0, 0, 0]), options)
            // Weights err by less than bf16 can show.
            const error = y.reduce((most, value) => Math.max(most, Math.abs(value - 1)), 0)
            assert.ok(error <= (dtype === 'f32' ? 1e-5 : 0), `bins err by ${error}`)
            const sum = dx.reduce((a, b) => a + b, 0) / channels / 6 / size ** 2
            assert.ok(Math.abs(sum - 1) < (dtype === 'f32' ? 1e-5 : 2 ** -10), `gradients add up to ${sum}`)
          }
        }
      }),
    )
  })

  test(`${name}: images have the gradients that they have alone, bit for bit, however many boxes there are`, () => {
    withDevice(device, () =>
      scope(() => {
        const random = new Random(4)
        const [count, size] = [1100, [2, 9] as const]
        const x = normals(random, [3, 9, 12, channels], dtype)
        const boxes = randomBoxes(random, count, 9, 12)
        const images = Array.from({ length: count }, () => random.below(4) - 1)
        const dy = normals(random, [count, ...size, channels], dtype)
        const all = both(x, boxesOf(boxes), imagesOf(images), { size }, dy)
        assert.equal(both(x, boxesOf(boxes), imagesOf(images), { size }, dy), all)
        const [perMap, perBox] = [9 * 12 * channels, 18 * channels]
        for (let image = 0; image < 3; ++image) {
          const rows = images.flatMap((of, r) => (of === image ? [r] : []))
          const [values, cotangents] = [x.data(), dy.data()]
          const alone = both(
            Tensor.from(values.slice(image * perMap, (image + 1) * perMap), [1, 9, 12, channels], dtype),
            boxesOf(rows.flatMap((r) => [...boxes.slice(4 * r, 4 * r + 4)])),
            imagesOf(rows.map(() => 0)),
            { size },
            Tensor.from(
              rows.flatMap((r) => [...cotangents.slice(r * perBox, (r + 1) * perBox)]),
              [rows.length, ...size, channels],
              dtype,
            ),
          )
          assert.equal(alone.dx, all.dx.slice(image * perMap, (image + 1) * perMap))
          rows.forEach((r, i) => {
            assert.equal(alone.y.slice(i * perBox, (i + 1) * perBox), all.y.slice(r * perBox, (r + 1) * perBox))
          })
        }
      }),
    )
  })
}

test.run()
