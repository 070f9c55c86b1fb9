import { runNative } from '../../tensor/native.js'
import { binaryKinds, compareKinds } from '../../tensor/nativeOps.js'
import type { Shape } from '../../tensor/tensor.js'
import { type BenchCase, type FamilyCases, map, mapSize } from './benchCase.js'

/** b of the shape of a, of one value a channel, and of one value a position: each has loops of its own. */
const forms: readonly { name: string; shape: (n: number) => Shape }[] = [
  { name: '56x56x256', shape: map },
  { name: '56x56x256, b of a value a channel', shape: () => [256] },
  { name: '56x56x256, b of a value a position', shape: (n) => [n, 56, 56, 1] },
]

const binaryCases = (kind: keyof typeof binaryKinds): BenchCase[] =>
  forms.map(({ name, shape }) => ({
    name,
    flops: (n) => n * mapSize,
    prepare(s) {
      const [y, a, b] = [s.output(map(s.batch)), s.values(map(s.batch)), s.values(shape(s.batch))]
      return () => runNative('binary', { y, a, b }, { kind: binaryKinds[kind] })
    },
  }))

export const arithmeticCases = {
  add: [
    {
      name: 'layer1 join',
      flops: (n) => n * mapSize,
      prepare(s) {
        const tensors = { y: s.output(map(s.batch)), a: s.values(map(s.batch)), b: s.values(map(s.batch)) }
        return () => runNative('add', tensors)
      },
      peer: { op: 'add', numbers: (n) => [...map(n)] },
    },
    ...binaryCases('add').slice(1),
  ],
  sub: binaryCases('sub'),
  mul: binaryCases('mul'),
  div: binaryCases('div'),
  pow: binaryCases('pow'),
  maximum: binaryCases('maximum'),
  minimum: binaryCases('minimum'),
  compare: [
    {
      name: 'less, 56x56x256',
      flops: (n) => n * mapSize,
      prepare(s) {
        const [y, a, b] = [s.output(map(s.batch), 'u8'), s.values(map(s.batch)), s.values(map(s.batch))]
        return () => runNative('compare', { y, a, b }, { kind: compareKinds.less })
      },
    },
  ],
  where: [
    {
      name: '56x56x256',
      flops: () => 0,
      prepare(s) {
        const condition = s.output(map(s.batch), 'u8')
        const [y, a, b] = [s.output(map(s.batch)), s.values(map(s.batch)), s.values(map(s.batch))]
        return () => runNative('where', { y, condition, a, b })
      },
    },
  ],
} satisfies FamilyCases
