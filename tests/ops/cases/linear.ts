import fc from 'fast-check'

import { linear } from '../../../src/ops/linear.js'
import { randomTensor } from '../../support/gradients.js'
import { define, integer, type OpCases } from './opCase.js'

export const linearCases = {
  linear: define({
    parameters: fc.record({ rows: integer(1, 20), i: integer(1, 40), o: integer(1, 40), bias: fc.boolean() }),
    large: fc.record({ rows: integer(1, 200), i: fc.constantFrom(16, 72, 200), o: fc.constantFrom(5, 64, 136), bias: fc.boolean() }),
    sums: [2],
    inputs({ rows, i, o, bias }, random) {
      const inputs = [randomTensor(random, [rows, i]), randomTensor(random, [o, i])]
      return bias ? [...inputs, randomTensor(random, [o])] : inputs
    },
    run: (_, [x, weight, bias]) => linear(x!, weight!, bias),
    // Of one channel or pixel all terms may cancel.
    magnitude: () => 1,
    gradientMagnitude: () => 1,
    accumulates: ({ i }) => i + 1,
  }),
} satisfies OpCases
