import fc from 'fast-check'

import { layerNorm } from '../../../src/ops/layerNorm.js'
import { randomTensor } from '../../support/gradients.js'
import { define, integer, type OpCases } from './opCase.js'

const affine = fc.constantFrom('none', 'weight', 'both')

export const layerNormCases = {
  layerNorm: define({
    parameters: fc.record({ rows: integer(1, 9), c: fc.oneof(integer(2, 9), fc.constantFrom(16, 33, 40)), affine }),
    large: fc.record({ rows: fc.constantFrom(3, 70, 1100), c: fc.constantFrom(24, 65, 264), affine }),
    sums: [1, 2],
    inputs: ({ rows, c, affine }, random) => [
      randomTensor(random, [rows, 1, c]),
      ...(affine === 'none' ? [] : [randomTensor(random, [c])]),
      ...(affine === 'both' ? [randomTensor(random, [c])] : []),
    ],
    // Two values of a row may lie so near each other that their difference is rounding: eps keeps the quotient from showing it.
    run: (_, [x, weight, bias]) => layerNorm(x!, weight, bias, { eps: 1e-2 }),
    gradientMagnitude: () => 1,
    accumulates: ({ rows, c }) => 20 * (rows + c),
  }),
} satisfies OpCases
