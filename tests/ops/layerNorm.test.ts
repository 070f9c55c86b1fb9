/** Layer norm against its definition, and what it does not depend on. */
import fc from 'fast-check'
import * as assert from 'uvu/assert'

import { layerNorm } from '../../src/ops/layerNorm.js'
import { Random } from '../../src/tensor/random.js'
import { type FloatDType, scope, Tensor } from '../../src/tensor/tensor.js'
import { randomTensor, relativeDifference } from '../support/gradients.js'
import { suite, throwsError } from '../support/suite.js'

const test = suite('layerNorm')
const shapes = fc.record({ rows: fc.integer({ min: 1, max: 5 }), c: fc.integer({ min: 4, max: 100 }), seed: fc.nat() })

function definition(x: ArrayLike<number>, c: number, weight: ArrayLike<number>, bias: ArrayLike<number>, eps: number): Float64Array {
  return Float64Array.from(x, (value, i) => {
    const row = Array.from({ length: c }, (_, k) => x[i - (i % c) + k]!)
    const mean = row.reduce((sum, v) => sum + v, 0) / c
    const variance = row.reduce((sum, v) => sum + (v - mean) ** 2, 0) / c
    return ((value - mean) / Math.sqrt(variance + eps)) * weight[i % c]! + bias[i % c]!
  })
}

test('layer norm is what its definition says', () => {
  fc.assert(
    fc.property(shapes, ({ rows, c, seed }) => {
      scope(() => {
        const random = new Random(seed)
        const [x, weight, bias] = [randomTensor(random, [rows, 1, c]), randomTensor(random, [c]), randomTensor(random, [c])]
        const expected = definition(x.data(), c, weight.data(), bias.data(), 1e-3)
        assert.ok(relativeDifference(layerNorm(x, weight, bias, { eps: 1e-3 }).data(), expected) < 1e-12)
      })
    }),
  )
})

test('neither a shift nor a scale of x changes its layer norm', () => {
  fc.assert(
    fc.property(shapes, ({ rows, c, seed }) => {
      scope(() => {
        const x = randomTensor(new Random(seed), [rows, c])
        const moved = Tensor.from(
          Float64Array.from(x.data(), (value) => 7 * value - 40),
          x.shape,
          'f64',
        )
        assert.ok(
          relativeDifference(
            layerNorm(moved, undefined, undefined, { eps: 0 }).data(),
            layerNorm(x, undefined, undefined, { eps: 0 }).data(),
          ) < 1e-10,
        )
      })
    }),
  )
})

test('a mean far from zero costs f32 no more than its own rounding', () => {
  scope(() => {
    const [rows, c, shift] = [4, 1000, 3000]
    const random = new Random(3)
    const values = Float32Array.from({ length: rows * c }, () => shift + random.normal())
    const one = Float64Array.from({ length: c }, () => 1)
    const expected = definition(values, c, one, new Float64Array(c), 1e-5)
    assert.ok(relativeDifference(layerNorm(Tensor.from(values, [rows, c])).data(), expected) < shift * 2 ** -24)
  })
})

test('wrong arguments are named with their shapes', () => {
  scope(() => {
    const x = (dtype: FloatDType = 'f32'): Tensor => Tensor.zeros([2, 3], dtype)
    throwsError(() => layerNorm(x(), Tensor.zeros([2])), 'SHAPE', /layerNorm/, /weight \[3\]/, /f32\[2\]/)
    throwsError(() => layerNorm(x(), Tensor.zeros([3]), Tensor.zeros([1])), 'SHAPE', /bias \[3\]/)
    throwsError(() => layerNorm(x('f64'), Tensor.zeros([3])), 'DTYPE', /x f64\[2,3\]/, /weight f32\[3\]/)
    throwsError(() => layerNorm(Tensor.zeros([])), 'SHAPE', /rank 1/)
  })
})

test.run()
