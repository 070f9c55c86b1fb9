/** Every op of the CPU in bf16 against its own f64, from the same rounded inputs. */
import fc from 'fast-check'
import * as assert from 'uvu/assert'

import { Tape } from '../../src/autograd/tape.js'
import { add } from '../../src/ops/arithmetic.js'
import type { OpName } from '../../src/ops/catalogue.js'
import { conv2d } from '../../src/ops/conv2d.js'
import { matmul } from '../../src/ops/matmul.js'
import { Random } from '../../src/tensor/random.js'
import { type DType, scope, sizeOf, Tensor } from '../../src/tensor/tensor.js'
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

/** Asserts that results are the expected ones, or within what Winograd's transforms in f32 may be off before they are rounded. */
function near(actual: ArrayLike<number>, expected: ArrayLike<number>, stored: DType, what: string): void {
  const most = Math.max(...Array.from(expected, Math.abs))
  for (let i = 0; i < expected.length; ++i) {
    const bound = 2e-5 * most + (stored === 'bf16' ? 2 ** -8 * Math.abs(expected[i]!) : 0)
    assert.ok(Math.abs(actual[i]! - expected[i]!) <= bound, `${what}, ${i}: ${actual[i]} instead of ${expected[i]}`)
  }
}

test('products of whole numbers are exact, whatever is left over at the ends of tiles, panels, blocks and words', () => {
  const size = fc.constantFrom(1, 2, 7, 15, 16, 17, 31, 32, 33, 48, 64, 65, 97, 130)
  const cases = fc.record({
    n: fc.integer({ min: 1, max: 2 }),
    side: fc.constantFrom([1, 1], [5, 7], [1, 97], [14, 14], [8, 16], [16, 33]),
    channels: fc.oneof(fc.constantFrom(3, 4), size),
    outs: size,
    kernel: fc.constantFrom(1, 1, 3, 7),
    stride: fc.integer({ min: 1, max: 2 }),
    m: size,
    transpose: fc.boolean(),
  })
  fc.assert(
    fc.property(cases, fc.integer(), ({ n, side, channels, outs, kernel, stride, m, transpose }, seed) => {
      scope(() => {
        const random = new Random(seed)
        const draw = (shape: number[]): Tensor =>
          Tensor.from(
            Float64Array.from({ length: sizeOf(shape) }, () => Math.floor(random.uniform(-2, 3))),
            shape,
            'f64',
          )
        const padding = (kernel - 1) / 2
        const [h, w] = side.map((length) => Math.floor((length - 1) / stride) + 1)
        const drawn = [draw([n, ...side, channels]), draw([outs, kernel, kernel, channels]), draw([n, h!, w!, outs])]
        const matrices = [draw([m, channels]), draw(transpose ? [outs, channels] : [channels, outs])]
        const compute = (dtype: DType): Tensor[] => {
          const [x, weight, dy, a, b] = [...drawn, ...matrices].map((each) => Tensor.from(each.data(), each.shape, dtype))
          const tape = new Tape().watch([x!, weight!])
          const y = tape.record(() => conv2d(x!, weight!, undefined, { stride, padding }))
          return [y, ...tape.backward(y, [x!, weight!], dy), matmul(a!, b!, { transposeB: transpose })] as Tensor[]
        }
        const exact = compute('f64')
        compute('bf16').forEach((each, i) => {
          const expected = Tensor.from(exact[i]!.data(), each.shape, each.dtype)
          const what = ['y', 'dx', 'dweight', 'matmul'][i]!
          // What Winograd's transforms are taken for, where products of bf16 are those of floats.
          const transformed = what !== 'matmul' && kernel === 3 && stride === 1 && [channels, outs].every((c) => c % 16 === 0 && c >= 32)
          if (transformed) near(each.data(), expected.data(), each.dtype, what)
          else assert.equal(each.data(), expected.data(), what)
        })
      })
    }),
    { numRuns: 2 * runs },
  )
})

test.run()
