/** Weights in f32 that meet maps in bf16: every product rounds them as somebody would who makes a copy. */
import fc from 'fast-check'
import * as assert from 'uvu/assert'

import { Tape } from '../../src/autograd/tape.js'
import { conv2d } from '../../src/ops/conv2d.js'
import { conv2dNorm } from '../../src/ops/conv2dNorm.js'
import { convTranspose2d } from '../../src/ops/convTranspose2d.js'
import { linear } from '../../src/ops/linear.js'
import { memory } from '../../src/tensor/runtime.js'
import { Random } from '../../src/tensor/random.js'
import { type DType, scope, sizeOf, Tensor, withDevice } from '../../src/tensor/tensor.js'
import { device } from '../support/devices.js'
import { suite, throwsError } from '../support/suite.js'

const test = suite(`rounded weights on ${device}`, device)
const places = ['cpu', device]
const runs = Number(process.env.DENSECL_TEST_RUNS ?? 25)
const drawn = (random: Random, shape: number[], dtype: DType = 'f32'): Tensor =>
  Tensor.from(
    Array.from({ length: sizeOf(shape) }, () => random.normal()),
    shape,
    dtype,
  )

test('results and gradients are the bits of a rounded copy, and the gradient of the weight is of f32', () => {
  const cases = fc.record({
    kind: fc.constantFrom('linear', 'conv2d', 'grouped', 'depthwise', 'transposed'),
    kernel: fc.constantFrom(1, 3),
    stride: fc.constantFrom(1, 2),
    side: fc.constantFrom(2, 7, 9),
    channels: fc.constantFrom(8, 16),
    outputs: fc.constantFrom(8, 24),
    biased: fc.boolean(),
    on: fc.constantFrom(...places),
    seed: fc.integer(),
  })
  fc.assert(
    fc.property(cases, ({ kind, kernel, stride, side, channels, outputs, biased, on, seed }) => {
      const random = new Random(seed)
      withDevice(on, () =>
        scope(() => {
          const flat = kind === 'linear'
          const groups = kind === 'depthwise' ? channels : kind === 'grouped' ? 2 : 1
          const o = kind === 'depthwise' ? channels : outputs
          const x = drawn(random, flat ? [side, channels] : [2, side, side, channels], 'bf16')
          const weight = drawn(random, flat ? [o, channels] : [o, kernel, kernel, channels / groups])
          const bias = biased ? drawn(random, [o]) : undefined
          const windows = { stride, padding: (kernel - 1) / 2, groups }
          const product = (w: Tensor): Tensor =>
            flat ? linear(x, w, bias) : kind === 'transposed' ? convTranspose2d(x, w, bias) : conv2d(x, w, bias, windows)
          const dy = drawn(random, [...product(weight).shape], 'bf16')
          const before = memory().live
          const all = (w: Tensor): number[][] =>
            scope(() => {
              const watched = bias === undefined ? [x, w] : [x, w, bias]
              const tape = new Tape().watch(watched)
              const y = tape.record(() => product(w))
              const gradients = tape.backward(y, watched, dy)
              assert.is(gradients[1]!.dtype, 'f32')
              return [y, ...gradients].map((tensor) => [...tensor.data()])
            })
          const own = all(weight)
          assert.is(memory().live, before, 'what was rounded is freed')
          assert.equal(own, all(weight.to('bf16')))
        }),
      )
    }),
    { numRuns: 2 * runs },
  )
})

test('so are features, also after the weight was written', () => {
  for (const on of places)
    withDevice(on, () =>
      scope(() => {
        const random = new Random(3)
        const x = drawn(random, [1, 7, 7, 16], 'bf16')
        const norm = {
          weight: drawn(random, [24]),
          bias: drawn(random, [24]),
          runningMean: drawn(random, [24]),
          runningVar: Tensor.full([24], 0.7),
        }
        const weight = drawn(random, [24, 3, 3, 16])
        for (let i = 0; i < 2; ++i) {
          const features = (w: Tensor): number[] => [...conv2dNorm(x, w, norm, { padding: 1, relu: true }).data()]
          assert.equal(features(weight), features(weight.to('bf16')))
          weight.write(Float32Array.from({ length: weight.size }, () => random.normal()))
        }
      }),
    )
})

test('other mixtures of dtypes are refused', () => {
  withDevice(device, () =>
    scope(() => {
      const random = new Random(4)
      const [x, weight] = [drawn(random, [3, 8]), drawn(random, [8, 8], 'bf16')]
      throwsError(() => linear(x, weight), 'DTYPE', /expected one dtype but received x .* and weight/)
      throwsError(() => linear(x.to('bf16'), Tensor.zeros([8, 8], 'i32')), 'DTYPE', 'expected weight of dtype f32, f64 or bf16')
      throwsError(() => linear(x, undefined as unknown as Tensor), 'ARGUMENT', 'expected weight to be a tensor')
    }),
  )
})

test.run()
