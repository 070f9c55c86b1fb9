import fc from 'fast-check'

import { batchNorm } from '../../../src/ops/batchNorm.js'
import { accumulator, Tensor } from '../../../src/tensor/tensor.js'
import { randomTensor } from '../../support/gradients.js'
import { define, image, integer, type OpCases } from './opCase.js'

const constants = (like: Tensor, channels: number, value: number): Tensor => Tensor.full([channels], value, accumulator(like.dtype))

export const batchNormCases = {
  batchNorm: define({
    parameters: fc
      .record({ x: image, groups: integer(1, 3), train: fc.boolean(), relu: fc.boolean(), residual: fc.boolean() })
      .filter(({ x }) => x.h * x.w > 1),
    large: fc.record({
      x: fc.record({ n: integer(1, 2), h: integer(2, 23), w: integer(2, 23), c: fc.constantFrom(1, 12, 64, 264) }),
      groups: integer(1, 2),
      train: fc.boolean(),
      relu: fc.boolean(),
      residual: fc.boolean(),
    }),
    sums: [1, 2],
    inputs({ x, groups, residual }, random) {
      const shape = [x.n * groups, x.h, x.w, x.c]
      const base = [randomTensor(random, shape), randomTensor(random, [x.c]), randomTensor(random, [x.c])]
      return residual ? [...base, randomTensor(random, shape)] : base
    },
    run: ({ x: { c }, groups, train, relu: withRelu }, [x, weight, bias, residual]) =>
      batchNorm(x!, weight!, bias!, constants(x!, c, 0.1), constants(x!, c, 1.5), { train, groups, relu: withRelu, residual, eps: 1e-2 }),
    accumulates: ({ x }) => 20 * x.n * x.h * x.w,
  }),
} satisfies OpCases
