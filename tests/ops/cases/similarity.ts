import fc from 'fast-check'

import { denseMatch, l2Normalize } from '../../../src/ops/similarity.js'
import { randomTensor } from '../../support/gradients.js'
import { define, integer, type OpCases } from './opCase.js'

export const similarityCases = {
  denseMatch: define({
    parameters: fc.record({ n: integer(1, 3), p: integer(1, 20), q: integer(1, 20), c: integer(2, 20) }),
    large: fc.record({ n: integer(1, 2), p: integer(60, 80), q: integer(60, 140), c: fc.constantFrom(8, 40, 72, 75) }),
    inputs: ({ n, p, q, c }, random) => [randomTensor(random, [n, p, c]), randomTensor(random, [n, q, c])],
    run: (_, [query, key]) => denseMatch(query!, key!).similarity,
    differentiable: 0,
    accumulates: ({ c }) => 10 * c,
  }),
  l2Normalize: define({
    parameters: fc.record({ rows: integer(1, 6), c: integer(2, 40) }),
    inputs: ({ rows, c }, random) => [randomTensor(random, [rows, c], { away: 0.1 })],
    run: (_, [x]) => l2Normalize(x!),
    // dy and its part along x, both over |x|, may cancel.
    gradientMagnitude: () => 1,
    accumulates: ({ c }) => c,
  }),
} satisfies OpCases
