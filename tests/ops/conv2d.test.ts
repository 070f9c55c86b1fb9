/**
 * The three products of a convolution against each other, at sizes around those of the register tiles and of the blocks they work in; those
 * of f32, where Winograd's transforms do a part of them, against f64.
 */
import fc from 'fast-check'
import * as assert from 'uvu/assert'

import { Tape } from '../../src/autograd/tape.js'
import { concat } from '../../src/ops/concat.js'
import { conv2d } from '../../src/ops/conv2d.js'
import { pad } from '../../src/ops/pad.js'
import { slice } from '../../src/ops/slice.js'
import { Random } from '../../src/tensor/random.js'
import { accumulator, scope, Tensor } from '../../src/tensor/tensor.js'
import { randomTensor } from '../support/gradients.js'
import { suite } from '../support/suite.js'

const test = suite('conv2d')

const inner = (a: Tensor, b: Tensor): number => {
  const other = b.data()
  let sum = 0
  a.data().forEach((value, i) => (sum += value * other[i]!))
  return sum
}

/** Says where values differ first: a diff of all takes minutes. */
function same(actual: ArrayLike<number>, expected: ArrayLike<number>, what: string): void {
  assert.is(actual.length, expected.length, what)
  for (let i = 0; i < actual.length; ++i) if (actual[i] !== expected[i]) assert.is(actual[i], expected[i], `${what}[${i}]`)
}

test('<dy, conv(x, w)> = <dx, x> = <dw, w>, whatever is left over at the ends of tiles, panels, blocks and chunks', () => {
  const cases = fc.record({
    n: fc.integer({ min: 1, max: 3 }),
    side: fc.constantFrom([1, 1], [5, 19], [8, 12], [1, 97], [14, 14], [29, 30]),
    channels: fc.constantFrom(1, 3, 15, 16, 17, 33, 64, 65, 130),
    outs: fc.constantFrom(1, 5, 6, 7, 12, 13, 33, 65),
    kernel: fc.constantFrom(1, 3),
    stride: fc.integer({ min: 1, max: 2 }),
  })
  fc.assert(
    fc.property(cases, fc.integer(), ({ n, side, channels, outs, kernel, stride }, seed) => {
      scope(() => {
        const random = new Random(seed)
        const x = randomTensor(random, [n, ...side, channels])
        const weight = randomTensor(random, [outs, kernel, kernel, channels])
        const tape = new Tape().watch([x, weight])
        const y = tape.record(() => conv2d(x, weight, undefined, { stride, padding: (kernel - 1) / 2 }))
        const dy = randomTensor(random, y.shape)
        const [dx, dweight] = tape.backward(y, [x, weight], dy) as [Tensor, Tensor]
        const expected = inner(dy, y)
        const bound = 1e-13 * Math.sqrt(inner(dy, dy) * inner(y, y))
        for (const [what, value] of Object.entries({ x: inner(dx, x), weight: inner(dweight, weight) }))
          assert.ok(Math.abs(value - expected) <= bound, `the gradient of ${what}: ${value}, not ${expected}`)
      })
    }),
    { numRuns: 60 },
  )
})

test('a panel that is too large for a cache is summed by some taps at a time: whole numbers exactly, as channels in two halves', () => {
  scope(() => {
    const random = new Random(7)
    const whole = (shape: readonly number[]): Tensor =>
      Tensor.drawn(() => Float64Array.from({ length: shape.reduce((a, b) => a * b) }, () => random.below(7) - 3), shape, 'f32')
    const [inputs, weights] = [[1, 2].map(() => whole([2, 9, 9, 150])), [1, 2].map(() => whole([72, 3, 3, 150]))]
    const bias = whole([72])
    const windows = { stride: 2, padding: 1 }
    const halves = inputs.map((x, i) => conv2d(x, weights[i]!, undefined, windows).data())
    const sums = conv2d(concat(inputs, 3), concat(weights, 3), bias, windows).data()
    const added = bias.data()
    assert.equal(
      Array.from(sums),
      Array.from(sums, (_, i) => halves[0]![i]! + halves[1]![i]! + added[i % 72]!),
    )
  })
})

