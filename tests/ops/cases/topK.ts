import fc from 'fast-check'

import { topK } from '../../../src/ops/topK.js'
import { define, distinct, integer, type OpCases } from './opCase.js'

export const topKCases = {
  topK: define({
    parameters: fc.record({ rows: integer(1, 4), n: integer(1, 40), part: fc.constantFrom<number>(0, 0.3, 1) }),
    // More than a block's stretch of a row.
    large: fc.record({ rows: integer(1, 2), n: fc.constantFrom(33, 300, 2048, 2100, 4200), part: fc.constantFrom(0.1, 1) }),
    inputs: ({ rows, n }, random) => [distinct(random, [rows, n])],
    run: ({ n, part }, [x]) => topK(x!, Math.ceil(part * n)).values,
    accumulates: () => 1,
  }),
} satisfies OpCases
