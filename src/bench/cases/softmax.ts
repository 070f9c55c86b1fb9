import { runNative } from '../../tensor/native.js'
import { type BenchCase, type FamilyCases, map, mapSize } from './benchCase.js'

const lines = (name: string, axis: number): BenchCase[] => [
  {
    name,
    flops: (n) => 4 * n * mapSize,
    prepare(s) {
      const [y, x] = [s.output(map(s.batch)), s.values(map(s.batch))]
      return () => runNative('softmax', { y, x }, { axis, log: false })
    },
  },
  {
    name: `${name}, backward`,
    flops: (n) => 4 * n * mapSize,
    prepare(s) {
      const [dx, dy, y] = [s.output(map(s.batch)), s.values(map(s.batch)), s.values(map(s.batch))]
      return () => runNative('softmaxBackward', { dx, dy, y }, { axis, log: false })
    },
  },
]

export const softmaxCases = {
  softmax: [...lines('56x56x256, over channels', 3), ...lines('56x56x256, over rows', 1)],
  argmax: [
    {
      name: '56x56x256, over channels',
      flops: (n) => n * mapSize,
      prepare(s) {
        const [index, x] = [s.output([s.batch, 56, 56], 'i32'), s.values(map(s.batch))]
        return () => runNative('argmax', { index, x }, { axis: 3 })
      },
    },
  ],
} satisfies FamilyCases
