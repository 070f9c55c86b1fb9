import { runPositional } from '../../tensor/native.js'
import { Tensor } from '../../tensor/tensor.js'
import type { FamilyCases } from './benchCase.js'

export const pool2dCases = {
  avgPool2d: [
    {
      name: 'global, 7x7x2048',
      flops: (n) => n * 49 * 2048,
      prepare(s) {
        const tensors = [s.output([s.batch, 1, 1, 2048]), s.values([s.batch, 7, 7, 2048])]
        return () => runPositional('avgPool2d', tensors, [0, 0, 0, 0, 0, 0, 0, 1])
      },
      peer: { op: 'avgPool2d', numbers: (n) => [n, 7, 2048] },
    },
  ],
  maxPool2d: [
    {
      name: 'stem 3x3/2 forward',
      flops: (n) => 9 * n * 56 * 56 * 64,
      prepare(s) {
        const tensors = [s.output([s.batch, 56, 56, 64]), s.output([s.batch, 56, 56, 64], 'i32'), s.values([s.batch, 112, 112, 64])]
        return () => runPositional('maxPool2d', tensors, [3, 3, 2, 2, 1, 1])
      },
      peer: { op: 'maxPool2d', numbers: (n) => [n, 112, 64] },
    },
    {
      name: 'stem 3x3/2 backward',
      flops: (n) => 9 * n * 56 * 56 * 64,
      prepare(s) {
        const index = s.output([s.batch, 56, 56, 64], 'i32')
        runPositional(
          'maxPool2d',
          [Tensor.empty([s.batch, 56, 56, 64], s.dtype), index, Tensor.zeros([s.batch, 112, 112, 64], s.dtype)],
          [3, 3, 2, 2, 1, 1],
        )
        const tensors = [s.output([s.batch, 112, 112, 64]), s.values([s.batch, 56, 56, 64]), index]
        return () => runPositional('maxPool2dBackward', tensors, [3, 3, 2, 2, 1, 1])
      },
    },
  ],
} satisfies FamilyCases
