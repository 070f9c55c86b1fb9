import fc from 'fast-check'

import {
  add,
  div,
  equal,
  greater,
  greaterEqual,
  less,
  lessEqual,
  maximum,
  minimum,
  mul,
  notEqual,
  pow,
  sub,
  where,
} from '../../../src/ops/arithmetic.js'
import type { Random } from '../../../src/tensor/random.js'
import { sizeOf, Tensor } from '../../../src/tensor/tensor.js'
import { randomTensor } from '../../support/gradients.js'
import { define, integer, type OpCase, type OpCases } from './opCase.js'

/** A shape, and for each operand the axes along which it is repeated and how many leading ones it does not have. */
export interface Broadcast {
  shape: number[]
  repeated: boolean[][]
  dropped: number[]
}
const operands = 3
const broadcastOf = (shape: fc.Arbitrary<number[]>): fc.Arbitrary<Broadcast> =>
  fc.record({
    shape,
    repeated: fc.array(fc.array(fc.boolean(), { minLength: 4, maxLength: 4 }), { minLength: operands, maxLength: operands }),
    dropped: fc.array(fc.oneof(fc.constant(0), integer(0, 4)), { minLength: operands, maxLength: operands }),
  })
export const broadcast = broadcastOf(fc.array(fc.oneof(integer(1, 5), fc.constantFrom(8, 17)), { maxLength: 4 }))
const largeBroadcast = broadcastOf(fc.constantFrom([3, 5, 7, 64], [33, 129], [2, 700], [5000], [3, 40, 24]))

export const operandShape = ({ shape, repeated, dropped }: Broadcast, k: number): number[] =>
  shape.map((d, axis) => (repeated[k]![axis] === true ? 1 : d)).slice(Math.min(dropped[k]!, shape.length))

type Draw = (random: Random, shape: number[]) => Tensor
const normal: Draw = (random, shape) => randomTensor(random, shape)
const away: Draw = (random, shape) => randomTensor(random, shape, { away: 0.5 })
const positive: Draw = (random, shape) =>
  Tensor.from(
    Float64Array.from({ length: sizeOf(shape) }, () => 0.3 + Math.abs(random.normal())),
    shape,
    'f64',
  )
/** Of few values, so that many are equal. */
const coarse: Draw = (random, shape) =>
  Tensor.from(
    Float64Array.from({ length: sizeOf(shape) }, () => Math.round(2 * random.normal()) / 2),
    shape,
    'f64',
  )

const binaryCase = (op: (a: Tensor, b: Tensor) => Tensor, drawA: Draw, drawB: Draw, accumulates = 4): OpCase =>
  define<Broadcast>({
    parameters: broadcast,
    large: largeBroadcast,
    inputs: (p, random) => [drawA(random, operandShape(p, 0)), drawB(random, operandShape(p, 1))],
    run: (_, [a, b]) => op(a!, b!),
    magnitude: () => 1,
    // A repeated operand's gradient is a sum of products, each of which bf16 has rounded; they may cancel.
    gradientMagnitude: (p) => 1 + sizeOf(p.shape) / (Math.min(...[0, 1].map((k) => sizeOf(operandShape(p, k)))) || 1),
    accumulates: () => accumulates,
  })

const comparisons = { equal, notEqual, less, lessEqual, greater, greaterEqual }

export const arithmeticCases = {
  add: binaryCase(add, normal, normal),
  sub: binaryCase(sub, normal, normal),
  mul: binaryCase(mul, normal, normal),
  div: binaryCase(div, normal, away),
  // Where a^b is large, its gradients are of its size times log a.
  pow: binaryCase(pow, positive, normal, 40),
  maximum: binaryCase(maximum, normal, normal),
  minimum: binaryCase(minimum, normal, normal),
  compare: define({
    parameters: fc.record({ shapes: broadcast, kind: fc.constantFrom(...(Object.keys(comparisons) as (keyof typeof comparisons)[])) }),
    inputs: ({ shapes }, random) => [coarse(random, operandShape(shapes, 0)), coarse(random, operandShape(shapes, 1))],
    run: ({ kind }, [a, b]) => comparisons[kind](a!, b!),
    differentiable: 0,
    accumulates: () => 1,
  }),
  where: define({
    parameters: broadcast,
    inputs: (p, random) => [normal(random, operandShape(p, 0)), normal(random, operandShape(p, 1))],
    run(p, [a, b]) {
      const shape = operandShape(p, 2)
      return where(
        Tensor.from(
          Uint8Array.from({ length: sizeOf(shape) }, (_, i) => (i * 7) % 3),
          shape,
          'u8',
          a!.device,
        ),
        a!,
        b!,
      )
    },
    accumulates: () => 1,
  }),
} satisfies OpCases
