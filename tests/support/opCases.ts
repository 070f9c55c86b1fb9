/**
 * One description per op, over the keys of the catalogue so that none can be forgotten: random parameters, inputs for them,
 * and the call. Its uses: finite differences, f32 against f64, and one thread against several.
 */
import fc from 'fast-check'

import type { Random } from '../../src/tensor/random.js'
import { batchNorm } from '../../src/ops/batchNorm.js'
import type { OpName } from '../../src/ops/catalogue.js'
import { conv2d } from '../../src/ops/conv2d.js'
import { add, concat, dropout, relu, reshape, scale } from '../../src/ops/elementwise.js'
import { linear } from '../../src/ops/linear.js'
import { crossEntropy, infoNce } from '../../src/ops/losses.js'
import { adaptiveAvgPool2d, avgPool2d, maxPool2d } from '../../src/ops/pool2d.js'
import { resizeBilinear } from '../../src/ops/resizeBilinear.js'
import { denseMatch, gatherRows, l2Normalize } from '../../src/ops/similarity.js'
import { accumulator, type FloatDType, Tensor } from '../../src/tensor/tensor.js'
import { randomTensor } from './gradients.js'

export interface OpCase<P = unknown> {
  parameters: fc.Arbitrary<P>
  /** Larger than one tile of a GPU's kernels, with tails. */
  large?: fc.Arbitrary<P>
  /** Float inputs, in f64. */
  inputs: (p: P, random: Random) => Tensor[]
  /** The op on inputs of any float dtype. */
  run: (p: P, inputs: Tensor[]) => Tensor
  /** Inputs that stay f32 where the others are bf16: biases and the affine vectors of batch norm. */
  sums?: readonly number[]
  /** The size of terms that may cancel in the result: errors are relative to at least this. */
  magnitude?: (p: P) => number
  /** The same for its gradients, whose cotangent is of order 1. */
  gradientMagnitude?: (p: P) => number
  /** How many of the leading inputs are differentiable; all when absent, 0 for none. */
  differentiable?: number
  /** Length of the longest sum: f32 errs by about its square root times epsilon, at worst by itself times epsilon. */
  accumulates: (p: P) => number
}

const define = <P>(opCase: OpCase<P>): OpCase => opCase as OpCase
const integer = (min: number, max: number): fc.Arbitrary<number> => fc.integer({ min, max })
const pair = (min: number, max: number): fc.Arbitrary<[number, number]> => fc.tuple(integer(min, max), integer(min, max))
const image = fc.record({
  n: integer(1, 3),
  h: integer(1, 9),
  w: integer(1, 9),
  c: fc.oneof(integer(1, 5), fc.constantFrom(8, 16, 17, 33)),
})
const shapeOf = ({ n, h, w, c }: { n: number; h: number; w: number; c: number }): number[] => [n, h, w, c]
const constants = (like: Tensor, channels: number, value: number): Tensor => Tensor.full([channels], value, accumulator(like.dtype))

interface Convolution {
  x: { n: number; h: number; w: number; c: number }
  o: number
  kernel: [number, number]
  stride: [number, number]
  padding: [number, number]
  dilation: [number, number]
  bias: boolean
}
const convolution: fc.Arbitrary<Convolution> = fc
  .record({
    x: image,
    o: fc.oneof(integer(1, 5), fc.constantFrom(16, 18)),
    kernel: pair(1, 4),
    stride: pair(1, 3),
    padding: pair(0, 3),
    dilation: pair(1, 2),
    bias: fc.boolean(),
  })
  .filter(
    ({ x, kernel, padding, dilation }) =>
      x.h + 2 * padding[0] >= dilation[0] * (kernel[0] - 1) + 1 && x.w + 2 * padding[1] >= dilation[1] * (kernel[1] - 1) + 1,
  )

const largeConvolution: fc.Arbitrary<Convolution> = fc
  .record({
    x: fc.record({ n: integer(1, 2), h: integer(1, 11), w: integer(1, 11), c: fc.constantFrom(3, 8, 24, 64, 72) }),
    o: fc.constantFrom(7, 8, 64, 72, 136),
    kernel: fc.constantFrom<[number, number]>([1, 1], [3, 3], [1, 3]),
    stride: pair(1, 2),
    padding: pair(0, 2),
    dilation: pair(1, 2),
    bias: fc.boolean(),
  })
  .filter(
    ({ x, kernel, padding, dilation }) =>
      x.h + 2 * padding[0] >= dilation[0] * (kernel[0] - 1) + 1 && x.w + 2 * padding[1] >= dilation[1] * (kernel[1] - 1) + 1,
  )

interface Pooling {
  x: { n: number; h: number; w: number; c: number }
  kernel: [number, number]
  stride: [number, number]
  padding: [number, number]
}
const pooling: fc.Arbitrary<Pooling> = fc
  .record({ x: image, kernel: pair(1, 4), stride: pair(1, 3), padding: pair(0, 2) })
  .filter(
    ({ x, kernel, padding }) =>
      2 * padding[0] <= kernel[0] && 2 * padding[1] <= kernel[1] && x.h + 2 * padding[0] >= kernel[0] && x.w + 2 * padding[1] >= kernel[1],
  )

