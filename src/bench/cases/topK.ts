import { runNative } from '../../tensor/native.js'
import type { FamilyCases } from './benchCase.js'

export const topKCases = {
  topK: [
    [63000, 12000],
    [201600, 2000],
  ].map(([n, k]) => ({
    name: `${k} of ${n} scores`,
    flops: () => 0,
    prepare(s) {
      const tensors = { values: s.output([s.batch, k!]), index: s.output([s.batch, k!], 'i32'), x: s.values([s.batch, n!]) }
      return () => runNative('topK', tensors)
    },
  })),
} satisfies FamilyCases
