import { runNative } from '../../tensor/native.js'
import type { Shape } from '../../tensor/tensor.js'
import { type BenchCase, type FamilyCases, map, mapSize } from './benchCase.js'

/** What is left of 56x56x256 maps. */
const forms: readonly { name: string; shape: (n: number) => Shape }[] = [
  { name: '56x56x256 to a value', shape: () => [1, 1, 1, 1] },
  { name: '56x56x256 to a value a channel', shape: () => [1, 1, 1, 256] },
  { name: '56x56x256 to a value a position', shape: (n) => [n, 56, 56, 1] },
  { name: '56x56x256 to a vector an image', shape: (n) => [n, 1, 1, 256] },
]

const reductions = (maximum: boolean): BenchCase[] =>
  forms.map(({ name, shape }) => ({
    name,
    flops: (n) => n * mapSize,
    prepare(s) {
      const [y, x] = [s.output(shape(s.batch)), s.values(map(s.batch))]
      return () => runNative('reduce', { y, x }, { maximum, scale: 1 })
    },
  }))

export const reduceCases = { sum: reductions(false), max: reductions(true) } satisfies FamilyCases