/** Distinct values: a difference must not change which is the largest. */
const distinct = (random: Random, shape: number[]): Tensor => {
  const size = shape.reduce((n, d) => n * d, 1)
  return Tensor.from(
    Float64Array.from(random.permutation(size), (v) => v / 10),
    shape,
    'f64',
  )
}

export const opCases: Record<OpName, OpCase> = {
  add: define({
    parameters: image,
    inputs: (p, random) => [randomTensor(random, shapeOf(p)), randomTensor(random, shapeOf(p))],
    run: (_, [a, b]) => add(a!, b!),
    accumulates: () => 1,
  }),
  avgPool2d: define({
    parameters: fc.record({ pool: pooling, countPadding: fc.boolean(), adaptive: fc.option(pair(1, 5), { nil: undefined }) }),
    inputs: ({ pool }, random) => [randomTensor(random, shapeOf(pool.x))],
    run: ({ pool, countPadding, adaptive }, [x]) =>
      adaptive === undefined ? avgPool2d(x!, { ...pool, countPadding }) : adaptiveAvgPool2d(x!, adaptive),
    accumulates: () => 81,
  }),
  batchNorm: define({
    parameters: fc
      .record({ x: image, groups: integer(1, 3), train: fc.boolean(), relu: fc.boolean(), residual: fc.boolean() })
      .filter(({ x }) => x.h * x.w > 1),
    large: fc.record({
      x: fc.record({ n: integer(1, 2), h: integer(2, 23), w: integer(2, 23), c: fc.constantFrom(1, 12, 64, 264) }),
      groups: integer(1, 2),
      train: fc.boolean(),
      relu: fc.boolean(),
      residual: fc.boolean(),
    }),
    sums: [1, 2],
    inputs({ x, groups, residual }, random) {
      const shape = [x.n * groups, x.h, x.w, x.c]
      const base = [randomTensor(random, shape), randomTensor(random, [x.c]), randomTensor(random, [x.c])]
      return residual ? [...base, randomTensor(random, shape)] : base
    },
    run: ({ x: { c }, groups, train, relu: withRelu }, [x, weight, bias, residual]) =>
      batchNorm(x!, weight!, bias!, constants(x!, c, 0.1), constants(x!, c, 1.5), { train, groups, relu: withRelu, residual, eps: 1e-2 }),
    accumulates: ({ x }) => 20 * x.n * x.h * x.w,
  }),
  concat: define({
    parameters: fc.record({ x: image, widths: fc.array(integer(1, 4), { minLength: 1, maxLength: 3 }) }),
    inputs: ({ x, widths }, random) => widths.map((c) => randomTensor(random, [x.n, x.h, x.w, c])),
    run: (_, parts) => concat(parts),
    accumulates: () => 1,
  }),
  conv2d: define({
    parameters: convolution,
    large: largeConvolution,
    sums: [2],
    inputs({ x, o, kernel, bias }, random) {
      const inputs = [randomTensor(random, shapeOf(x)), randomTensor(random, [o, ...kernel, x.c])]
      return bias ? [...inputs, randomTensor(random, [o])] : inputs
    },
    run: ({ stride, padding, dilation }, [x, weight, bias]) => conv2d(x!, weight!, bias, { stride, padding, dilation }),
    accumulates: ({ x, kernel }) => x.c * kernel[0] * kernel[1] + 1,
  }),
  crossEntropy: define({
    parameters: fc.record({ rows: integer(2, 9), classes: integer(1, 7), ignored: fc.boolean() }),
    inputs: ({ rows, classes }, random) => [randomTensor(random, [rows, classes])],
    run: ({ rows, classes, ignored }, [logits]) =>
      crossEntropy(
        logits!,
        Tensor.from(
          Int32Array.from({ length: rows }, (_, i) => (ignored && i === 0 ? -100 : (i * 3) % classes)),
          [rows],
          'i32',
        ),
      ),
    accumulates: ({ rows, classes }) => 10 * rows * classes,
  }),
  denseMatch: define({
    parameters: fc.record({ n: integer(1, 3), p: integer(1, 20), q: integer(1, 20), c: integer(2, 20) }),
    large: fc.record({ n: integer(1, 2), p: integer(60, 80), q: integer(60, 140), c: fc.constantFrom(8, 40, 72, 75) }),
    inputs: ({ n, p, q, c }, random) => [randomTensor(random, [n, p, c]), randomTensor(random, [n, q, c])],
    run: (_, [query, key]) => denseMatch(query!, key!).similarity,
    differentiable: 0,
    accumulates: ({ c }) => 10 * c,
  }),
  dropout: define({
    parameters: fc.record({
      x: image,
      probability: fc.double({ min: 0, max: 0.9, noNaN: true }),
      seed: integer(0, 1000),
      whole: fc.boolean(),
    }),
    inputs: ({ x }, random) => [randomTensor(random, shapeOf(x))],
    run: ({ probability, seed, whole }, [x]) => dropout(x!, probability, seed, { whole }),
    accumulates: () => 2,
  }),
  gatherRows: define({
    parameters: fc.record({ n: integer(1, 3), p: integer(1, 6), q: integer(1, 6), c: integer(1, 5) }),
    inputs: ({ n, q, c }, random) => [randomTensor(random, [n, q, c])],
    run: ({ n, p, q }, [x]) =>
      gatherRows(
        x!,
        Tensor.from(
          Int32Array.from({ length: n * p }, (_, i) => (i * 7) % q),
          [n, p],
          'i32',
        ),
      ),
    accumulates: () => 1,
  }),
  infoNce: define({
    parameters: fc.record({
      rows: fc.oneof(integer(1, 7), integer(20, 60)),
      dim: fc.oneof(integer(1, 9), fc.constantFrom(16, 20)),
      keys: fc.oneof(integer(1, 20), integer(250, 530)),
      temperature: fc.constantFrom(0.02, 0.07, 0.2, 1),
      unit: fc.boolean(),
    }),
    large: fc.record({
      rows: fc.constantFrom(1, 64, 70),
      dim: fc.constantFrom(24, 33, 64, 128, 130, 256),
      keys: fc.constantFrom(1, 63, 65, 200),
      temperature: fc.constantFrom(0.07, 0.2),
      unit: fc.boolean(),
    }),
    inputs: ({ rows, dim, keys }, random) =>
      [
        [rows, dim],
        [rows, dim],
        [keys, dim],
      ].map((shape) => randomUnit(random, shape)),
    run: ({ temperature, unit }, [query, positive, queue]) => infoNce(query!, positive!, queue!, temperature, { unit }).loss,
    differentiable: 1,
    accumulates: ({ keys, dim, temperature }) => (10 * (keys + dim)) / temperature,
    // The loss is the difference of two logarithms of up to 1 / T.
    magnitude: ({ temperature }) => 1 / temperature,
    // Of unit vectors pulled one way and the other, over rows and T.
    gradientMagnitude: ({ rows, temperature }) => 0.1 / (rows * temperature),
  }),
  l2Normalize: define({
    parameters: fc.record({ rows: integer(1, 6), c: integer(2, 40) }),
    inputs: ({ rows, c }, random) => [randomTensor(random, [rows, c], { away: 0.1 })],
    run: (_, [x]) => l2Normalize(x!),
    // dy and its part along x, both over |x|, may cancel.
    gradientMagnitude: () => 1,
    accumulates: ({ c }) => c,
  }),
  linear: define({
    parameters: fc.record({ rows: integer(1, 20), i: integer(1, 40), o: integer(1, 40), bias: fc.boolean() }),
    large: fc.record({ rows: integer(1, 200), i: fc.constantFrom(16, 72, 200), o: fc.constantFrom(5, 64, 136), bias: fc.boolean() }),
    sums: [2],
    inputs({ rows, i, o, bias }, random) {
      const inputs = [randomTensor(random, [rows, i]), randomTensor(random, [o, i])]
      return bias ? [...inputs, randomTensor(random, [o])] : inputs
    },
    run: (_, [x, weight, bias]) => linear(x!, weight!, bias),
    accumulates: ({ i }) => i + 1,
  }),
  maxPool2d: define({
    parameters: pooling,
    inputs: ({ x }, random) => [distinct(random, shapeOf(x))],
    run: (p, [x]) => maxPool2d(x!, p),
    accumulates: () => 1,
  }),
  relu: define({
    parameters: image,
    inputs: (p, random) => [randomTensor(random, shapeOf(p), { away: 0.01 })],
    run: (_, [x]) => relu(x!),
    accumulates: () => 1,
  }),
  reshape: define({
    parameters: image,
    inputs: (p, random) => [randomTensor(random, shapeOf(p))],
    run: ({ n, h, w, c }, [x]) => reshape(x!, [n * h, w * c]),
    accumulates: () => 1,
  }),
  resizeBilinear: define({
    parameters: fc.record({ x: image, size: pair(1, 12), alignCorners: fc.boolean() }),
    inputs: ({ x }, random) => [randomTensor(random, shapeOf(x))],
    run: ({ size, alignCorners }, [x]) => resizeBilinear(x!, size, { alignCorners }),
    accumulates: () => 8,
  }),
  scale: define({
    parameters: fc.record({ x: image, factor: fc.double({ min: -3, max: 3, noNaN: true }) }),
    inputs: ({ x }, random) => [randomTensor(random, shapeOf(x))],
    run: ({ factor }, [x]) => scale(x!, factor),
    accumulates: () => 1,
  }),
}

function randomUnit(random: Random, shape: number[]): Tensor {
  const x = randomTensor(random, shape, { away: 0.1 })
  const unit = l2Normalize(x)
  x.dispose()
  return unit
}

/** The op's output with its inputs in `dtype`. */
export const runAs = (opCase: OpCase, p: unknown, inputs: Tensor[], dtype: FloatDType): Tensor =>
  opCase.run(
    p,
    inputs.map((input) => input.to(dtype)),
  )
