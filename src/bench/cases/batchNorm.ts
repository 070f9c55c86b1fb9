import { runPositional } from '../../tensor/native.js'
import type { Shape, Tensor } from '../../tensor/tensor.js'
import { resnet50Maps } from '../layers.js'
import type { BenchCase, FamilyCases, Setting } from './benchCase.js'

const norms = resnet50Maps.flatMap(({ name, size, c }): BenchCase[] => {
  const joins = name.endsWith('bn3')
  const shape = (n: number): Shape => [n, size, size, c]
  const vectors = (s: Setting): [Tensor, Tensor, Tensor, Tensor] => [
    s.output([1, c], 'f32'),
    s.output([1, c], 'f32'),
    s.output([c], 'f32'),
    s.output([c], 'f32'),
  ]
  // What a GPU gives and takes beside the CPU's tensors: statistics of the convolution, scale and shift.
  const affine = (s: Setting): [undefined, Tensor, Tensor] => [undefined, s.output([1, c], 'f32'), s.output([1, c], 'f32')]
  const peerNumbers = (n: number): number[] => [n, size, c, Number(joins)]
  return [
    {
      name: `${name} forward${joins ? ', residual' : ''}, relu`,
      flops: (n) => 8 * n * size * size * c,
      prepare(s) {
        const [mean, invstd, runningMean, runningVar] = vectors(s)
        const tensors = [
          s.output(shape(s.batch)),
          mean,
          invstd,
          runningMean,
          runningVar,
          s.values(shape(s.batch)),
          s.sums([c]),
          s.sums([c]),
          joins ? s.values(shape(s.batch)) : undefined,
          ...affine(s),
        ]
        return () => runPositional('batchNormTrain', tensors, [1, 1e-5, 0.1, 1])
      },
      peer: { op: 'batchNorm', numbers: peerNumbers },
    },
    {
      name: `${name} backward${joins ? ', residual' : ''}, relu`,
      flops: (n) => 10 * n * size * size * c,
      prepare(s) {
        const [mean, invstd, dgamma, dbeta] = vectors(s)
        const big = (): Tensor => s.values(shape(s.batch))
        const tensors = [
          s.output(shape(s.batch)),
          dgamma,
          dbeta,
          joins ? s.output(shape(s.batch)) : undefined,
          big(),
          big(),
          big(),
          s.sums([c]),
          mean,
          invstd,
        ]
        return () => runPositional('batchNormBackward', tensors, [1, 1])
      },
      peer: { op: 'batchNormBackward', numbers: peerNumbers },
    },
  ]
})

export const batchNormCases = { batchNorm: norms } satisfies FamilyCases
