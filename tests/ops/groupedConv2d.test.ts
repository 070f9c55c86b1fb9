/** Convolutions in groups against the definition, against the dense kernels, and what is refused. */
import fc from 'fast-check'
import * as assert from 'uvu/assert'

import { Tape } from '../../src/autograd/tape.js'
import { conv2d } from '../../src/ops/conv2d.js'
import { Random } from '../../src/tensor/random.js'
import { scope, Tensor } from '../../src/tensor/tensor.js'
import { randomTensor, relativeDifference } from '../support/gradients.js'
import { suite, throwsError } from '../support/suite.js'

const test = suite('groupedConv2d')
const integer = (min: number, max: number): fc.Arbitrary<number> => fc.integer({ min, max })
const seeds = fc.integer({ min: 0, max: 2 ** 30 })

/** The dense weights that do the same: [O, KH, KW, C], zero where output and channel are of different groups. */
function blockDiagonal(weight: Tensor, groups: number): Tensor {
  const [o, kh, kw, inGroup] = weight.shape as [number, number, number, number]
  const [c, values, dense] = [inGroup * groups, weight.data(), new Float64Array(o * kh * kw * inGroup * groups)]
  for (let i = 0; i < values.length; ++i) {
    const output = Math.floor(i / (kh * kw * inGroup))
    const group = Math.floor(output / (o / groups))
    dense[Math.floor(i / inGroup) * c + group * inGroup + (i % inGroup)] = values[i]!
  }
  return Tensor.from(dense, [o, kh, kw, c], 'f64')
}

test('a convolution in groups is the dense one with block-diagonal weights, and so are its gradients', () => {
  const cases = fc.record({
    n: integer(1, 2),
    h: integer(3, 9),
    w: integer(3, 9),
    groups: integer(2, 5),
    channels: integer(1, 5),
    outs: fc.constantFrom(1, 2, 4, 5, 16, 17),
    kernel: integer(1, 3),
    stride: integer(1, 3),
    padding: integer(0, 2),
  })
  fc.assert(
    fc.property(cases, seeds, ({ n, h, w, groups, channels, outs, kernel, stride, padding }, seed) => {
      scope(() => {
        const random = new Random(seed)
        const x = randomTensor(random, [n, h, w, groups * channels])
        const weight = randomTensor(random, [groups * outs, kernel, kernel, channels])
        const bias = randomTensor(random, [groups * outs])
        const dense = blockDiagonal(weight, groups)
        const through = (by: Tensor, of: number): { y: ArrayLike<number>; dx: ArrayLike<number>; dweight: Tensor } => {
          const tape = new Tape().watch([x, by])
          const y = tape.record(() => conv2d(x, by, bias, { stride, padding, groups: of }))
          const cotangent = randomTensor(new Random(seed, 1), y.shape)
          const [dx, dweight] = tape.backward(y, [x, by], cotangent) as [Tensor, Tensor]
          return { y: y.data(), dx: dx.data(), dweight }
        }
        const [grouped, whole] = [through(weight, groups), through(dense, 1)]
        assert.ok(relativeDifference(grouped.y, whole.y) < 1e-12, 'values')
        assert.ok(relativeDifference(grouped.dx, whole.dx) < 1e-12, 'the gradient of x')
        // Of the dense weights only those inside of the groups count.
        const mask = blockDiagonal(Tensor.full(weight.shape, 1, 'f64'), groups).data()
        const masked = whole.dweight.data().map((value, i) => value * mask[i]!)
        assert.ok(relativeDifference(blockDiagonal(grouped.dweight, groups).data(), masked) < 1e-12, 'the gradient of the weights')
      })
    }),
    { numRuns: 30 },
  )
})

test('a depthwise convolution is the sum over its taps, channel by channel', () => {
  scope(() => {
    // 64 + 16 + 3: each width of the vectorised loops.
    const [size, c, kernel, padding] = [6, 83, 3, 1]
    const [x, weight] = [randomTensor(new Random(1), [1, size, size, c]), randomTensor(new Random(2), [c, kernel, kernel, 1])]
    const [pixels, taps, expected] = [x.data(), weight.data(), new Float64Array(size * size * c)]
    for (let i = 0; i < expected.length; ++i) {
      const [channel, column, row] = [i % c, Math.floor(i / c) % size, Math.floor(i / c / size)]
      for (let t = 0; t < kernel * kernel; ++t) {
        const [h, w] = [row + Math.floor(t / kernel) - padding, column + (t % kernel) - padding]
        if (h >= 0 && h < size && w >= 0 && w < size)
          expected[i]! += pixels[(h * size + w) * c + channel]! * taps[channel * kernel * kernel + t]!
      }
    }
    assert.ok(relativeDifference(conv2d(x, weight, undefined, { padding, groups: c }).data(), expected) < 1e-14)
  })
})

test('one group is the dense convolution, to the bit', () => {
  scope(() => {
    const [x, weight] = [randomTensor(new Random(1), [2, 5, 5, 6]), randomTensor(new Random(2), [4, 3, 3, 6])]
    assert.equal(conv2d(x, weight, undefined, { groups: 1 }).data(), conv2d(x, weight).data())
  })
})

test('groups that do not divide, and weights of other channels, are named', () => {
  scope(() => {
    const x = Tensor.zeros([1, 4, 4, 6])
    const weight = (o: number, c: number): Tensor => Tensor.zeros([o, 3, 3, c])
    throwsError(() => conv2d(x, weight(4, 1), undefined, { groups: 4 }), 'ARGUMENT', /conv2d/, /groups/, /f32\[1,4,4,6\]/, /received 4/)
    throwsError(() => conv2d(x, weight(4, 2), undefined, { groups: 3 }), 'ARGUMENT', /weight f32\[4,3,3,2\]/)
    throwsError(() => conv2d(x, weight(6, 6), undefined, { groups: 3 }), 'SHAPE', /weight \[6,3,3,2\]/, /3 groups/, /f32\[6,3,3,6\]/)
    throwsError(() => conv2d(x, weight(6, 1), undefined, { groups: 1.5 }), 'ARGUMENT', /integer/, /1.5/)
    throwsError(() => conv2d(Tensor.zeros([1, 2, 2, 6]), weight(6, 1), undefined, { groups: 6 }), 'SHAPE', /larger than the padded x/)
    throwsError(() => conv2d(x, weight(6, 1), Tensor.zeros([5]), { groups: 6 }), 'SHAPE', /bias \[6\]/, /f32\[5\]/)
  })
})

test.run()
