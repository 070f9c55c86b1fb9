import { runNative } from '../../tensor/native.js'
import { binaryKinds } from '../../tensor/nativeOps.js'
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

/** Two reductions and the squares of the deviations between them. */
const variances: readonly BenchCase[] = forms.map(({ name, shape }) => ({
  name,
  flops: (n) => 4 * n * mapSize,
  prepare(s) {
    const { batch } = s
    const [y, center, deviation, squares] = [s.output(shape(batch)), s.output(shape(batch)), s.output(map(batch)), s.output(map(batch))]
    const x = s.values(map(batch))
    return () => {
      runNative('reduce', { y: center, x }, { maximum: false, scale: center.size / x.size })
      runNative('binary', { y: deviation, a: x, b: center }, { kind: binaryKinds.sub })
      runNative('binary', { y: squares, a: deviation, b: deviation }, { kind: binaryKinds.mul })
      runNative('reduce', { y, x: squares }, { maximum: false, scale: y.size / x.size })
    }
  },
}))

export const reduceCases = { sum: reductions(false), max: reductions(true), variance: variances } satisfies FamilyCases
