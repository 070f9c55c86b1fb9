import type { UnaryName } from '../../ops/unary.js'
import { runNative } from '../../tensor/native.js'
import { unaryKinds } from '../../tensor/nativeOps.js'
import { type BenchCase, map, mapSize } from './benchCase.js'

const unaryBenches = (name: UnaryName): readonly BenchCase[] => [
  {
    name: '56x56x256',
    flops: (n) => n * mapSize,
    prepare(s) {
      const [y, x] = [s.output(map(s.batch)), s.values(map(s.batch))]
      return () => runNative('unary', { y, x }, { kind: unaryKinds[name].kind })
    },
  },
  {
    name: '56x56x256, backward',
    flops: (n) => n * mapSize,
    prepare(s) {
      const [dx, dy, saved] = [s.output(map(s.batch)), s.values(map(s.batch)), s.values(map(s.batch))]
      return () => runNative('unaryBackward', { dx, dy, saved }, { kind: unaryKinds[name].kind })
    },
  },
]

export const unaryCases = Object.fromEntries((Object.keys(unaryKinds) as UnaryName[]).map((name) => [name, unaryBenches(name)])) as Record<
  UnaryName,
  readonly BenchCase[]
>
