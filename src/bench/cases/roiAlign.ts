import { runNative } from '../../tensor/native.js'
import { accumulator, type Shape, Tensor } from '../../tensor/tensor.js'
import type { BenchCase, FamilyCases, Setting } from './benchCase.js'

/** Boxes [count, 4] of a side of 16 to 400 pixels in an image of 800 x 1344, as proposals are. */
export function proposals({ random }: Setting, count: number, dtype: 'f32' | 'f64'): Tensor {
  const values = Float64Array.from({ length: 4 * count })
  for (let r = 0; r < count; ++r) {
    const [w, h] = [random.uniform(16, 400), random.uniform(16, 400)]
    const [x, y] = [random.uniform(0, 1344 - w), random.uniform(0, 800 - h)]
    values.set([x, y, x + w, y + h], 4 * r)
  }
  return Tensor.from(values, [count, 4], dtype)
}

interface Pooling {
  name: string
  bins: number
  stride: number
  channels: number
}
const poolings: readonly Pooling[] = [
  { name: '512 boxes to 14x14 of stride 16, 1024 channels', bins: 14, stride: 16, channels: 1024 },
  { name: '512 boxes to 7x7 of stride 4, 256 channels', bins: 7, stride: 4, channels: 256 },
]

const pooling = ({ name, bins, stride, channels }: Pooling, backward: boolean): BenchCase => ({
  name: backward ? `${name}, gradient` : name,
  // Four taps for each sample, at one sample a bin.
  flops: (n) => 8 * n * 512 * bins * bins * channels,
  prepare(s) {
    const map: Shape = [s.batch, 800 / stride, 1344 / stride, channels]
    const boxes = proposals(s, 512 * s.batch, accumulator(s.dtype) as 'f32' | 'f64')
    const index = Tensor.from(
      Int32Array.from({ length: 512 * s.batch }, (_, r) => Math.floor(r / 512)),
      [512 * s.batch],
      'i32',
    )
    const numbers = { scale: 1 / stride, samplingRatio: 0, aligned: true }
    const values: Shape = [512 * s.batch, bins, bins, channels]
    if (backward) {
      const tensors = { dx: s.output(map), dy: s.values(values), boxes, index }
      return () => runNative('roiAlignBackward', tensors, numbers)
    }
    const tensors = { y: s.output(values), x: s.values(map), boxes, index }
    return () => runNative('roiAlign', tensors, numbers)
  },
})

export const roiAlignCases = {
  pasteMasks: [
    {
      name: '100 masks of 28x28 into 800x1344',
      // Of each pixel its place, four taps and a comparison.
      flops: (n) => 20 * n * 100 * 800 * 1344,
      prepare(s) {
        const count = 100 * s.batch
        const tensors = {
          y: s.output([count, 800, 1344], 'u8'),
          x: s.values([count, 28, 28]),
          boxes: proposals(s, count, accumulator(s.dtype) as 'f32' | 'f64'),
        }
        return () => runNative('pasteMasks', tensors, { threshold: 0.5 })
      },
    },
  ],
  roiAlign: poolings.flatMap((each) => [pooling(each, false), pooling(each, true)]),
} satisfies FamilyCases
