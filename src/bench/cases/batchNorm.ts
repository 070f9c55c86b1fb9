import { runNative } from '../../tensor/native.js'
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
  const peerNumbers = (n: number): number[] => [n, size, c, Number(joins)]
  return [
    {
      name: `${name} forward${joins ? ', residual' : ''}, relu`,
      flops: (n) => 8 * n * size * size * c,
      prepare(s) {
        const [mean, invstd, runningMean, runningVar] = vectors(s)
        const tensors = {
          y: s.output(shape(s.batch)),
          mean,
          invstd,
          runningMean,
          runningVar,
          x: s.values(shape(s.batch)),
          weight: s.sums([c]),
          bias: s.sums([c]),
          residual: joins ? s.values(shape(s.batch)) : undefined,
          scale: s.output([1, c], 'f32'),
          shift: s.output([1, c], 'f32'),
        }
        return () => runNative('batchNormTrain', tensors, { eps: 1e-5, momentum: 0.1, relu: true })
      },
      peer: { op: 'batchNorm', numbers: peerNumbers },
    },
    {
      name: `${name} backward${joins ? ', residual' : ''}, relu`,
      flops: (n) => 10 * n * size * size * c,
      prepare(s) {
        const [mean, invstd, dweight, dbias] = vectors(s)
        const big = (): Tensor => s.values(shape(s.batch))
        const tensors = {
          dx: s.output(shape(s.batch)),
          dweight,
          dbias,
          dz: joins ? s.output(shape(s.batch)) : undefined,
          dy: big(),
          x: big(),
          y: big(),
          weight: s.sums([c]),
          mean,
          invstd,
        }
        return () => runNative('batchNormBackward', tensors, { train: true })
      },
      peer: { op: 'batchNormBackward', numbers: peerNumbers },
    },
  ]
})

export const batchNormCases = { batchNorm: norms } satisfies FamilyCases
