import fc from 'fast-check'

import { boxIou, decodeBoxes, encodeBoxes } from '../../../src/ops/boxes.js'
import { nms } from '../../../src/ops/nms.js'
import type { Random } from '../../../src/tensor/random.js'
import { Tensor } from '../../../src/tensor/tensor.js'
import { randomTensor } from '../../support/gradients.js'
import { define, distinct, integer, type OpCases } from './opCase.js'

/** Boxes of sides of 1 to 20 in a field of 60, on a grid that bf16 holds: what is rounded there is the same everywhere. */
const gridBoxes = (random: Random, count: number): Tensor => {
  const boxes = Array.from({ length: count }, () => {
    const [x, y] = [random.below(60), random.below(60)]
    return [x, y, x + 1 + random.below(20), y + 1 + random.below(20)]
  })
  return Tensor.from(boxes.flat(), [count, 4], 'f64')
}

export const boxesCases = {
  boxIou: define({
    parameters: fc.record({ m: integer(0, 8), n: integer(0, 8) }),
    large: fc.record({ m: integer(10, 20), n: integer(80, 120) }),
    inputs: ({ m, n }, random) => [gridBoxes(random, m), gridBoxes(random, n)],
    run: (_, [a, b]) => boxIou(a!, b!),
    differentiable: 0,
    accumulates: () => 4,
  }),
  decodeBoxes: define({
    parameters: fc.record({ rows: integer(0, 9), classes: integer(1, 5), bothSides: fc.boolean(), weight: fc.constantFrom(1, 5) }),
    large: fc.record({ rows: fc.constant(300), classes: fc.constant(3), bothSides: fc.boolean(), weight: fc.constant(1) }),
    inputs: ({ rows, classes }, random) => [randomTensor(random, [rows, classes, 4]), gridBoxes(random, rows)],
    sums: [1],
    run: ({ bothSides, weight }, [deltas, boxes]) =>
      decodeBoxes(deltas!, boxes!, { weights: [10, 10, weight, weight], bound: 0.8, bothSides }),
    differentiable: 0,
    accumulates: () => 16,
  }),
  encodeBoxes: define({
    parameters: fc.record({ rows: integer(0, 9) }),
    large: fc.record({ rows: fc.constant(600) }),
    inputs: ({ rows }, random) => [gridBoxes(random, rows), gridBoxes(random, rows)],
    run: (_, [boxes, targets]) => encodeBoxes(boxes!, targets!, { weights: [10, 10, 5, 5] }),
    differentiable: 0,
    accumulates: () => 16,
  }),
  nms: define({
    parameters: fc.record({
      images: integer(0, 3),
      n: integer(0, 40),
      groups: integer(0, 4),
      limit: fc.constantFrom<number>(0, 1, 7, 50),
      threshold: fc.constantFrom<number>(0, 0.1, 0.5, 0.7),
    }),
    large: fc.record({
      images: integer(1, 2),
      n: fc.constantFrom(64, 250, 257, 300),
      groups: integer(0, 3),
      limit: fc.constantFrom(20, 300),
      threshold: fc.constantFrom(0.3, 0.7),
    }),
    // Distinct in bf16 too, up to 256 of them; beyond, equal ones go by their index.
    inputs: ({ images, n }, random) => [gridBoxes(random, images * n), distinct(random, [images, n])],
    run({ images, n, groups, limit, threshold }, [boxes, scores]) {
      // Groups 0, 1, ... and -1, whose boxes are not there.
      const group = Int32Array.from({ length: images * n }, (_, i) => ((i * 7) % (groups + 1)) - (groups > 0 ? 1 : 0))
      const given = groups === 0 ? undefined : Tensor.from(group, [images, n], 'i32')
      const { index } = nms(boxes!.alias([images, n, 4]), scores!, threshold, { group: given, limit })
      return index.to(scores!.dtype === 'f64' ? 'f64' : 'f32')
    },
    differentiable: 0,
    accumulates: () => 1,
  }),
} satisfies OpCases
