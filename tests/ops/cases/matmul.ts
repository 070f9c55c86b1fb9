import fc from 'fast-check'

import { matmul } from '../../../src/ops/matmul.js'
import { randomTensor } from '../../support/gradients.js'
import { define, integer, type OpCases } from './opCase.js'

interface Product {
  /** Leading axes of a and of b. */
  batches: readonly (readonly number[])[]
  m: number
  n: number
  k: number
  transposeA: boolean
  transposeB: boolean
}
const batches = fc.constantFrom(
  [[], []],
  [[3], []],
  [[], [2]],
  [[2], [2]],
  [[2, 1], [3]],
  [[1], [4]],
  [
    [2, 3],
    [2, 3],
  ],
)
const product = (m: fc.Arbitrary<number>, n: fc.Arbitrary<number>, k: fc.Arbitrary<number>): fc.Arbitrary<Product> =>
  fc.record({ batches, m, n, k, transposeA: fc.boolean(), transposeB: fc.boolean() })

export const matmulCases = {
  matmul: define<Product>({
    parameters: product(integer(1, 14), integer(1, 20), integer(1, 20)),
    large: product(fc.constantFrom(1, 64, 70), fc.constantFrom(5, 64, 72, 130), fc.constantFrom(8, 40, 75)),
    inputs: ({ batches: [first, second], m, n, k, transposeA, transposeB }, random) => [
      randomTensor(random, [...first!, ...(transposeA ? [k, m] : [m, k])]),
      randomTensor(random, [...second!, ...(transposeB ? [n, k] : [k, n])]),
    ],
    run: (p, [a, b]) => matmul(a!, b!, p),
    magnitude: () => 1,
    gradientMagnitude: () => 1,
    accumulates: ({ k }) => k,
  }),
} satisfies OpCases
