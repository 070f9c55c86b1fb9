/** A convolution that norms its result: the same bits as in two passes, of the weights as they are. */
import fc from 'fast-check'
import * as assert from 'uvu/assert'

import { Tape } from '../../src/autograd/tape.js'
import { batchNorm } from '../../src/ops/batchNorm.js'
import { conv2d } from '../../src/ops/conv2d.js'
import { conv2dNorm, type RunningNorm } from '../../src/ops/conv2dNorm.js'
import { sum } from '../../src/ops/reduce.js'
import { Sgd } from '../../src/optim/sgd.js'
import { native, runNative } from '../../src/tensor/native.js'
import { Random } from '../../src/tensor/random.js'
import { type FloatDType, scope, Tensor } from '../../src/tensor/tensor.js'
import { suite, throwsError } from '../support/suite.js'

const test = suite('conv2dNorm')

interface Example {
  dtype: FloatDType
  images: number
  side: readonly [number, number]
  inputs: number
  outputs: number
  kernel: number
  stride: number
  dilation: number
  relu: boolean
  join: boolean
  seed: number
}
const example: fc.Arbitrary<Example> = fc.record({
  dtype: fc.constantFrom<FloatDType>('f32', 'f64', 'bf16'),
  images: fc.constantFrom(1, 2, 5),
  side: fc.tuple(fc.integer({ min: 1, max: 13 }), fc.integer({ min: 1, max: 13 })),
  // Merged rows, whole panels and parts of them, and what Winograd's transforms take.
  inputs: fc.constantFrom(3, 8, 32, 48, 70),
  outputs: fc.constantFrom(1, 16, 32, 72, 130),
  kernel: fc.constantFrom(1, 3, 3, 5),
  stride: fc.constantFrom(1, 1, 2),
  dilation: fc.constantFrom(1, 1, 2),
  relu: fc.boolean(),
  join: fc.boolean(),
  seed: fc.nat(),
})

function made({ dtype, images, side, inputs, outputs, kernel, stride, dilation, relu, join, seed }: Example) {
  const random = new Random(seed)
  const draw = (shape: readonly number[], of = (): number => random.normal(), as: FloatDType = dtype): Tensor =>
    Tensor.drawn(() => Float64Array.from({ length: shape.reduce((size, each) => size * each, 1) }, of), shape, as)
  const statistic = dtype === 'f64' ? 'f64' : 'f32'
  const [x, weight] = [draw([images, ...side, inputs]), draw([outputs, kernel, kernel, inputs])]
  const norm: RunningNorm = {
    weight: draw([outputs], undefined, statistic),
    bias: draw([outputs], undefined, statistic),
    runningMean: draw([outputs], undefined, statistic),
    runningVar: draw([outputs], () => 0.1 + random.uniform(0, 3), statistic),
  }
  const windows = { stride, dilation, padding: dilation * (kernel >> 1) }
  const plain = (): Tensor => conv2d(x, weight, undefined, windows)
  const residual = join ? draw([...plain().shape]) : undefined
  const apart = (): Tensor =>
    batchNorm(plain(), norm.weight, norm.bias, norm.runningMean, norm.runningVar, { train: false, relu, residual })
  const fused = (): Tensor => conv2dNorm(x, weight, norm, { ...windows, relu, residual })
  return { x, weight, norm, apart, fused }
}

const usual: Example = {
  ...{ dtype: 'f32', images: 1, side: [6, 6], inputs: 32, outputs: 32, kernel: 3, stride: 1, dilation: 1, relu: true, join: true },
  seed: 5,
}

const bitsOf = (x: Tensor): Uint8Array => {
  const { buffer, byteOffset, byteLength } = x.data()
  return new Uint8Array(buffer, byteOffset, byteLength)
}

/**
 * That two results have the same bits. Portable products have no FMA; where the processor has one, a norm by itself uses it, and the
 * last bits differ.
 */
function assertSame(actual: Tensor, expected: Tensor, what: string): void {
  if (native.instructionSet() !== 'portable') return assert.equal(bitsOf(actual), bitsOf(expected), what)
  const [values, others] = [actual.data(), expected.data()].map((all) => Array.from(all as Float32Array)) as [number[], number[]]
  const bound = { f64: 1e-13, f32: 1e-5, bf16: 1e-2 }[actual.dtype as FloatDType] * Math.max(1, ...others.map(Math.abs))
  for (const [i, value] of values.entries()) assert.ok(Math.abs(value - others[i]!) <= bound, `${what} at ${i}: ${value}, ${others[i]}`)
}

