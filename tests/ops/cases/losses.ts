import fc from 'fast-check'

import { crossEntropy, infoNce } from '../../../src/ops/losses.js'
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

export const lossesCases = {
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
