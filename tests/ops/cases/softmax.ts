import fc from 'fast-check'

import { argmax, logSoftmax, softmax } from '../../../src/ops/softmax.js'
import { randomTensor } from '../../support/gradients.js'
import { define, distinct, integer, type OpCases } from './opCase.js'

const shape = fc.array(integer(1, 9), { minLength: 1, maxLength: 4 })
const largeShape = fc.constantFrom<number[]>([3, 1000], [700, 5], [5, 30, 7], [4, 65, 33])
const axis = integer(0, 3)

export const softmaxCases = {
  softmax: define({
    parameters: fc.record({ shape, axis, log: fc.boolean() }),
    large: fc.record({ shape: largeShape, axis, log: fc.boolean() }),
    inputs: (p, random) => [randomTensor(random, p.shape)],
    run: (p, [x]) => (p.log ? logSoftmax : softmax)(x!, { axis: p.axis % p.shape.length }),
    magnitude: () => 1,
    gradientMagnitude: () => 1,
    accumulates: (p) => 10 + p.shape[p.axis % p.shape.length]!,
  }),
  argmax: define({
    parameters: fc.record({ shape, axis, keepDims: fc.boolean() }),
    large: fc.record({ shape: largeShape, axis, keepDims: fc.boolean() }),
    inputs: (p, random) => [distinct(random, p.shape)],
    run: (p, [x]) => argmax(x!, { axis: p.axis % p.shape.length, keepDims: p.keepDims }),
    differentiable: 0,
    accumulates: () => 1,
  }),
} satisfies OpCases
