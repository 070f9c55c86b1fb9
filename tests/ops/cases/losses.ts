import fc from 'fast-check'

import { binaryCrossEntropy, crossEntropy, infoNce, smoothL1 } from '../../../src/ops/losses.js'
import { l2Normalize } from '../../../src/ops/similarity.js'
import type { Random } from '../../../src/tensor/random.js'
import { Tensor } from '../../../src/tensor/tensor.js'
import { randomTensor } from '../../support/gradients.js'
import { define, integer, type OpCases } from './opCase.js'

function randomUnit(random: Random, shape: number[]): Tensor {
  const x = randomTensor(random, shape, { away: 0.1 })
  const unit = l2Normalize(x)
  x.dispose()
  return unit
}

/** Weights of rows or of elements, some of them 0. */
const weightOf = (shape: number[], weighted: number): Tensor | undefined => {
  const own = shape.slice(0, weighted)
  const values = Float32Array.from({ length: own.reduce((n, d) => n * d, 1) }, (_, i) => (i * 3) % 4)
  return weighted < 0 ? undefined : Tensor.from(values, own)
}
const pointwise = fc.record({ shape: fc.tuple(integer(0, 5), integer(1, 5)), weighted: integer(-1, 2), divisor: fc.constantFrom(1, 7) })
const pointwiseLarge = fc.record({
  shape: fc.constant<[number, number]>([700, 30]),
  weighted: integer(-1, 2),
  divisor: fc.constant<1 | 7>(7),
})

export const lossesCases = {
  binaryCrossEntropy: define({
    parameters: pointwise,
    large: pointwiseLarge,
    inputs: ({ shape }, random) => [
      randomTensor(random, shape),
      Tensor.from(
        randomTensor(random, shape)
          .data()
          .map((v) => 1 / (1 + Math.exp(-v))),
        shape,
        'f64',
      ),
    ],
    run: ({ shape, weighted, divisor }, [x, target]) =>
      binaryCrossEntropy(x!, target!, { weight: weightOf(shape, weighted)?.to(x!.dtype === 'f64' ? 'f64' : 'f32'), divisor }),
    // max(x, 0) and x times the target may cancel in each term.
    magnitude: ({ shape: [m, n] }) => Math.max(1, m * n),
    // So may the sigmoid of x and the target in a gradient.
    gradientMagnitude: () => 0.1,
    differentiable: 1,
    accumulates: ({ shape: [m, n] }) => 10 + m * n,
  }),

  crossEntropy: define({
    parameters: fc.record({ rows: integer(2, 9), classes: integer(1, 40), ignored: fc.boolean(), weighted: fc.boolean() }),
    inputs: ({ rows, classes }, random) => [randomTensor(random, [rows, classes])],
    run: ({ rows, classes, ignored, weighted }, [logits]) =>
      crossEntropy(
        logits!,
        Tensor.from(
          Int32Array.from({ length: rows }, (_, i) => (ignored && i === 0 ? -100 : (i * 3) % classes)),
          [rows],
          'i32',
        ),
        // Of the third class 0: its rows do not count.
        weighted && classes > 1
          ? {
              weight: Tensor.from(
                Array.from({ length: classes }, (_, i) => [0.5, 1.5, 0, 3, 0.25, 1, 4][i % 7]!),
                [classes],
                logits!.dtype === 'f64' ? 'f64' : 'f32',
              ),
            }
          : {},
      ),
    accumulates: ({ rows, classes }) => 10 * rows * classes,
  }),
  smoothL1: define({
    parameters: pointwise,
    large: pointwiseLarge,
    inputs: ({ shape }, random) => [randomTensor(random, shape), randomTensor(random, shape)],
    // The divisor as a tensor.
    run({ shape, weighted, divisor }, [x, target]) {
      const dtype = x!.dtype === 'f64' ? 'f64' : 'f32'
      return smoothL1(x!, target!, { beta: 0.5, weight: weightOf(shape, weighted)?.to(dtype), divisor: Tensor.full([1], divisor, dtype) })
    },
    differentiable: 1,
    accumulates: ({ shape: [m, n] }) => 10 + m * n,
    // A small difference of two numbers around 1 has their rounding.
    magnitude: ({ divisor }) => 1 / divisor,
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
} satisfies OpCases
