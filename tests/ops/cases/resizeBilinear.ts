import fc from 'fast-check'

import { resizeBilinear } from '../../../src/ops/resizeBilinear.js'
import { randomTensor } from '../../support/gradients.js'
import { define, image, type OpCases, pair, shapeOf } from './opCase.js'

export const resizeBilinearCases = {
  resizeBilinear: define({
    parameters: fc.record({ x: image, size: pair(1, 12), alignCorners: fc.boolean() }),
    inputs: ({ x }, random) => [randomTensor(random, shapeOf(x))],
    run: ({ size, alignCorners }, [x]) => resizeBilinear(x!, size, { alignCorners }),
    // Of one channel or pixel all terms may cancel.
    magnitude: () => 1,
    gradientMagnitude: () => 1,
    accumulates: () => 8,
  }),
} satisfies OpCases
