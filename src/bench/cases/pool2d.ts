import { adaptiveWindows } from '../../ops/pool2d.js'
import { runNative } from '../../tensor/native.js'
import { Tensor } from '../../tensor/tensor.js'
import type { FamilyCases } from './benchCase.js'

const stem = { kernelH: 3, kernelW: 3, strideH: 2, strideW: 2, paddingH: 1, paddingW: 1 }

export const pool2dCases = {
  avgPool2d: [
    {
      name: 'global, 7x7x2048',
      flops: (n) => n * 49 * 2048,
      prepare(s) {
        const tensors = { y: s.output([s.batch, 1, 1, 2048]), x: s.values([s.batch, 7, 7, 2048]) }
        return () => runNative('avgPool2d', tensors, adaptiveWindows)
      },
      peer: { op: 'avgPool2d', numbers: (n) => [n, 7, 2048] },
    },
  ],
  maxPool2d: [
    {
      name: 'stem 3x3/2 forward',
      flops: (n) => 9 * n * 56 * 56 * 64,
      prepare(s) {
        const pooled = [s.batch, 56, 56, 64]
        const tensors = { y: s.output(pooled), index: s.output(pooled, 'i32'), x: s.values([s.batch, 112, 112, 64]) }
        return () => runNative('maxPool2d', tensors, { ...stem, relu: false })
      },
      peer: { op: 'maxPool2d', numbers: (n) => [n, 112, 64] },
    },
    {
      name: 'stem 3x3/2 backward',
      flops: (n) => 9 * n * 56 * 56 * 64,
      prepare(s) {
        const pooled = [s.batch, 56, 56, 64]
        const index = s.output(pooled, 'i32')
        const x = Tensor.zeros([s.batch, 112, 112, 64], s.dtype)
        runNative('maxPool2d', { y: Tensor.empty(pooled, s.dtype), index, x }, { ...stem, relu: false })
        const tensors = { dx: s.output(x.shape), dy: s.values(pooled), index }
        return () => runNative('maxPool2dBackward', tensors, stem)
      },
    },
  ],
} satisfies FamilyCases
