/** Upsampling against plain loops and what it leaves as it is. */
import fc from 'fast-check'
import * as assert from 'uvu/assert'

import { Tape } from '../../src/autograd/tape.js'
import { resizeBilinear } from '../../src/ops/resizeBilinear.js'
import { upsample2d } from '../../src/ops/upsample2d.js'
import { Random } from '../../src/tensor/random.js'
import { scope, Tensor } from '../../src/tensor/tensor.js'
import { checkGradients, randomTensor, relativeDifference } from '../support/gradients.js'
import { suite, throwsError } from '../support/suite.js'

const test = suite('upsample2d')
const integer = (min: number, max: number): fc.Arbitrary<number> => fc.integer({ min, max })
const cases = fc.record({
  n: integer(1, 2),
  h: integer(1, 4),
  w: integer(1, 4),
  c: integer(1, 5),
  factor: fc.tuple(integer(1, 3), integer(1, 3)),
})
const modes = ['nearest', 'bilinear'] as const

test('nearest repeats every pixel in both directions', () => {
  fc.assert(
    fc.property(cases, ({ n, h, w, c, factor }) => {
      scope(() => {
        const x = randomTensor(new Random(1), [n, h, w, c])
        const y = upsample2d(x, factor)
        const [height, width] = [h * factor[0], w * factor[1]]
        assert.equal(y.shape, [n, height, width, c])
        const values = x.data()
        const expected = Float64Array.from({ length: y.size }, (_, i) => {
          const [channel, column, row] = [i % c, Math.floor(i / c) % width, Math.floor(i / c / width) % height]
          const image = Math.floor(i / c / width / height)
          return values[((image * h + Math.floor(row / factor[0])) * w + Math.floor(column / factor[1])) * c + channel]!
        })
        assert.equal(y.data(), expected)
      })
    }),
  )
})

test('bilinear is the resize to that size', () => {
  scope(() => {
    const x = randomTensor(new Random(2), [2, 3, 4, 5])
    assert.equal(upsample2d(x, 2, 'bilinear').data(), resizeBilinear(x, [6, 8]).data())
  })
})

test('both modes leave a constant as it is, and their gradients are those of finite differences', () => {
  for (const mode of modes)
    fc.assert(
      fc.property(cases, ({ n, h, w, c, factor }) => {
        scope(() => {
          const constant = upsample2d(Tensor.full([n, h, w, c], 3, 'f64'), factor, mode).data()
          assert.ok(constant.every((value) => Math.abs(value - 3) < 1e-12))
          checkGradients(([x]) => upsample2d(x!, factor, mode), [randomTensor(new Random(3), [n, h, w, c])], new Random(4))
        })
      }),
      { numRuns: 15 },
    )
})

test('every output gives its whole gradient to the pixels it came from', () => {
  for (const mode of modes)
    scope(() => {
      const x = randomTensor(new Random(5), [2, 3, 3, 2])
      const tape = new Tape().watch([x])
      const y = tape.record(() => upsample2d(x, [2, 3], mode))
      const cotangent = randomTensor(new Random(6), y.shape)
      const total = (tensor: Tensor): number => Array.from(tensor.data()).reduce((sum, value) => sum + value, 0)
      assert.ok(relativeDifference([total(tape.backward(y, [x], cotangent)[0]!)], [total(cotangent)]) < 1e-12)
    })
})

test('wrong arguments are named', () => {
  scope(() => {
    const x = Tensor.zeros([1, 2, 2, 1])
    throwsError(() => upsample2d(x, 0), 'ARGUMENT', /upsample2d/, /factor/, /received 0/)
    throwsError(() => upsample2d(x, 1.5), 'ARGUMENT', /integer/)
    throwsError(() => upsample2d(Tensor.zeros([2, 2]), 2), 'SHAPE', /x of rank 4/)
    throwsError(() => upsample2d(x, 2, 'cubic' as 'nearest'), 'ARGUMENT', /nearest or bilinear/, /cubic/)
  })
})

test.run()
