import { runNative } from '../../tensor/native.js'
import { accumulator, type Shape, sizeOf, type Tensor } from '../../tensor/tensor.js'
import { type BenchCase, embeddings, type FamilyCases, queueLength, type Setting } from './benchCase.js'

/** Of the sampled boxes of an image, or the masks of its objects. */
const pointwise = (op: 'smoothL1' | 'binaryCrossEntropy', name: string, shape: (batch: number) => Shape): BenchCase => ({
  name,
  flops: (n) => 10 * sizeOf(shape(n)),
  prepare(s) {
    const of = shape(s.batch)
    const tensors = { loss: s.output([], accumulator(s.dtype)), dx: s.output(of), x: s.values(of), target: s.values(of) }
    return () => (op === 'smoothL1' ? runNative(op, tensors, { beta: 0, scale: 1 }) : runNative(op, tensors, { scale: 1 }))
  },
})

export const lossesCases = {
  binaryCrossEntropy: [pointwise('binaryCrossEntropy', '128 masks of 28x28, loss and gradient', (n) => [128 * n, 28, 28])],
  smoothL1: [pointwise('smoothL1', '512 boxes of 80 classes, loss and gradient', (n) => [512 * n, 320])],

  crossEntropy: [
    {
      name: '1000 classes, gradient',
      flops: (n) => 5 * n * 1000,
      prepare(s) {
        const tensors = {
          loss: s.output([], accumulator(s.dtype)),
          dlogits: s.output([s.batch, 1000]),
          total: s.output([1], 'f32'),
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
