import { runNative } from '../../tensor/native.js'
import { accumulator } from '../../tensor/tensor.js'
import { embeddings, type FamilyCases, type Setting } from './benchCase.js'

export const similarityCases = {
  denseMatch: [
    {
      name: '49 x 49 positions, 2048 channels',
      flops: (n) => 2 * n * 49 * 49 * 2048,
      prepare(s) {
        const tensors = { index: s.output([s.batch, 49], 'i32'), query: s.values([s.batch, 49, 2048]), key: s.values([s.batch, 49, 2048]) }
        return () => runNative('denseMatch', tensors, { cosine: true })
      },
      peer: { op: 'denseMatch', numbers: (n) => [n, 49, 2048] },
    },
  ],
  l2Normalize: embeddings.map(({ name, of }) => ({
    name: `${name} embeddings`,
    flops: (n: number) => 3 * of(n) * 128,
    prepare(s: Setting) {
      const shape = [of(s.batch), 128]
      const tensors = { y: s.output(shape), norm: s.output([of(s.batch)], accumulator(s.dtype)), x: s.values(shape) }
      return () => runNative('l2Normalize', tensors, { eps: 1e-12 })
    },
    peer: { op: 'l2Normalize', numbers: (n: number) => [of(n), 128] },
  })),
} satisfies FamilyCases
