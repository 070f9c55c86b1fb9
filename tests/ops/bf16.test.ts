/** Every op of the CPU in bf16 against its own f64, from the same rounded inputs. */
import * as assert from 'uvu/assert'

import { add } from '../../src/ops/arithmetic.js'
import type { OpName } from '../../src/ops/catalogue.js'
import { conv2d } from '../../src/ops/conv2d.js'
import { Random } from '../../src/tensor/random.js'
import { scope, Tensor } from '../../src/tensor/tensor.js'
import { checkAgreement } from '../support/agreement.js'
import { suite } from '../support/suite.js'
import { opCases } from './cases/index.js'

const runs = Number(process.env.DENSECL_TEST_RUNS ?? 25)

const test = suite('bf16 on the CPU')

for (const name of Object.keys(opCases) as OpName[]) {
  const { parameters, large } = opCases[name]
  test(`${name} in bf16`, () => {
    checkAgreement('cpu', name, parameters, runs, ['bf16'])
    if (large !== undefined) checkAgreement('cpu', name, large, Math.ceil(runs / 5), ['bf16'])
  })
}

test('what an op writes is its value in f32, rounded to the nearest bf16 once, by every width of a tile', () => {
  scope(() => {
    const random = new Random(5)
    const draw = (count: number): Float32Array => Float32Array.from({ length: count }, () => random.normal())
    const rounded = (values: ArrayLike<number>): Tensor => Tensor.from(Float32Array.from(values), [values.length], 'bf16')
    for (const channels of [3, 16, 64, 70]) {
      const [x, other, bias] = [rounded(draw(13 * channels)), rounded(draw(13 * channels)), draw(channels)]
      const sums = x.data().map((value, i) => Math.fround(value + other.data()[i]!))
      assert.equal(add(x, other).data(), rounded(sums).data())
      // Ones on a diagonal leave x as it is.
      const identity = Float32Array.from({ length: channels ** 2 }, (_, i) => (i % (channels + 1) === 0 ? 1 : 0))
      const y = conv2d(
        x.alias([1, 13, 1, channels]),
        Tensor.from(identity, [channels, 1, 1, channels], 'bf16'),
        Tensor.from(bias, [channels]),
      )
      assert.equal(y.data(), rounded(x.data().map((value, i) => Math.fround(value + bias[i % channels]!))).data())
    }
  })
})

test.run()
