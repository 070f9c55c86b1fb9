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
import { avoidFamilies, type KernelFamily } from '../../src/tensor/families.js'
import { runNative } from '../../src/tensor/native.js'
import { scope, Tensor, withDevice } from '../../src/tensor/tensor.js'
import { deviceTraits } from '../../src/tensor/traits.js'
import { simulated, withCapability } from '../support/capability.js'
import { device } from '../support/devices.js'
import { relativeDistance } from '../support/gradients.js'
import { suite, testWhere, throwsError } from '../support/suite.js'

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
    tile: fc.constantFrom(0, 4, 5, 6),
    seed: fc.nat(),
  })
  .filter(
    ({ h, w, kernel, padding, dilation }) =>
      h + 2 * padding[0] >= dilation[0] * (kernel[0] - 1) + 1 && w + 2 * padding[1] >= dilation[1] * (kernel[1] - 1) + 1,
  )
  // Ampere's kernels stand in for the others where the gradient has no whole slices.
  .filter(({ tile, o }) => tile !== 6 || o % 64 === 0)

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

interface Fused extends Shape {
  /** x waits for a norm. */
  norm: boolean
  /** The input gradient is added to, masked and summed. */
  epilogue: boolean
}

/** y and its statistics, dw, and an input gradient with its sums: what a tile computes of operands that a seed gives. */
function tileResults(p: Fused, tile: number, only?: 'forward'): Float32Array[] {
  const { n, h, w, c, o, kernel, stride, padding, dilation, bias, norm, epilogue, seed } = p
  const [[kh, kw], [strideH, strideW], [paddingH, paddingW], [dilationH, dilationW]] = [kernel, stride, padding, dilation]
  const numbers = { strideH, strideW, paddingH, paddingW, dilationH, dilationW, tile, tf32: false }
  const out = (size: number, axis: 0 | 1): number =>
    Math.floor((size + 2 * padding[axis] - dilation[axis] * (kernel[axis] - 1) - 1) / stride[axis]) + 1
  const [oh, ow] = [out(h, 0), out(w, 1)]
  return scope(() =>
    withDevice(device, () =>
      withCapability(90, () => {
        const random = new Random(seed)
        const draw = (dtype: 'bf16' | 'f32', ...sizes: number[]): Tensor =>
          Tensor.from(
            Float32Array.from({ length: sizes.reduce((a, b) => a * b, 1) }, () => random.normal()),
            sizes,
          ).to(dtype)
        const [x, weight, dy] = [draw('bf16', n, h, w, c), draw('bf16', o, kh, kw, c), draw('bf16', n, oh, ow, o)]
        const vectors = (channels: number): [Tensor, Tensor, Tensor] => [
          draw('f32', 1, channels),
          draw('f32', 1, channels),
          draw('f32', 1, channels),
        ]
        const [scale, shift] = norm ? vectors(c) : []
        // What nobody wrote would be seen.
        const y = Tensor.full([n, oh, ow, o], 7, 'bf16')
        const { statisticsRows } = deviceTraits(device)
        const statistics = Tensor.full([Math.ceil((n * oh * ow) / statisticsRows), 2, o], 7)
        runNative('conv2d', { y, x, weight, bias: bias ? draw('f32', o) : undefined, statistics, scale, shift }, { ...numbers, relu: norm })
        if (only === 'forward') return [y, statistics].map((tensor) => tensor.data() as Float32Array)
        const dw = Tensor.full(weight.shape, 7)
        runNative('conv2dBackwardWeight', { dweight: dw, dy, x, scale, shift }, { ...numbers, relu: norm, splits: 2 })
        // The gradient of a convolution the other way round, so that the channels of both results are the wide ones.
        const back = { dx: Tensor.full([n, h, w, o], 7, 'bf16'), dy: draw('bf16', n, oh, ow, c), weight: draw('bf16', c, kh, kw, o) }
        let chunks = 0
        for (let a = 0; a < Math.min(strideH, h); ++a)
          for (let b = 0; b < Math.min(strideW, w); ++b)
            chunks += Math.ceil((n * Math.ceil((h - a) / strideH) * Math.ceil((w - b) / strideW)) / statisticsRows)
        const [by, along, mean] = vectors(o)
        const left = epilogue
          ? {
              ...{ add: draw('bf16', n, h, w, o), x: draw('bf16', n, h, w, o), scale: by, shift: along, mean },
              sums: Tensor.full([chunks, 2, o], 7),
            }
          : undefined
        runNative('conv2dBackwardInput', { ...back, ...left }, numbers)
        return [y, statistics, dw, back.dx, ...(left === undefined ? [] : [left.sums])].map((tensor) => tensor.data() as Float32Array)
      }),
    ),
  )
}

