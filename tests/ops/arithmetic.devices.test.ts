/** What of arithmetic the cases of the catalogue do not reach: integers on a device, gradients of mixed dtypes, where in bf16. */
import * as assert from 'uvu/assert'

import { Tape } from '../../src/autograd/tape.js'
import { equal, less, mul, sub, where } from '../../src/ops/arithmetic.js'
import { relu } from '../../src/ops/elementwise.js'
import { matmul } from '../../src/ops/matmul.js'
import { mean, sum, variance } from '../../src/ops/reduce.js'
import { Random } from '../../src/tensor/random.js'
import { type FloatDType, scope, sizeOf, Tensor, withDevice } from '../../src/tensor/tensor.js'
import { deviceTraits } from '../../src/tensor/traits.js'
import { device } from '../support/devices.js'
import { relativeDifference } from '../support/gradients.js'
import { suite } from '../support/suite.js'

const test = suite(`arithmetic on ${device}`, device)

const exact = (where: string): boolean => deviceTraits(where).dtypes.includes('f64')
const on = <R>(body: () => R): R => withDevice(device, () => scope(body))

test('comparisons of integers are exact where floats would not tell them apart', () => {
  on(() => {
    const big = 2 ** 24
    const [a, b] = [Tensor.from([big, big + 1, -big - 1, 7], [4], 'i32'), Tensor.from([big + 1, big + 1, -big, 7], [4], 'i32')]
    assert.equal([...equal(a, b).data()], [0, 1, 0, 1])
    assert.equal([...less(a, b).data()], [1, 0, 1, 0])
    assert.equal([...equal(Tensor.from([0, 255, 3], [3], 'u8'), Tensor.from([255], [1], 'u8')).data()], [0, 1, 0])
  })
})

test('where moves the bits of every dtype', () => {
  for (const dtype of ['f32', 'bf16', 'i32', 'u8'] as const)
    on(() => {
      const condition = Tensor.from([1, 0, 2], [3, 1], 'u8')
      const y = where(condition, Tensor.from([1, 2], [2], dtype), Tensor.from([5, 6, 7], [3, 1], dtype))
      assert.equal([...y.data()], [1, 2, 6, 6, 1, 2], dtype)
    })
})

test('a vector of bf16 gets its gradient in f32, and what comes before it one that it can use', () => {
  const random = new Random(4)
  const draw = (...shape: number[]): Float32Array => Float32Array.from({ length: sizeOf(shape) }, () => random.normal())
  const [values, factors, weights] = [draw(50, 12), draw(12), draw(12, 7)]
  // The mean's gradient and that of `factor` are sums in f32; relu and the product saved tensors of bf16. y is used twice.
  const run = (where: string, dtype: FloatDType): { dtype: string; values: ArrayLike<number> }[] =>
    withDevice(where, () =>
      scope(() => {
        const make = (data: Float32Array, shape: number[]): Tensor =>
          exact(where) ? Tensor.from(Float64Array.from(data), shape, 'f64') : Tensor.from(data, shape, dtype)
        const inputs = [make(values, [50, 12]), make(factors, [12]), make(weights, [12, 7])] as const
        const tape = new Tape().watch(inputs)
        const y = tape.record(() => {
          const rectified = relu(inputs[0])
          const centred = sub(rectified, mean(rectified, { axes: 1, keepDims: true }))
          return sum(matmul(mul(centred, inputs[1]), inputs[2]), exact(where) ? {} : { dtype: 'f32' })
        })
        return tape.backward(y, inputs).map((gradient) => ({ dtype: gradient.dtype, values: gradient.data() }))
      }),
    )
  const expected = run('cpu', 'f64')
  for (const [dtype, bound] of [
    ['f32', 1e-5],
    ['bf16', 5e-2],
  ] as const) {
    const actual = run(device, dtype)
    assert.is(actual[1]!.dtype, 'f32')
    for (const [i, { values: gradient }] of actual.entries())
      assert.ok(
        relativeDifference(gradient, expected[i]!.values) < bound,
        `${dtype} ${i}: ${relativeDifference(gradient, expected[i]!.values)}`,
      )
  }
})

test('the variance of bf16 is that of its values, where the mean is no bf16', () => {
  if (!deviceTraits(device).dtypes.includes('bf16')) return
  on(() => {
    const x = Tensor.from([100, 100.5, 100, 100.5], 'bf16')
    assert.is(variance(x).item(), 0.0625)
    const tape = new Tape().watch([x])
    const [gradient] = tape.backward(
      tape.record(() => variance(x)),
      [x],
    )
    assert.equal([...gradient!.data()], [-0.125, 0.125, -0.125, 0.125])
  })
})

test.run()
