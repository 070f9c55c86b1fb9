import { runPositional } from '../../tensor/native.js'
import { accumulator } from '../../tensor/tensor.js'
import { embeddings, type FamilyCases, type Setting } from './benchCase.js'

export const similarityCases = {
  denseMatch: [
    {
      name: '49 x 49 positions, 2048 channels',
      flops: (n) => 2 * n * 49 * 49 * 2048,
      prepare(s) {
        const tensors = [s.output([s.batch, 49], 'i32'), undefined, s.values([s.batch, 49, 2048]), s.values([s.batch, 49, 2048])]
        return () => runPositional('denseMatch', tensors, [1])
      },
      peer: { op: 'denseMatch', numbers: (n) => [n, 49, 2048] },
    },
  ],
  gatherRows: [
    {
      name: 'partners of 49 positions',
      flops: () => 0,
      prepare(s) {
        const tensors = [s.output([s.batch, 49, 128]), s.values([s.batch, 49, 128]), s.indices([s.batch, 49], 49)]
        return () => runPositional('gatherRows', tensors)
      },
    },
  ],
  l2Normalize: embeddings.map(({ name, of }) => ({
    name: `${name} embeddings`,
    flops: (n: number) => 3 * of(n) * 128,
    prepare(s: Setting) {
      const tensors = [s.output([of(s.batch), 128]), s.output([of(s.batch)], accumulator(s.dtype)), s.values([of(s.batch), 128])]
      return () => runPositional('l2Normalize', tensors, [1e-12])
    },
    peer: { op: 'l2Normalize', numbers: (n: number) => [of(n), 128] },
  })),
} satisfies FamilyCases
