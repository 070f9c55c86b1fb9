/**
 * The kernels of Hopper against those of Ampere on the same bf16 operands: both sum products of bf16 in f32, in another order. On
 * `simt` the capability is set; on a GPU that has it, Ampere's kernels are forced.
 */
import fc from 'fast-check'
import * as assert from 'uvu/assert'

import { Tape } from '../../src/autograd/tape.js'
import { Random } from '../../src/tensor/random.js'
import { conv2d } from '../../src/ops/conv2d.js'
import { linear } from '../../src/ops/linear.js'
import { infoNce } from '../../src/ops/losses.js'
import { l2Normalize } from '../../src/ops/similarity.js'
import { withCompute } from '../../src/tensor/compute.js'
import { scope, Tensor, withDevice } from '../../src/tensor/tensor.js'
import { deviceTraits } from '../../src/tensor/traits.js'
import { simulated, withCapability } from '../support/capability.js'
import { device } from '../support/devices.js'
import { relativeDistance } from '../support/gradients.js'
import { suite, testWhere } from '../support/suite.js'

const test = suite(`Hopper's kernels on ${device}`, device)
const available = simulated || deviceTraits(device).capability === 90

const onHopper = <R>(hopper: boolean, body: () => R, tile = 0): R =>
  withCompute({ tile: hopper ? tile : simulated ? 0 : 2 }, () => withCapability(hopper ? 90 : 80, body))

interface Shape {
  n: number
  h: number
  w: number
  c: number
  o: number
  kernel: [number, number]
  stride: [number, number]
  padding: [number, number]
  dilation: [number, number]
  bias: boolean
  tile: number
  seed: number
}
const pair = (min: number, max: number): fc.Arbitrary<[number, number]> => fc.tuple(fc.integer({ min, max }), fc.integer({ min, max }))
const shape: fc.Arbitrary<Shape> = fc
  .record({
    n: fc.integer({ min: 1, max: 3 }),
    h: fc.integer({ min: 1, max: 9 }),
    w: fc.integer({ min: 1, max: 9 }),
    c: fc.constantFrom(64, 128),
    o: fc.constantFrom(64, 128, 192, 72, 40),
    kernel: fc.constantFrom<[number, number]>([1, 1], [3, 3], [1, 3], [2, 1]),
    stride: pair(1, 2),
    padding: pair(0, 2),
    dilation: pair(1, 2),
    bias: fc.boolean(),
    tile: fc.constantFrom(0, 4, 5),
    seed: fc.nat(),
  })
  .filter(
    ({ h, w, kernel, padding, dilation }) =>
      h + 2 * padding[0] >= dilation[0] * (kernel[0] - 1) + 1 && w + 2 * padding[1] >= dilation[1] * (kernel[1] - 1) + 1,
  )

/** y, dx and dw. */
function products({ n, h, w, c, o, kernel, stride, padding, dilation, bias, seed }: Shape): Float32Array[] {
  return scope(() =>
    withDevice(device, () => {
      const random = new Random(seed)
      const draw = (...sizes: number[]): Tensor =>
        Tensor.from(
          Float32Array.from({ length: sizes.reduce((a, b) => a * b, 1) }, () => random.normal()),
          sizes,
        )
      const [x, weight, b] = [draw(n, h, w, c).to('bf16'), draw(o, ...kernel, c).to('bf16'), bias ? draw(o) : undefined]
      const tape = new Tape().watch([x, weight])
      const y = tape.record(() => conv2d(x, weight, b, { stride, padding, dilation }))
      return [y, ...tape.backward(y, [x, weight], draw(...y.shape).to('bf16'))].map((tensor) => tensor.data() as Float32Array)
    }),
  )
}

/** Both kinds of kernels give the same: y and dx are rounded to bf16 once in both, where the sum's last bits decide; dw stays f32. */
function agree(p: Shape): void {
  const [hopper, ampere] = [onHopper(true, () => products(p), p.tile), onHopper(false, () => products(p))]
  for (const [i, bound] of [1e-3, 1e-3, 1e-5].entries()) {
    const distance = relativeDistance(hopper[i]!, ampere[i]!)
    assert.ok(distance < bound, `${['y', 'dx', 'dw'][i]} differs by ${distance}`)
  }
}

const runs = Number(process.env.DENSECL_TEST_RUNS ?? 25)
const reason = 'no GPU of compute capability 9.0'

testWhere(available, reason, test, 'convolutions of any stride, padding, dilation and kernel, forward and both gradients', () => {
  fc.assert(fc.property(shape, agree), { numRuns: runs })
})

testWhere(available, reason, test, 'convolutions of few channels, whose rows of taps lie side by side where they fill a slice', () => {
  const stem = fc
    .record({
      n: fc.integer({ min: 1, max: 3 }),
      h: fc.integer({ min: 1, max: 12 }),
      w: fc.integer({ min: 1, max: 12 }),
      c: fc.constantFrom(1, 3, 5),
      o: fc.constantFrom(64, 72, 40),
      kernel: fc.constantFrom<[number, number]>([7, 7], [5, 6], [1, 7], [4, 12], [3, 3]),
      stride: pair(1, 4),
      padding: pair(0, 3),
      dilation: fc.constantFrom<[number, number]>([1, 1], [1, 2], [2, 1]),
      bias: fc.boolean(),
      tile: fc.constantFrom(4, 5),
      seed: fc.nat(),
    })
    .filter(
      ({ h, w, kernel, padding, dilation }) =>
        h + 2 * padding[0] >= dilation[0] * (kernel[0] - 1) + 1 && w + 2 * padding[1] >= dilation[1] * (kernel[1] - 1) + 1,
    )
  fc.assert(fc.property(stem, agree), { numRuns: 2 * runs })
})