test('weight gradients are split by pixels, by channels and by both: whole numbers exactly', () => {
  for (const dtype of ['f32', 'bf16'] as const)
    for (const [images, side, channels, outs] of [
      [1, 7, 70, 300],
      [4, 14, 20, 512],
      [2, 14, 20, 64],
      [2, 17, 20, 1030],
    ] as const)
      scope(() => {
        const random = new Random(9)
        const pixels = images * side * side
        const whole = (count: number): Float64Array => Float64Array.from({ length: count }, () => random.below(7) - 3)
        const [xs, dys] = [whole(pixels * channels), whole(pixels * outs)]
        const x = Tensor.from(xs, [images, side, side, channels], 'f32').to(dtype)
        const weight = Tensor.zeros([outs, 1, 1, channels], dtype)
        const tape = new Tape().watch([weight])
        const y = tape.record(() => conv2d(x, weight))
        const [dweight] = tape.backward(y, [weight], Tensor.from(dys, y.shape, 'f32').to(dtype)) as [Tensor]
        const expected = new Float32Array(outs * channels)
        for (let pixel = 0; pixel < pixels; ++pixel)
          for (let o = 0; o < outs; ++o)
            for (let c = 0; c < channels; ++c) expected[o * channels + c]! += dys[pixel * outs + o]! * xs[pixel * channels + c]!
        assert.equal(dweight.to('f32').data(), expected, `${dtype}, ${outs} channels`)
      })
})

test('filters of 3x3 give in f32 what they give in f64, to its rounding, whatever is left over of tiles, blocks and panels', () => {
  const cases = fc.record({
    n: fc.integer({ min: 1, max: 3 }),
    side: fc.constantFrom([1, 6], [4, 4], [5, 19], [8, 12], [29, 30]),
    channels: fc.constantFrom(32, 48, 64, 80, 144),
    outs: fc.constantFrom(32, 48, 64, 80, 144),
    beyond: fc.integer({ min: 0, max: 1 }),
    dilation: fc.constantFrom<[number, number]>([1, 1], [1, 1], [2, 2], [1, 3]),
  })
  fc.assert(
    fc.property(cases, fc.integer(), ({ n, side, channels, outs, beyond, dilation }, seed) => {
      scope(() => {
        const random = new Random(seed)
        const padding = dilation.map((apart) => apart * (1 + beyond)) as [number, number]
        const out = side.map((length, axis) => length + 2 * beyond * dilation[axis]!)
        const drawn = [[n, ...side, channels], [outs, 3, 3, channels], [outs], [n, ...out, outs]].map((shape) =>
          randomTensor(random, shape, { dtype: 'f32' }),
        )
        const results = (['f64', 'f32'] as const).map((dtype) => {
          const [x, weight, bias, dy] = drawn.map((tensor) => Tensor.from(tensor.data(), tensor.shape, dtype)) as [
            Tensor,
            Tensor,
            Tensor,
            Tensor,
          ]
          const inputs = [x, weight, bias]
          const tape = new Tape().watch(inputs)
          const y = tape.record(() => conv2d(x, weight, bias, { padding, dilation }))
          return [y, ...tape.backward(y, inputs, dy)].map((tensor) => Array.from(tensor.data()))
        })
        for (const [i, what] of ['y', 'dx', 'dweight', 'dbias'].entries()) {
          const [exact, rounded] = [results[0]![i]!, results[1]![i]!]
          const scale = Math.sqrt(exact.reduce((sum, value) => sum + value * value, 0) / exact.length)
          let squares = 0
          exact.forEach((value, at) => {
            const error = rounded[at]! - value
            squares += error * error
            assert.ok(Math.abs(error) <= 2e-5 * scale, `${what}[${at}]: ${rounded[at]}, not ${value}`)
          })
          // Twice what direct products have, for which the points of the transforms are chosen: usual ones have four times as much.
          assert.ok(Math.sqrt(squares / exact.length) <= 2e-6 * scale, `${what} is off by ${Math.sqrt(squares / exact.length) / scale}`)
        }
      })
    }),
    { numRuns: 40 },
  )
})