testWhere(available, reason, test, 'tiles of 128x256 give the bits of those of 128x128, as each sum has its order', () => {
  const wide = fc
    .record({
      shape,
      o: fc.constantFrom(256, 264, 200, 136, 384, 392, 520, 64, 40),
      side: fc.constantFrom(1, 2),
      norm: fc.boolean(),
      epilogue: fc.boolean(),
    })
    .map(({ shape: of, side, ...rest }) => ({ ...of, ...rest, h: of.h * side, w: of.w * side }))
  fc.assert(
    fc.property(wide, (p) => {
      const [widest, usual] = [tileResults(p, 6), tileResults(p, 4)]
      for (const [i, name] of ['y', 'statistics', 'dw', 'dx', 'sums'].slice(0, usual.length).entries())
        assert.equal(widest[i], usual[i], name)
    }),
    { numRuns: runs },
  )
})

testWhere(available, reason, test, 'more tiles of 128x256 than multiprocessors, and more slices than their ring of three has', () => {
  for (const p of [
    { n: 2, h: 30, w: 31, c: 64, o: 264, kernel: [1, 1] as [number, number] },
    { n: 1, h: 16, w: 16, c: 192, o: 520, kernel: [3, 3] as [number, number] },
  ]) {
    const padding: [number, number] = [p.kernel[0] >> 1, p.kernel[1] >> 1]
    for (const norm of [false, true]) {
      const whole: Fused = { ...p, stride: [1, 1], padding, dilation: [1, 1], bias: true, tile: 6, seed: 1, norm, epilogue: true }
      const [widest, usual] = [tileResults(whole, 6), tileResults(whole, 4)]
      widest.forEach((values, i) => assert.equal(values, usual[i]))
    }
  }
})

testWhere(available, reason, test, 'tiles stored by bulk copies give the bits of those that threads store', () => {
  const stored = fc
    .record({ shape, o: fc.constantFrom(128, 136, 264, 200, 72, 64, 40, 8), side: fc.constantFrom(1, 2, 3), norm: fc.boolean() })
    .map(({ shape: of, side, ...rest }) => ({ ...of, ...rest, h: of.h * side, w: of.w * side, epilogue: false }))
  fc.assert(
    fc.property(stored, (p) => {
      const [bulk, usual] = [tileResults(p, 7, 'forward'), tileResults(p, p.o <= 64 ? 5 : 4, 'forward')]
      for (const [i, name] of ['y', 'statistics'].entries()) assert.equal(bulk[i], usual[i], name)
    }),
    { numRuns: runs },
  )
})

testWhere(available, reason, test, 'more tiles stored by bulk copies than multiprocessors: each waits for the one before it', () => {
  for (const [o, norm] of [
    [264, false],
    [136, true],
    [64, true],
    [40, false],
  ] as const) {
    const p = { n: 2, h: 30, w: 31, c: 64, o, kernel: [1, 1] as [number, number], padding: [0, 0] as [number, number] }
    const whole: Fused = { ...p, stride: [1, 1], dilation: [1, 1], bias: true, tile: 7, seed: 1, norm, epilogue: false }
    assert.equal(tileResults(whole, 7, 'forward'), tileResults(whole, o <= 64 ? 5 : 4, 'forward'))
  }
})

testWhere(available, reason, test, 'a call that names tile 6 and cannot have it is refused; so is a tile that is none', () => {
  const p: Shape = {
    ...{ n: 1, h: 3, w: 3, c: 64, o: 64, kernel: [1, 1], stride: [1, 1], padding: [0, 0], dilation: [1, 1] },
    ...{ bias: false, tile: 6, seed: 1 },
  }
  const run = (shape: Partial<Shape>, tile = 6): Float32Array[] => onHopper(true, () => products({ ...p, ...shape }), tile)
  run({})
  throwsError(() => run({ c: 40 }), 'ARGUMENT', /^conv2d: expected bf16, whole slices .* for tile 6, .* received 40 channels to 64 in bf16/)
  throwsError(() => run({ o: 40 }), 'ARGUMENT', /^conv2dBackwardInput: .* received 64 channels to 40 in bf16/)
  throwsError(() => run({ h: 20, w: 20, stride: [9, 9], kernel: [3, 3] }), 'ARGUMENT', /^conv2d: .*strides of at most 8/)
  throwsError(() => run({}, 8), 'ARGUMENT', /^conv2d: expected tile to be 0 to 7 but received 8/)
  throwsError(() => run({}, 7), 'ARGUMENT', /^conv2dBackward\w+: expected a forward product .* for tile 7, /)
  throwsError(() => run({ o: 36 }, 7), 'ARGUMENT', /^conv2d: expected a forward product to channels by the 8, .* 64 channels to 36 in bf16/)
  if (simulated) throwsError(() => withCompute({ tile: 6 }, () => products(p)), 'ARGUMENT', /compute capability 9\.0 .*on simt/)
  const avoiding = (names: readonly KernelFamily[], body: () => void): void => {
    avoidFamilies(device, names)
    try {
      body()
    } finally {
      avoidFamilies(device, [])
    }
  }
  avoiding(['wgmma.widest'], () => {
    throwsError(() => run({}), 'ARGUMENT', /whose tiles of 128x256 are in use/)
    run({}, 4)
  })
  avoiding(['wgmma.bulkStores'], () => throwsError(() => run({}, 7), 'ARGUMENT', /^conv2d: .*whose stores by bulk copies are in use/))
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
