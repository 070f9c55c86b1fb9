/** Ops that move values: what they reach is the bandwidth of a copy. */
import { contiguous, type Layout, stridesOf } from '../../ops/copyStrided.js'
import { runNative } from '../../tensor/native.js'
import type { Shape } from '../../tensor/tensor.js'
import { type BenchCase, type FamilyCases, map } from './benchCase.js'

interface Copy {
  shape: Shape
  y?: { shape: Shape; layout: Layout }
  x?: { shape: Shape; layout: Layout }
}

/** The native call of an op that copies `shape` between layouts of y and x, contiguous unless given. */
const copying = (name: string, of: (batch: number) => Copy): BenchCase => ({
  name,
  flops: () => 0,
  prepare(s) {
    const { shape, y, x } = of(s.batch)
    const tensors = { y: s.output(shape), x: s.values(shape) }
    // Only what is copied counts as moved.
    if (y !== undefined) tensors.y = s.uncounted(y.shape)
    if (x !== undefined) tensors.x = s.uncounted(x.shape)
    const [yLayout, xLayout] = [y?.layout ?? contiguous(shape), x?.layout ?? contiguous(shape)]
    const numbers = { shape, yOffset: yLayout.offset, yStrides: yLayout.strides, xOffset: xLayout.offset, xStrides: xLayout.strides }
    return () => runNative('copyStrided', tensors, numbers)
  },
})

const inside = (shape: Shape, offset: number): { shape: Shape; layout: Layout } => ({
  shape,
  layout: { offset, strides: stridesOf(shape) },
})

export const layoutCases = {
  broadcastTo: [
    copying('each pixel to 2x2, 28x28x256', (n) => ({
      shape: [n, 28, 2, 28, 2, 256],
      x: { shape: [n, 28, 28, 256], layout: { offset: 0, strides: [28 * 28 * 256, 28 * 256, 0, 256, 0, 1] } },
    })),
  ],
  concat: [
    copying('256 of 512 channels', (n) => ({ shape: map(n), y: inside([n, 56, 56, 512], 256) })),
    copying('one of two batches', (n) => ({ shape: map(n), y: inside([2 * n, 56, 56, 256], n * 56 * 56 * 256) })),
  ],
  gather: [
    {
      name: 'partners of 49 positions',
      flops: () => 0,
      prepare(s) {
        const tensors = { y: s.output([s.batch, 49, 128]), x: s.values([s.batch, 49, 128]), index: s.indices([s.batch, 49], 49) }
        return () => runNative('gatherRows', tensors)
      },
    },
    {
      name: 'half of the rows of a map',
      flops: () => 0,
      prepare(s) {
        const rows = s.batch * 56 * 56
        const tensors = { y: s.output([1, rows / 2, 256]), x: s.values([1, rows, 256]), index: s.indices([1, rows / 2], rows) }
        return () => runNative('gatherRows', tensors)
      },
    },
    {
      name: '1024 rows of a map, gradient',
      flops: () => 0,
      prepare(s) {
        const rows = s.batch * 56 * 56
        const tensors = { dx: s.output([1, rows, 256]), dy: s.values([1, 1024, 256]), index: s.indices([1, 1024], rows) }
        return () => runNative('gatherRowsBackward', tensors)
      },
    },
  ],
  pad: [copying('a border of 1, inner part', (n) => ({ shape: map(n), y: inside([n, 58, 58, 256], (58 + 1) * 256) }))],
  permute: [
    copying('NHWC to NCHW, 56x56x256', (n) => ({
      shape: [n, 256, 56, 56],
      x: { shape: map(n), layout: { offset: 0, strides: [56 * 56 * 256, 1, 56 * 256, 256] } },
    })),
    copying('NCHW to NHWC, 224x224x3', (n) => ({
      shape: [n, 224, 224, 3],
      x: { shape: [n, 3, 224, 224], layout: { offset: 0, strides: [3 * 224 * 224, 224, 1, 224 * 224] } },
    })),
    // What a transposed convolution does behind its product, which is that of layer3's conv3.
    copying('windows of 2x2 side by side, 14x14x256', (n) => ({
      shape: [n, 14, 2, 14, 2, 256],
      x: { shape: [n, 14, 14, 2, 2, 256], layout: { offset: 0, strides: [14 * 14 * 1024, 14 * 1024, 512, 1024, 256, 1] } },
    })),
    copying('heads of attention, 196x12x64', (n) => ({
      shape: [n, 12, 196, 64],
      x: { shape: [n, 196, 12, 64], layout: { offset: 0, strides: [196 * 12 * 64, 64, 12 * 64, 1] } },
    })),
  ],
  scatterAdd: [
    {
      name: '512 rows of 1024 channels to 2000',
      flops: (n) => n * 512 * 1024,
      prepare(s) {
        const tensors = { dx: s.output([s.batch, 2000, 1024]), dy: s.values([s.batch, 512, 1024]), index: s.indices([s.batch, 512], 2000) }
        return () => runNative('gatherRowsBackward', tensors)
      },
    },
  ],
  slice: [
    copying('half of the channels', (n) => ({ shape: [n, 56, 56, 128], x: inside(map(n), 64) })),
    copying('every second pixel', (n) => ({
      shape: [n, 28, 28, 256],
      x: { shape: map(n), layout: { offset: 0, strides: [56 * 56 * 256, 2 * 56 * 256, 2 * 256, 1] } },
    })),
  ],
} satisfies FamilyCases
