import fc from 'fast-check'

import { dropout, relu, reshape, scale } from '../../../src/ops/elementwise.js'
import { randomTensor } from '../../support/gradients.js'
import { define, image, integer, shapeOf, type OpCases } from './opCase.js'

export const elementwiseCases = {
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
  scale: define({
    parameters: fc.record({ x: image, factor: fc.double({ min: -3, max: 3, noNaN: true }) }),
    inputs: ({ x }, random) => [randomTensor(random, shapeOf(x))],
    run: ({ factor }, [x]) => scale(x!, factor),
    accumulates: () => 1,
  }),
} satisfies OpCases
