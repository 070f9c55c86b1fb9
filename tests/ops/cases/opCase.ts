import fc from 'fast-check'

import type { OpName } from '../../../src/ops/catalogue.js'
import type { Random } from '../../../src/tensor/random.js'
import { type FloatDType, Tensor } from '../../../src/tensor/tensor.js'

/**
 * The description of an op: random parameters, inputs for them, and the call. Its uses: finite differences, f32 against f64, one
 * thread against several, and every device against the CPU.
 */
export interface OpCase<P = unknown> {
  parameters: fc.Arbitrary<P>
  /** Larger than one tile of a GPU's kernels, with tails. */
  large?: fc.Arbitrary<P>
  /** Float inputs, in f64. */
  inputs: (p: P, random: Random) => Tensor[]
  /** The op on inputs of any float dtype. */
  run: (p: P, inputs: Tensor[]) => Tensor
  /** Inputs that stay f32 where the others are bf16: biases and the affine vectors of batch norm. */
  sums?: readonly number[]
  /** The size of terms that may cancel in the result: errors are relative to at least this. */
  magnitude?: (p: P) => number
  /** The same for its gradients, whose cotangent is of order 1. */
  gradientMagnitude?: (p: P) => number
  /** How many of the leading inputs are differentiable; all when absent, 0 for none. */
  differentiable?: number
  /** Length of the longest sum: f32 errs by about its square root times epsilon, at worst by itself times epsilon. */
  accumulates: (p: P) => number
}

/** Those of a family of ops. */
export type OpCases = Partial<Record<OpName, OpCase>>

export const define = <P>(opCase: OpCase<P>): OpCase => opCase as OpCase
export const integer = (min: number, max: number): fc.Arbitrary<number> => fc.integer({ min, max })
export const pair = (min: number, max: number): fc.Arbitrary<[number, number]> => fc.tuple(integer(min, max), integer(min, max))

/** A small image of odd sizes. */
export const image = fc.record({
  n: integer(1, 3),
  h: integer(1, 9),
  w: integer(1, 9),
  c: fc.oneof(integer(1, 5), fc.constantFrom(8, 16, 17, 33)),
})
export const shapeOf = ({ n, h, w, c }: { n: number; h: number; w: number; c: number }): number[] => [n, h, w, c]

/** Distinct values: a difference must not change which is the largest. */
export const distinct = (random: Random, shape: number[]): Tensor => {
  const size = shape.reduce((n, d) => n * d, 1)
  return Tensor.from(
    Float64Array.from(random.permutation(size), (v) => v / 10),
    shape,
    'f64',
  )
}

/** The op's output with its inputs in `dtype`. */
export const runAs = (opCase: OpCase, p: unknown, inputs: Tensor[], dtype: FloatDType): Tensor =>
  opCase.run(
    p,
    inputs.map((input) => input.to(dtype)),
  )
