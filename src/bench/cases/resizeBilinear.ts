import { runNative } from '../../tensor/native.js'
import { type FamilyCases, map, mapSize } from './benchCase.js'

export const resizeBilinearCases = {
  resizeBilinear: [
    {
      name: '28x28 to 56x56, 256 channels',
      flops: (n) => 8 * n * mapSize,
      prepare(s) {
        const tensors = { y: s.output(map(s.batch)), x: s.values([s.batch, 28, 28, 256]) }
        return () => runNative('resizeBilinear', tensors, { alignCorners: false })
      },
    },
  ],
} satisfies FamilyCases
