import fc from 'fast-check'

import { pasteMasks } from '../../../src/ops/pasteMasks.js'
import { roiAlign } from '../../../src/ops/roiAlign.js'
import type { Random } from '../../../src/tensor/random.js'
import { Tensor } from '../../../src/tensor/tensor.js'
import { randomTensor } from '../../support/gradients.js'
import { define, image, integer, type OpCases, pair, shapeOf } from './opCase.js'

/**
 * Boxes [x1, y1, x2, y2] in and around an image, some of no size, some turned over. f32 holds them, so every device has the same: where a
 * bin ends decides how many samples it takes.
 */
export function randomBoxes(random: Random, count: number, height: number, width: number): Float64Array {
  const boxes = new Float64Array(4 * count)
  for (let r = 0; r < count; ++r) {
    const [kind, x, y] = [random.below(8), random.uniform(-0.3, 1) * width, random.uniform(-0.3, 1) * height]
    const [w, h] = kind === 0 ? [0, 0] : [random.uniform(kind === 1 ? -0.5 : 0, 1) * width, random.uniform(0, 1) * height]
    boxes.set([x, y, x + w, y + h].map(Math.fround), 4 * r)
  }
  return boxes
}

const maps = {
  size: pair(1, 4),
  rois: integer(0, 7),
  scale: fc.constantFrom(1, 0.25, 0.0625),
  samplingRatio: integer(0, 3),
  aligned: fc.boolean(),
}

/** Boxes at which places in a mask, and the values there, are exact in f32: a comparison is the same on every device. */
function exactBoxes(random: Random, count: number, { size: [p, q], height, width }: MaskSizes): Tensor {
  const boxes = Array.from({ length: count }, () => {
    const [w, h] = [q, p].map((cells) => cells * 2 ** (random.below(4) - 1)) as [number, number]
    const [x, y] = [random.below(4 * width) / 4 - w / 2, random.below(4 * height) / 4 - h / 2]
    return [x, y, x + w, y + h]
  })
  return Tensor.from(boxes.flat(), [count, 4], 'f64')
}
interface MaskSizes {
  size: [number, number]
  height: number
  width: number
}

export const roiAlignCases = {
  pasteMasks: define({
    parameters: fc.record({ masks: integer(0, 5), size: pair(1, 6), height: integer(1, 20), width: integer(1, 20) }),
    large: fc.record({ masks: integer(3, 5), size: pair(7, 28), height: integer(50, 90), width: integer(50, 90) }),
    inputs: ({ masks, ...sizes }, random) => [
      Tensor.from(
        Float64Array.from({ length: masks * sizes.size[0] * sizes.size[1] }, () => random.below(17) / 16),
        [masks, ...sizes.size],
        'f64',
      ),
      exactBoxes(random, masks, sizes),
    ],
    sums: [1],
    run: ({ height, width }, [x, boxes]) => pasteMasks(x!, boxes!, { height, width }).to(x!.dtype === 'f64' ? 'f64' : 'f32'),
    differentiable: 0,
    accumulates: () => 1,
  }),
  roiAlign: define({
    parameters: fc.record({ x: image, ...maps }),
    large: fc.record({
      x: fc.record({ n: integer(1, 2), h: integer(15, 20), w: integer(15, 40), c: fc.constantFrom(8, 40, 64, 72, 128, 264) }),
      ...maps,
      // Bins of 9 to 16 rows fill what products take at a time; 17 are two such blocks.
      size: pair(1, 17),
      rois: integer(10, 20),
    }),
    inputs: ({ x, rois, scale }, random) => [
      randomTensor(random, shapeOf(x)),
      Tensor.from(randomBoxes(random, rois, x.h / scale, x.w / scale), [rois, 4], 'f64'),
    ],
    sums: [1],
    run({ x: { n }, rois, size, scale, samplingRatio, aligned }, [x, boxes]) {
      // One place in seven holds no box.
      const index = Int32Array.from({ length: rois }, (_, r) => (r % 7 === 5 ? -1 : (r * 5 + 1) % n))
      return roiAlign(x!, boxes!, Tensor.from(index, [rois], 'i32'), { size, scale, samplingRatio, aligned })
    },
    differentiable: 1,
    // A position errs by the map's extent times epsilon.
    accumulates: ({ x: { h, w } }) => 16 + 2 * (h + w),
  }),
} satisfies OpCases
