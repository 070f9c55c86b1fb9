import fc from 'fast-check'

import { conv2d } from '../../../src/ops/conv2d.js'
import { randomTensor } from '../../support/gradients.js'
import { define, image, integer, type OpCases, pair, shapeOf } from './opCase.js'

interface Convolution {
  x: { n: number; h: number; w: number; c: number }
  o: number
  kernel: [number, number]
  stride: [number, number]
  padding: [number, number]
  dilation: [number, number]
  bias: boolean
}
const convolution: fc.Arbitrary<Convolution> = fc
  .record({
    x: image,
    o: fc.oneof(integer(1, 5), fc.constantFrom(16, 18)),
    kernel: pair(1, 4),
    stride: pair(1, 3),
    padding: pair(0, 3),
    dilation: pair(1, 2),
    bias: fc.boolean(),
  })
  .filter(
    ({ x, kernel, padding, dilation }) =>
      x.h + 2 * padding[0] >= dilation[0] * (kernel[0] - 1) + 1 && x.w + 2 * padding[1] >= dilation[1] * (kernel[1] - 1) + 1,
  )

const largeConvolution: fc.Arbitrary<Convolution> = fc
  .record({
    x: fc.record({ n: integer(1, 2), h: integer(1, 11), w: integer(1, 11), c: fc.constantFrom(3, 8, 24, 64, 72) }),
    o: fc.constantFrom(7, 8, 64, 72, 136),
    kernel: fc.constantFrom<[number, number]>([1, 1], [3, 3], [1, 3]),
    stride: pair(1, 2),
    padding: pair(0, 2),
    dilation: pair(1, 2),
    bias: fc.boolean(),
  })
  .filter(
    ({ x, kernel, padding, dilation }) =>
      x.h + 2 * padding[0] >= dilation[0] * (kernel[0] - 1) + 1 && x.w + 2 * padding[1] >= dilation[1] * (kernel[1] - 1) + 1,
  )

interface GroupedConvolution extends Omit<Convolution, 'o'> {
  groups: number
  /** Outputs of a group. */
  outs: number
}
// One channel and output of each group (depthwise) in every second.
const grouped = (groups: fc.Arbitrary<number>): fc.Arbitrary<GroupedConvolution> =>
  fc
    .tuple(convolution, groups, fc.boolean(), integer(1, 18), integer(1, 18))
    .map(([{ x, o: _, ...rest }, count, depthwise, channels, outs]) => ({
      ...rest,
      x: { ...x, c: count * (depthwise ? 1 : Math.min(channels, 6)) },
      groups: count,
      outs: depthwise ? 1 : outs,
    }))

export const conv2dCases = {
  groupedConv2d: define<GroupedConvolution>({
    parameters: grouped(integer(2, 5)),
    large: grouped(fc.constantFrom(8, 24, 64, 81)),
    sums: [2],
    inputs({ x, groups, outs, kernel, bias }, random) {
      const inputs = [randomTensor(random, shapeOf(x)), randomTensor(random, [groups * outs, ...kernel, x.c / groups])]
      return bias ? [...inputs, randomTensor(random, [groups * outs])] : inputs
    },
    run: ({ stride, padding, dilation, groups }, [x, weight, bias]) => conv2d(x!, weight!, bias, { stride, padding, dilation, groups }),
    // Of one channel or pixel all terms may cancel.
    magnitude: () => 1,
    gradientMagnitude: () => 1,
    accumulates: ({ x, groups, kernel }) => (x.c / groups) * kernel[0] * kernel[1] + 1,
  }),
  conv2d: define({
    parameters: convolution,
    large: largeConvolution,
    sums: [2],
    inputs({ x, o, kernel, bias }, random) {
      const inputs = [randomTensor(random, shapeOf(x)), randomTensor(random, [o, ...kernel, x.c])]
      return bias ? [...inputs, randomTensor(random, [o])] : inputs
    },
    run: ({ stride, padding, dilation }, [x, weight, bias]) => conv2d(x!, weight!, bias, { stride, padding, dilation }),
    // Of one channel or pixel all terms may cancel.
    magnitude: () => 1,
    gradientMagnitude: () => 1,
    accumulates: ({ x, kernel }) => x.c * kernel[0] * kernel[1] + 1,
  }),
} satisfies OpCases
