import { runNative } from '../../tensor/native.js'
import { accumulator, type Shape, type Tensor } from '../../tensor/tensor.js'
import { embeddings, type FamilyCases, queueLength, type Setting } from './benchCase.js'

export const lossesCases = {
  crossEntropy: [
    {
      name: '1000 classes, gradient',
      flops: (n) => 5 * n * 1000,
      prepare(s) {
        const tensors = {
          loss: s.output([], accumulator(s.dtype)),
          dlogits: s.output([s.batch, 1000]),
          count: s.output([1], 'f32'),
          logits: s.values([s.batch, 1000]),
          target: s.indices([s.batch], 1000),
        }
        return () => runNative('crossEntropy', tensors, { ignoreIndex: -100 })
      },
    },
  ],
  infoNce: embeddings.map(({ name, of }) => ({
    name: `${name}, queue ${queueLength}, loss and gradient`,
    flops: (n: number) => 4 * of(n) * queueLength * 128,
    prepare(s: Setting) {
      const shape = [of(s.batch), 128]
      // Rows have the length of unit vectors, which is what training sees.
      const unit = (of: Shape): Tensor => {
        const tensor = s.values(of)
        runNative('scale', { y: tensor, x: tensor }, { number: 1 / Math.sqrt(128) })
        return tensor
      }
      const tensors = {
        loss: s.output([], accumulator(s.dtype)),
        dquery: s.output(shape),
        statistics: s.output([4], 'f32'),
        query: unit(shape),
        positive: unit(shape),
        queue: unit([queueLength, 128]),
      }
      return () => runNative('infoNce', tensors, { temperature: 0.2, unit: true })
    },
    peer: { op: 'infoNce', numbers: (n: number) => [of(n), queueLength, 128] },
  })),
} satisfies FamilyCases