test('padding is a border of zeros, also where windows lie mostly in it: whole numbers exactly', () => {
  const pairOf = (...values: number[]): fc.Arbitrary<[number, number]> => fc.tuple(fc.constantFrom(...values), fc.constantFrom(...values))
  const cases = fc
    .record({
      dtype: fc.constantFrom('f32' as const, 'f64' as const, 'bf16' as const),
      n: fc.constantFrom(1, 2, 3, 17, 150, 270),
      side: fc.constantFrom<[number, number]>([1, 1], [2, 2], [2, 3], [4, 4], [1, 6], [41, 51]),
      channels: fc.constantFrom(1, 16, 17, 40, 64, 130),
      outs: fc.constantFrom(5, 16, 33, 64, 130),
      kernel: pairOf(1, 2, 3, 5),
      stride: pairOf(1, 2),
      dilation: pairOf(1, 2, 16),
      /** Beyond what keeps the size of a map. */
      beyond: pairOf(0, 0, 3),
      biased: fc.boolean(),
    })
    .filter(({ n, side, channels, outs }) => n * side[0] * side[1] * (channels + outs) < 6e5)
  fc.assert(
    fc.property(cases, fc.integer(), ({ dtype, n, side, channels, outs, kernel, stride, dilation, beyond, biased }, seed) => {
      scope(() => {
        const random = new Random(seed)
        const whole = (shape: readonly number[]): Tensor =>
          Tensor.drawn(() => Float64Array.from({ length: shape.reduce((a, b) => a * b) }, () => random.below(5) - 2), shape, dtype)
        const [x, weight] = [whole([n, ...side, channels]), whole([outs, ...kernel, channels])]
        const bias = biased ? whole([outs]).to(accumulator(dtype)) : undefined
        const padding = [0, 1].map((axis) => dilation[axis]! * (kernel[axis]! >> 1) + beyond[axis]!) as [number, number]
        const border = padding.map((width) => [width, width] as const)
        let dy: Tensor | undefined
        const [inside, bordered] = [
          () => conv2d(x, weight, bias, { stride, dilation, padding }),
          () => conv2d(pad(x, [[0, 0], ...border, [0, 0]]), weight, bias, { stride, dilation }),
        ].map((convolve) => {
          const tape = new Tape().watch([x, weight])
          const y = tape.record(convolve)
          dy ??= whole(y.shape)
          return [y, ...tape.backward(y, [x, weight], dy)].map((tensor) => Array.from(tensor.to('f64').data()))
        })
        for (const [i, what] of ['y', 'dx', 'dweight'].entries()) same(inside![i]!, bordered![i]!, what)
      })
    }),
    { numRuns: 60 },
  )
})

test('no image has a gradient of zero, also where transforms would be taken', () => {
  scope(() => {
    // What was in the memory before is not zero.
    Tensor.full([16 * 64 * 64], 7).dispose()
    const x = Tensor.zeros([0, 8, 8, 64])
    const weight = randomTensor(new Random(4), [64, 3, 3, 64], { dtype: 'f32' })
    const tape = new Tape().watch([weight])
    const y = tape.record(() => conv2d(x, weight, undefined, { padding: 1 }))
    const [gradient] = tape.backward(y, [weight], Tensor.zeros([0, 8, 8, 64]))
    assert.ok(gradient!.data().every((value) => value === 0))
  })
})

test('what an image gives does not depend, to the bit, on the others of its batch', () => {
  for (const [dtype, kernel, side, channels, dilation] of [
    ['f32', 3, 2, 64, 1],
    ['f32', 3, 7, 64, 1],
    ['f32', 3, 14, 64, 1], // 49 tiles of Winograd's, the last of which is alone
    ['f32', 3, 24, 17, 8], // an image that is split, as its taps lie far apart
    ['f32', 1, 7, 300, 1], // the last pixel of one image is alone
    ['f32', 1, 14, 300, 1],
    ['bf16', 3, 14, 64, 1],
    ['bf16', 1, 14, 300, 1],
    ['bf16', 3, 7, 928, 1], // a panel of more than the cache keeps, and several blocks of rows
  ] as const)
    scope(() => {
      const random = new Random(3)
      const weight = randomTensor(random, [64, kernel, kernel, channels], { dtype: 'f32' }).to(dtype)
      const [count, size] = [11, side * side * 64]
      const images = randomTensor(random, [count, side, side, channels], { dtype: 'f32' }).to(dtype)
      const of = (x: Tensor) => conv2d(x, weight, undefined, { padding: ((kernel - 1) / 2) * dilation, dilation }).data()
      const all = of(images)
      for (const i of [0, 5, count - 1])
        same(
          of(slice(images, [[i, i + 1]])),
          all.slice(i * size, (i + 1) * size),
          `${dtype}, ${kernel}x${kernel} on ${side}x${side}, image ${i}`,
        )
    })
})

test.run()
