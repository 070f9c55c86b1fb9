import fc from 'fast-check'

import { adaptiveAvgPool2d, avgPool2d, maxPool2d } from '../../../src/ops/pool2d.js'
import { randomTensor } from '../../support/gradients.js'
import { define, distinct, image, type OpCases, pair, shapeOf } from './opCase.js'

interface Pooling {
  x: { n: number; h: number; w: number; c: number }
  kernel: [number, number]
  stride: [number, number]
  padding: [number, number]
}
const windows = fc.record({ kernel: pair(1, 4), stride: pair(1, 3), padding: pair(0, 2) })
/** A ResNet's, for which a device may have a kernel of its own. */
const usual = fc.constant({ kernel: [3, 3], stride: [2, 2], padding: [1, 1] } satisfies Omit<Pooling, 'x'>)
const pooling: fc.Arbitrary<Pooling> = fc
  .tuple(image, fc.oneof({ weight: 3, arbitrary: windows }, { weight: 1, arbitrary: usual }))
  .map(([x, axes]): Pooling => ({ x, ...(axes as Omit<Pooling, 'x'>) }))
  .filter(
    ({ x, kernel, padding }) =>
      2 * padding[0] <= kernel[0] && 2 * padding[1] <= kernel[1] && x.h + 2 * padding[0] >= kernel[0] && x.w + 2 * padding[1] >= kernel[1],
  )

export const pool2dCases = {
  avgPool2d: define({
    parameters: fc.record({ pool: pooling, countPadding: fc.boolean(), adaptive: fc.option(pair(1, 5), { nil: undefined }) }),
    inputs: ({ pool }, random) => [randomTensor(random, shapeOf(pool.x))],
    run: ({ pool, countPadding, adaptive }, [x]) =>
      adaptive === undefined ? avgPool2d(x!, { ...pool, countPadding }) : adaptiveAvgPool2d(x!, adaptive),
    accumulates: () => 81,
  }),
  maxPool2d: define({
    parameters: pooling,
    inputs: ({ x }, random) => [distinct(random, shapeOf(x))],
    run: (p, [x]) => maxPool2d(x!, p),
    accumulates: () => 1,
  }),
} satisfies OpCases