test('one pass gives the bits of two, with weights that are packed and with those that were', () => {
  fc.assert(
    fc.property(example, (p) =>
      scope(() => {
        const { apart, fused } = made(p)
        const expected = apart()
        for (let time = 0; time < 3; ++time) assertSame(fused(), expected, `${JSON.stringify(p)} time ${time}`)
      }),
    ),
    {
      numRuns: Number(process.env.DENSECL_TEST_RUNS ?? 60),
      // Taps that are summed some at a time, of which the last alone is normed, and transforms in f32 of what is stored in bf16.
      examples: [[{ ...usual, side: [9, 9], inputs: 300, outputs: 72, stride: 2 }], [{ ...usual, dtype: 'bf16', side: [9, 9] }]],
    },
  )
})

test('of many values in bf16 each has the bits of two passes, also where a panel has columns behind the last', () => {
  if (native.instructionSet() === 'portable') return
  for (const [outputs, relu] of [
    [27, true],
    [24, false],
  ] as const)
    scope(() => {
      const { apart, fused } = made({ ...usual, dtype: 'bf16', images: 4, side: [80, 80], kernel: 1, outputs, relu })
      const [expected, actual] = [apart().data(), fused().data()]
      assert.is(actual.filter((value, i) => value !== expected[i]).length, 0, `values of ${outputs} channels that differ`)
    })
})

test('whoever writes the weights, what follows is of the new ones; the memory of the packed ones is given back', () => {
  const writers: Record<string, (weight: Tensor) => void> = {
    write: (weight) => weight.write(weight.data().map((value) => 2 * value)),
    'a view': (weight) => weight.alias([weight.size]).write(weight.data().map((value) => -value)),
    'an optimiser': (weight) => {
      const optimizer = new Sgd(new Map([['weight', weight]]), { momentum: 0.9, weightDecay: 0 })
      optimizer.step([Tensor.full(weight.shape, 1, weight.dtype)], 0.1)
      optimizer.dispose()
    },
    'a moving average': (weight) =>
      runNative(
        'ema',
        { averages: [weight], sources: [Tensor.full(weight.shape, 3, weight.dtype)], copies: [undefined] },
        { momentum: 0.5 },
      ),
    'an op': (weight) => runNative('fill', { y: weight }, { value: 0.25 }),
  }
  for (const [name, change] of Object.entries(writers))
    scope(() => {
      const { weight, apart, fused } = made(usual)
      const before = native.memory().live
      const first = bitsOf(scope(fused))
      assert.ok(native.memory().live >= before + weight.bytes, 'nothing was kept')
      change(weight)
      const expected = apart()
      assert.not.equal(bitsOf(expected), first, name)
      assertSame(fused(), expected, name)
      weight.write(weight.data())
      assert.ok(native.memory().live < before + 2 * weight.bytes + 2 * first.length, `${name}: what was kept is still there`)
    })
})

test('weights that are convolved in several ways are packed for each', () => {
  scope(() => {
    const { x, weight, norm } = made({ ...usual, inputs: 8, side: [9, 9] })
    const wide = weight.alias([32, 1, 9, 8])
    for (let time = 0; time < 2; ++time)
      for (const [w, windows] of [
        [weight, { padding: 1 }],
        [weight, { padding: 2, dilation: 2 }],
        [wide, { padding: 4 }],
      ] as const) {
        const expected = batchNorm(conv2d(x, w, undefined, windows), norm.weight, norm.bias, norm.runningMean, norm.runningVar, {
          train: false,
        })
        assertSame(conv2dNorm(x, w, norm, windows), expected, `windows of padding ${windows.padding}`)
      }
  })
})

test('where a tape records it, gradients are those of the two ops', () => {
  scope(() => {
    for (const watched of ['x', 'weight', 'norm'] as const) {
      const { x, weight, norm, apart, fused } = made(usual)
      const target = { x, weight, norm: norm.weight }[watched]
      const [a, b] = [apart, fused].map((body) => {
        const tape = new Tape().watch([target])
        return tape.backward(
          tape.record(() => sum(body())),
          [target],
        )[0]!
      }) as [Tensor, Tensor]
      assert.equal(bitsOf(b), bitsOf(a), watched)
      assert.ok(a.data().some((value) => value !== 0))
    }
  })
})

test('a residual of another shape and weights that do not fit are refused', () => {
  scope(() => {
    const { x, weight, norm } = made(usual)
    throwsError(() => conv2dNorm(x, weight, norm, { residual: Tensor.zeros([1, 5, 6, 32]) }), 'SHAPE', /residual/)
    throwsError(() => conv2dNorm(x, Tensor.zeros([32, 3, 3, 31]), norm, { padding: 1 }), 'SHAPE', /weight/)
    throwsError(() => conv2dNorm(x, weight, { ...norm, bias: Tensor.zeros([31]) }, { padding: 1 }), 'SHAPE', /normBias/)
  })
})

test.run()
