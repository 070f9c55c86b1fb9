/** What ops are defined to do where other definitions have the same gradients or the same values. */
import * as assert from 'uvu/assert'

import { Tape } from '../../src/autograd/tape.js'
import { batchNorm } from '../../src/ops/batchNorm.js'
import { conv2d } from '../../src/ops/conv2d.js'
import { maxPool2d } from '../../src/ops/pool2d.js'
import { sum } from '../../src/ops/reduce.js'
import { Random } from '../../src/tensor/random.js'
import { Tensor, scope } from '../../src/tensor/tensor.js'
import { suite } from '../support/suite.js'

const test = suite('conventions')

test('running statistics move by momentum to the mean and the unbiased variance, averaged over groups', () => {
  const random = new Random(3)
  for (const [n, groups, momentum] of [
    [6, 1, 0.1],
    [6, 3, 0.5],
    [1, 1, 1],
  ] as const) {
    scope(() => {
      const [pixels, c] = [2 * n, 3]
      const values = Float64Array.from({ length: pixels * c }, () => 4 * random.uniform() - 1)
      const ones = Tensor.full([c], 1, 'f64')
      const [mean, variance] = [Tensor.full([c], 5, 'f64'), Tensor.full([c], 7, 'f64')]
      batchNorm(Tensor.from(values, [n, 1, 2, c], 'f64'), ones, ones, mean, variance, { train: true, groups, momentum })
      for (let channel = 0; channel < c; channel++) {
        let [means, variances] = [0, 0]
        for (let group = 0; group < groups; group++) {
          const own = [...values].filter((_, i) => i % c === channel).slice((group * pixels) / groups, ((group + 1) * pixels) / groups)
          const center = own.reduce((all, value) => all + value, 0) / own.length
          means += center / groups
          variances += own.reduce((all, value) => all + (value - center) ** 2, 0) / (own.length - 1) / groups
        }
        for (const [running, before, now] of [
          [mean, 5, means],
          [variance, 7, variances],
        ] as const)
          assert.ok(
            Math.abs(running.data()[channel]! - ((1 - momentum) * before + momentum * now)) < 1e-12,
            `${n} images, ${groups} groups`,
          )
      }
    })
  }
})

test('a bias is added to every output channel, whatever tiles of channels the kernels compute at a time', () => {
  const random = new Random(4)
  const drawn = (size: number): Float64Array => Float64Array.from({ length: size }, () => random.uniform() - 0.5)
  for (const dtype of ['f32', 'f64'] as const)
    for (const out of [1, 7, 16, 32, 33, 64, 100])
      for (const [n, side] of [
        [1, 1],
        [3, 5],
      ] as const)
        scope(() => {
          const x = Tensor.from(drawn(n * side * side * 3), [n, side, side, 3], dtype)
          const weight = Tensor.from(drawn(out * 3), [out, 1, 1, 3], dtype)
          const bias = Tensor.from(drawn(out), [out], dtype)
          const [plain, biased] = [conv2d(x, weight).data(), conv2d(x, weight, bias).data()]
          const added = bias.data()
          for (let i = 0; i < plain.length; i++)
            assert.ok(
              Math.abs(biased[i]! - plain[i]! - added[i % out]!) < (dtype === 'f32' ? 1e-6 : 1e-14),
              `${dtype}, channel ${i % out} of ${out}`,
            )
        })
})

test('of equal values in a window the first in the order of rows is the maximum: the whole gradient is its', () => {
  const gradient = (rows: number[][], options: { kernel: number; stride: number; padding: number }): number[] =>
    scope(() => {
      const x = Tensor.from(rows.flat(), [1, rows.length, rows[0]!.length, 1], 'f64')
      const tape = new Tape().watch([x])
      const y = tape.record(() => sum(maxPool2d(x, options)))
      return [...tape.backward(y, [x])[0]!.data()]
    })
  const whole = { kernel: 2, stride: 2, padding: 0 }
  assert.equal(gradient([[3, 3], [3, 3]], whole), [1, 0, 0, 0]) // prettier-ignore
  assert.equal(gradient([[1, 3], [3, 3]], whole), [0, 1, 0, 0]) // prettier-ignore
  assert.equal(gradient([[1, 2], [3, 3]], whole), [0, 0, 1, 0]) // prettier-ignore
  const nothing = -Infinity
  assert.equal(gradient([[nothing, nothing], [nothing, nothing]], whole), [1, 0, 0, 0]) // prettier-ignore
  // Windows of 3 around each second place, which share columns.
  const sevens = Array.from({ length: 3 }, () => [7, 7, 7])
  assert.equal(gradient(sevens, { kernel: 3, stride: 2, padding: 1 }), [1, 1, 0, 1, 1, 0, 0, 0, 0])
})

test.run()
