import fc from 'fast-check'

import { max, mean, sum, variance } from '../../../src/ops/reduce.js'
import { sizeOf } from '../../../src/tensor/tensor.js'
import { randomTensor } from '../../support/gradients.js'
import { define, distinct, integer, type OpCases } from './opCase.js'

interface Reduction {
  shape: number[]
  /** Which axes are reduced. */
  reduced: boolean[]
  keepDims: boolean
  /** Mean, where there is one. */
  mean: boolean
}
const reductionOf = (shape: fc.Arbitrary<number[]>): fc.Arbitrary<Reduction> =>
  fc.record({ shape, reduced: fc.array(fc.boolean(), { minLength: 4, maxLength: 4 }), keepDims: fc.boolean(), mean: fc.boolean() })
const small = reductionOf(fc.array(fc.oneof(integer(1, 5), fc.constantFrom(8, 17)), { maxLength: 4 }))
/** Lines and rows that are taken in parts, by several blocks or in several passes. */
const large = reductionOf(fc.constantFrom([3, 9000], [2000, 24], [5, 700, 3], [130, 7, 40], [9, 11, 13, 15]))

const options = ({ shape, reduced, keepDims }: Reduction): { axes: number[]; keepDims: boolean } => ({
  axes: shape.map((_, axis) => axis).filter((axis) => reduced[axis]),
  keepDims,
})
const terms = ({ shape, reduced }: Reduction): number => sizeOf(shape.filter((_, axis) => reduced[axis]))

export const reduceCases = {
  sum: define<Reduction>({
    parameters: small,
    large,
    inputs: ({ shape }, random) => [randomTensor(random, shape)],
    run: (p, [x]) => (p.mean ? mean : sum)(x!, options(p)),
    magnitude: (p) => (p.mean ? 1 / terms(p) : 1),
    accumulates: terms,
  }),
  max: define<Reduction>({
    parameters: small,
    large,
    inputs: ({ shape }, random) => [distinct(random, shape)],
    run: (p, [x]) => max(x!, options(p)),
    accumulates: () => 1,
  }),
  variance: define<Reduction>({
    parameters: small,
    large,
    inputs: ({ shape }, random) => [randomTensor(random, shape)],
    run: (p, [x]) => variance(x!, { ...options(p), correction: p.mean || terms(p) < 3 ? 0 : 1 }),
    // Of a few normal numbers it may be several times what it is of many.
    magnitude: (p) => (terms(p) < 8 ? 8 : 1),
    accumulates: terms,
  }),
} satisfies OpCases