testWhere(available, reason, test, 'convolutions beyond what im2col copies hold: far taps, wide strides, distant corners', () => {
  const far: Partial<Shape>[] = [
    { kernel: [3, 3], padding: [128, 128], dilation: [128, 128] }, // corners at -128, but an offset of 256
    { h: 130, kernel: [2, 1], padding: [0, 0], dilation: [129, 1] },
    { h: 1, w: 259, kernel: [1, 3], padding: [0, 0], dilation: [1, 127] }, // a corner at -254
    { h: 20, w: 19, stride: [9, 9], kernel: [3, 3], padding: [1, 1] },
    { h: 4, w: 4, kernel: [1, 1], padding: [130, 0], stride: [1, 1] },
  ]
  for (const p of far) {
    const whole: Shape = {
      n: 2,
      h: 3,
      w: 5,
      c: 64,
      o: 64,
      kernel: [1, 1],
      stride: [1, 1],
      padding: [0, 0],
      dilation: [1, 1],
      bias: false,
      tile: 0,
      seed: 3,
      ...p,
    }
    const [hopper, ampere] = [onHopper(true, () => products(whole)), onHopper(false, () => products(whole))]
    hopper.forEach((values, i) =>
      assert.ok(
        relativeDistance(values, ampere[i]!) < 1e-3,
        `${JSON.stringify(p)}: ${['y', 'dx', 'dw'][i]} differs by ${relativeDistance(values, ampere[i]!)}`,
      ),
    )
  }
})

testWhere(available, reason, test, 'more tiles than multiprocessors, and more slices than the ring has', () => {
  for (const p of [
    { n: 2, h: 30, w: 31, c: 64, o: 136, kernel: [1, 1] as [number, number] },
    { n: 1, h: 12, w: 12, c: 192, o: 64, kernel: [3, 3] as [number, number] },
  ]) {
    const whole: Shape = {
      ...p,
      stride: [1, 1],
      padding: [p.kernel[0] >> 1, p.kernel[1] >> 1],
      dilation: [1, 1],
      bias: true,
      tile: 0,
      seed: 1,
    }
    const [hopper, ampere] = [onHopper(true, () => products(whole)), onHopper(false, () => products(whole))]
    hopper.forEach((values, i) => assert.ok(relativeDistance(values, ampere[i]!) < 1e-3))
  }
})

testWhere(available, reason, test, 'linear layers pass through them too', () => {
  const run = (): Float32Array =>
    scope(() =>
      withDevice(device, () => {
        const random = new Random(4)
        const draw = (...sizes: number[]): Tensor =>
          Tensor.from(
            Float32Array.from({ length: sizes[0]! * sizes[1]! }, () => random.normal()),
            sizes,
          ).to('bf16')
        return linear(draw(37, 128), draw(72, 128)).data() as Float32Array
      }),
    )
  assert.ok(relativeDistance(onHopper(true, run), onHopper(false, run)) < 1e-3)
})

interface Contrast {
  rows: number
  keys: number
  dim: number
  seed: number
  unit: boolean
}

/** Loss, statistics and gradient of Hopper's kernel beside those of Ampere's. */
function checkContrast({ rows, keys, dim, seed, unit: promised }: Contrast): void {
  const run = (): Float32Array[] =>
    scope(() =>
      withDevice(device, () => {
        const random = new Random(seed)
        const unit = (n: number): Tensor =>
          l2Normalize(
            Tensor.from(
              Float32Array.from({ length: n * dim }, () => random.normal()),
              [n, dim],
            ),
          ).to('bf16')
        const [query, positive, queue] = [unit(rows), unit(rows), unit(keys)]
        const tape = new Tape().watch([query])
        const { loss, statistics } = tape.record(() => infoNce(query, positive, queue, 0.2, { unit: promised }))
        return [loss, statistics, ...tape.backward(loss, [query])].map((tensor) => tensor.data() as Float32Array)
      }),
    )
  const [hopper, ampere] = [onHopper(true, run), onHopper(false, run)]
  for (const [i, bound] of [1e-5, 1e-4, 4e-3].entries())
    assert.ok(
      relativeDistance(hopper[i]!, ampere[i]!) < bound,
      `${['loss', 'statistics', 'gradient'][i]} differs by ${relativeDistance(hopper[i]!, ampere[i]!)}`,
    )
}

const given = 'a GPU has no other kernels for it to compare with'
testWhere(simulated, given, test, 'the contrastive loss, its statistics and its gradient, with tails of rows, keys and dimensions', () => {
  const shape: fc.Arbitrary<Contrast> = fc.record({
    rows: fc.integer({ min: 1, max: 150 }),
    keys: fc.constantFrom(3, 128, 300, 700),
    dim: fc.constantFrom(8, 64, 72, 128),
    seed: fc.nat(),
    unit: fc.boolean(),
  })
  fc.assert(fc.property(shape, checkContrast), { numRuns: Math.ceil(runs / 2) })
})

testWhere(simulated, given, test, 'the contrastive loss over more tiles of keys than the ring has', () => {
  for (const unit of [false, true]) checkContrast({ rows: 130, keys: 7000, dim: 64, seed: 1, unit })
})

test.run()
