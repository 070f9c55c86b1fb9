/** Products of matrices, softmax and argmax against plain JavaScript, at the ends of floating point, and their errors. */
import fc from 'fast-check'
import * as assert from 'uvu/assert'

import { matmul } from '../../src/ops/matmul.js'
import { argmax, logSoftmax, softmax } from '../../src/ops/softmax.js'
import { Random } from '../../src/tensor/random.js'
import { scope, sizeOf, Tensor } from '../../src/tensor/tensor.js'
import { randomTensor } from '../support/gradients.js'
import { suite, throwsError } from '../support/suite.js'

const test = suite('products and lines')
const seeds = fc.integer({ min: 0, max: 2 ** 30 })

test('a product is the triple loop, for every transposition, with batches that broadcast', () => {
  const size = fc.integer({ min: 1, max: 60 })
  const batches = fc.constantFrom<[number[], number[], number[]]>(
    [[], [], []],
    [[3], [], [3]],
    [[], [2], [2]],
    [[2, 1], [3], [2, 3]],
    [
      [2, 1],
      [1, 3],
      [2, 3],
    ],
    [[0], [], [0]],
  )
  fc.assert(
    fc.property(batches, size, size, fc.integer({ min: 0, max: 40 }), fc.boolean(), fc.boolean(), seeds, (of, m, n, k, ta, tb, seed) => {
      scope(() => {
        const random = new Random(seed)
        const [first, second, both] = of
        const a = randomTensor(random, [...first, ...(ta ? [k, m] : [m, k])])
        const b = randomTensor(random, [...second, ...(tb ? [n, k] : [k, n])])
        const y = matmul(a, b, { transposeA: ta, transposeB: tb })
        assert.equal(y.shape, [...both, m, n])
        const [x, z, values] = [a.data(), b.data(), y.data()]
        // The matrix of an operand whose leading axes are aligned to the right of those of y.
        const matrixOf = (shape: number[], batch: number): number => {
          let [rest, stride, at] = [batch, 1, 0]
          for (let i = 1; i <= both.length; ++i) {
            const index = rest % both[both.length - i]!
            rest = Math.floor(rest / both[both.length - i]!)
            const own = shape[shape.length - i] ?? 1
            at += own === 1 ? 0 : index * stride
            stride *= own
          }
          return at
        }
        for (let batch = 0; batch < sizeOf(both); ++batch) {
          const [p, q] = [matrixOf(first, batch) * m * k, matrixOf(second, batch) * k * n]
          for (let i = 0; i < m; ++i)
            for (let j = 0; j < n; ++j) {
              let total = 0
              for (let l = 0; l < k; ++l) total += x[p + (ta ? l * m + i : i * k + l)]! * z[q + (tb ? j * k + l : l * n + j)]!
              assert.ok(Math.abs(values[(batch * m + i) * n + j]! - total) < 1e-11)
            }
        }
      })
    }),
    { numRuns: 60 },
  )
})

test('matrices that cannot be multiplied are named with what was asked', () => {
  scope(() => {
    const [a, b] = [Tensor.zeros([2, 3, 4]), Tensor.zeros([5, 6])]
    throwsError(() => matmul(a, b), 'SHAPE', /matmul: .* received a f32\[2,3,4\] and b f32\[5,6\]/)
    throwsError(() => matmul(a, b, { transposeA: true }), 'SHAPE', /received a f32\[2,3,4\] transposed and b f32\[5,6\]/)
    throwsError(() => matmul(a, Tensor.zeros([3, 4, 7])), 'SHAPE', /leading axes broadcast/)
    throwsError(() => matmul(Tensor.zeros([4]), b), 'SHAPE', /matmul: expected a of rank 2 or more but received f32\[4\]/)
    throwsError(() => matmul(a, Tensor.zeros([4, 6], 'f64')), 'DTYPE', /expected one dtype/)
    throwsError(() => softmax(a, { axis: 3 }), 'ARGUMENT', /softmax: expected an axis of x f32\[2,3,4\], from -3 to 2, but received 3/)
    throwsError(() => argmax(Tensor.zeros([2, 0])), 'SHAPE', /argmax: expected at least one element along axis -1/)
  })
})

test('softmax sums to 1, is that of plain loops along any axis, and does not overflow', () => {
  const shapes = fc.array(fc.integer({ min: 1, max: 40 }), { minLength: 1, maxLength: 3 })
  fc.assert(
    fc.property(shapes, fc.integer({ min: -3, max: 2 }), fc.constantFrom(1, 1000), seeds, (shape, at, spread, seed) => {
      const axis = at < 0 ? Math.max(at, -shape.length) : Math.min(at, shape.length - 1)
      scope(() => {
        const random = new Random(seed)
        const x = Tensor.from(
          Float32Array.from({ length: sizeOf(shape) }, () => spread * random.normal()),
          shape,
        )
        const [values, y, log] = [x.data(), softmax(x, { axis }).data(), logSoftmax(x, { axis }).data()]
        const along = axis < 0 ? axis + shape.length : axis
        const [length, inner] = [shape[along]!, sizeOf(shape.slice(along + 1))]
        for (let line = 0; line < x.size / length; ++line) {
          const places = Array.from({ length }, (_, i) => Math.floor(line / inner) * length * inner + i * inner + (line % inner))
          const own = places.map((place) => values[place]!)
          const largest = own.reduce((a, b) => Math.max(a, b))
          const total = own.reduce((s, v) => s + Math.exp(v - largest), 0)
          places.forEach((place, i) => {
            const expected = own[i]! - largest - Math.log(total)
            assert.ok(Math.abs(y[place]! - Math.exp(expected)) < 1e-6)
            assert.ok(Math.abs(log[place]! - expected) < 1e-6 * Math.max(1, spread * 4))
          })
          assert.ok(Math.abs(places.reduce((s, place) => s + y[place]!, 0) - 1) < 1e-5)
        }
      })
    }),
    { numRuns: 80 },
  )
})

test('argmax is the lowest index of the largest, or of the first NaN, along any axis', () => {
  const shapes = fc.array(fc.integer({ min: 1, max: 7 }), { minLength: 1, maxLength: 3 })
  fc.assert(
    fc.property(shapes, fc.integer({ min: 0, max: 2 }), fc.boolean(), seeds, (shape, at, nan, seed) => {
      const along = Math.min(at, shape.length - 1)
      scope(() => {
        const random = new Random(seed)
        // Few values: ties are common.
        const values = Float32Array.from({ length: sizeOf(shape) }, () => (nan && random.below(5) === 0 ? NaN : random.below(3)))
        const index = argmax(Tensor.from(values, shape), { axis: along })
        const [length, inner] = [shape[along]!, sizeOf(shape.slice(along + 1))]
        index.data().forEach((found, line) => {
          const own = Array.from({ length }, (_, i) => values[Math.floor(line / inner) * length * inner + i * inner + (line % inner)]!)
          const firstNaN = own.findIndex(Number.isNaN)
          assert.is(found, firstNaN >= 0 ? firstNaN : own.indexOf(own.reduce((a, b) => Math.max(a, b))))
        })
      })
    }),
    { numRuns: 100 },
  )
})

test.run()
