import { computeNumbers, pointwiseWindows } from '../../ops/tuning.js'
import { runNative } from '../../tensor/native.js'
import type { BenchCase, FamilyCases } from './benchCase.js'

const linearCase = (name: string, inputs: number, outputs: number): BenchCase => ({
  name: `${name} forward`,
  flops: (n) => 2 * n * inputs * outputs,
  prepare(s) {
    const tensors = {
      y: s.output([s.batch, 1, 1, outputs]),
      x: s.values([s.batch, 1, 1, inputs]),
      weight: s.values([outputs, 1, 1, inputs]),
      bias: s.sums([outputs]),
    }
    return () => runNative('conv2d', tensors, { ...pointwiseWindows, ...computeNumbers(), relu: false })
  },
  peer: { op: 'linear', numbers: (n) => [n, inputs, outputs] },
})

export const linearCases = { linear: [linearCase('mlp.0', 2048, 2048), linearCase('mlp.2', 2048, 128)] } satisfies FamilyCases
