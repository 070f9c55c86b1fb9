import { runNative } from '../../tensor/native.js'
import type { FloatDType } from '../../tensor/tensor.js'
import { accumulator, Tensor } from '../../tensor/tensor.js'
import type { FamilyCases, Setting } from './benchCase.js'
import { proposals } from './roiAlign.js'

/** Boxes have the dtype that sums have: they are f32 where maps are bf16. */
const boxes = (s: Setting, count: number): Tensor => proposals(s, count, accumulator(s.dtype) as 'f32' | 'f64')
const none = (s: Setting, shape: readonly number[], dtype = accumulator(s.dtype)): Tensor => s.output(shape, dtype)
const coding = { weightX: 10, weightY: 10, weightW: 5, weightH: 5 }

const suppression = (name: string, n: number, groups: number) => ({
  name,
  // Of each pair an intersection, a union and a comparison.
  flops: (batch: number) => (batch * 16 * n * n) / 2,
  prepare(s: Setting) {
    const tensors = {
      index: s.output([s.batch, 2000], 'i32'),
      count: s.output([s.batch], 'i32'),
      boxes: boxes(s, s.batch * n).alias([s.batch, n, 4]),
      scores: s.values([s.batch, n], accumulator(s.dtype) as FloatDType),
      group: s.indices([s.batch, n], groups),
    }
    return () => runNative('nms', tensors, { threshold: 0.7 })
  },
})

export const boxesCases = {
  boxIou: [
    {
      name: '20 objects with 268569 anchors',
      flops: () => 16 * 20 * 268569,
      prepare(s) {
        const tensors = { y: none(s, [20, 268569]), a: boxes(s, 20), b: boxes(s, 268569) }
        return () => runNative('boxIou', tensors)
      },
    },
  ],
  decodeBoxes: [
    {
      name: '63000 anchors',
      flops: (n) => 24 * n * 63000,
      prepare(s) {
        const tensors = { y: none(s, [s.batch * 63000, 1, 4]), deltas: s.values([s.batch * 63000, 1, 4]), boxes: boxes(s, s.batch * 63000) }
        return () => runNative('decodeBoxes', tensors, { ...coding, bound: Math.log(1000 / 16), bothSides: false })
      },
    },
  ],
  encodeBoxes: [
    {
      name: '63000 anchors',
      flops: (n) => 24 * n * 63000,
      prepare(s) {
        const rows = s.batch * 63000
        const tensors = { y: none(s, [rows, 4]), boxes: boxes(s, rows), targets: boxes(s, rows) }
        return () => runNative('encodeBoxes', tensors, coding)
      },
    },
  ],
  nms: [suppression('12000 boxes', 12000, 1), suppression('4819 boxes of 5 levels', 4819, 5)],
} satisfies FamilyCases
