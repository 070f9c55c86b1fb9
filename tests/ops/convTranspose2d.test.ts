/** The transposed convolution against plain loops, and against the gradient of the convolution that it transposes. */
import fc from 'fast-check'
import * as assert from 'uvu/assert'

import { Tape } from '../../src/autograd/tape.js'
import { sum } from '../../src/ops/reduce.js'
import { mul } from '../../src/ops/arithmetic.js'
import { conv2d } from '../../src/ops/conv2d.js'
import { convTranspose2d } from '../../src/ops/convTranspose2d.js'
import { permute } from '../../src/ops/permute.js'
import { Random } from '../../src/tensor/random.js'
import { scope, Tensor } from '../../src/tensor/tensor.js'
import { checkGradients, randomTensor, relativeDifference } from '../support/gradients.js'
import { suite, throwsError } from '../support/suite.js'

const test = suite('convTranspose2d')
const integer = (min: number, max: number): fc.Arbitrary<number> => fc.integer({ min, max })
const cases = fc.record({
  n: integer(0, 2),
  h: integer(1, 3),
  w: integer(1, 4),
  inputs: integer(1, 4),
  outputs: integer(1, 4),
  kernel: fc.tuple(integer(1, 3), integer(1, 3)),
  seed: fc.nat(),
})

test('every pixel becomes its window, as loops compute it', () => {
  fc.assert(
    fc.property(cases, ({ n, h, w, inputs, outputs, kernel: [kh, kw], seed }) =>
      scope(() => {
        const random = new Random(seed)
        const [x, weight, bias] = [[n, h, w, inputs], [outputs, kh, kw, inputs], [outputs]].map((shape) => randomTensor(random, shape))
        const y = convTranspose2d(x!, weight!, bias)
        assert.equal(y.shape, [n, h * kh, w * kw, outputs])
        const [xs, ws, bs] = [x!.data(), weight!.data(), bias!.data()]
        const expected = Float64Array.from({ length: y.size }, (_, at) => {
          const [o, column, row] = [at % outputs, Math.floor(at / outputs) % (w * kw), Math.floor(at / outputs / w / kw) % (h * kh)]
          const image = Math.floor(at / outputs / (w * kw) / (h * kh))
          let value = bs[o]!
          for (let c = 0; c < inputs; ++c)
            value +=
              xs[((image * h + Math.floor(row / kh)) * w + Math.floor(column / kw)) * inputs + c]! *
              ws[((o * kh + (row % kh)) * kw + (column % kw)) * inputs + c]!
          return value
        })
        assert.ok(relativeDifference(y.data(), expected) < 1e-12)
      }),
    ),
  )
})

test('it is the gradient of the convolution whose stride is its kernel, and its own gradients are those of differences', () =>
  scope(() => {
    const random = new Random(1)
    const [x, weight, bias] = [[2, 3, 2, 4], [5, 2, 3, 4], [5]].map((shape) => randomTensor(random, shape))
    const large = randomTensor(random, [2, 6, 6, 5])
    const tape = new Tape().watch([large])
    const product = tape.record(() => sum(mul(x!, conv2d(large, permute(weight!, [3, 1, 2, 0]), undefined, { stride: [2, 3] }))))
    const [gradient] = tape.backward(product, [large])
    assert.ok(relativeDifference(convTranspose2d(x!, weight!).data(), gradient!.data()) < 1e-12)
    checkGradients(([a, b, c]) => convTranspose2d(a!, b!, c), [x!, weight!, bias!], new Random(2))
  }))

test('operands that do not fit are refused with both shapes', () =>
  scope(() => {
    const of = (...shape: number[]): Tensor => Tensor.zeros(shape)
    throwsError(() => convTranspose2d(of(1, 2, 2, 3), of(4, 2, 2, 5)), 'SHAPE', /weight of 3 channels, as x .*1,2,2,3.*4,2,2,5/)
    throwsError(() => convTranspose2d(of(1, 2, 2, 3), of(4, 2, 2, 3), of(3)), 'SHAPE', /bias/)
    throwsError(() => convTranspose2d(of(2, 2, 3), of(4, 2, 2, 3)), 'SHAPE', /x/)
  }))

test.run()
