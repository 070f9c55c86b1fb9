import fc from 'fast-check'
import * as assert from 'uvu/assert'

import { dropout } from '../../src/ops/elementwise.js'
import { scope, Tensor } from '../../src/tensor/tensor.js'
import { suite } from '../support/suite.js'

const test = suite('dropout')
const shapes = fc.tuple(
  fc.integer({ min: 1, max: 4 }),
  fc.integer({ min: 1, max: 6 }),
  fc.integer({ min: 1, max: 6 }),
  fc.integer({ min: 1, max: 9 }),
)

test('whole channels of an image are dropped or kept, each image by itself', () => {
  let differ = 0
  fc.assert(
    fc.property(shapes, fc.integer({ min: 0, max: 1000 }), ([n, h, w, c], seed) => {
      scope(() => {
        const y = dropout(Tensor.full([n, h, w, c], 1), 0.5, seed, { whole: true }).data()
        const channel = (image: number, k: number): number[] => Array.from({ length: h * w }, (_, i) => y[(image * h * w + i) * c + k]!)
        for (let image = 0; image < n; ++image) {
          for (let k = 0; k < c; ++k) {
            const values = new Set(channel(image, k))
            assert.is(values.size, 1)
            assert.ok(values.has(0) || values.has(2))
            if (image > 0 && channel(image, k)[0] !== channel(0, k)[0]) differ += 1
          }
        }
      })
    }),
  )
  assert.ok(differ > 0)
})

test('where a channel has one element, dropping channels is dropping elements', () => {
  fc.assert(
    fc.property(shapes, fc.integer({ min: 0, max: 1000 }), ([n, h, w, c], seed) => {
      scope(() => {
        const x = Tensor.full([n * h * w, 1, 1, c], 1)
        assert.equal(dropout(x, 0.5, seed, { whole: true }).data(), dropout(x, 0.5, seed, { whole: false }).data())
      })
    }),
  )
})

test('the share that is dropped is the probability, for elements and for channels', () => {
  for (const whole of [false, true]) {
    scope(() => {
      const dropped =
        dropout(Tensor.full([100, 2, 2, 50], 1), 0.3, 7, { whole })
          .data()
          .filter((value) => value === 0).length / 20_000
      // 5,000 channels: a deviation of 0.0065.
      assert.ok(Math.abs(dropped - 0.3) < 0.03, String(dropped))
    })
  }
})

test.run()
