import { runPositional } from '../../tensor/native.js'
import type { BenchCase, FamilyCases } from './benchCase.js'

const pointwise = [1, 1, 0, 0, 1, 1]

const linearCase = (name: string, inputs: number, outputs: number): BenchCase => ({
  name: `${name} forward`,
  flops: (n) => 2 * n * inputs * outputs,
  prepare(s) {
    const tensors = [
      s.output([s.batch, 1, 1, outputs]),
      s.values([s.batch, 1, 1, inputs]),
      s.values([outputs, 1, 1, inputs]),
      s.sums([outputs]),
    ]
    return () => runPositional('conv2d', tensors, pointwise)
  },
  peer: { op: 'linear', numbers: (n) => [n, inputs, outputs] },
})

export const linearCases = { linear: [linearCase('mlp.0', 2048, 2048), linearCase('mlp.2', 2048, 128)] } satisfies FamilyCases
