/** Ops that move values: permutations, slices, joins, padding, gathers. */
import fc from 'fast-check'

import { broadcastTo } from '../../../src/ops/broadcastTo.js'
import { concat } from '../../../src/ops/concat.js'
import { gather, scatterAdd } from '../../../src/ops/gather.js'
import { pad } from '../../../src/ops/pad.js'
import { permute } from '../../../src/ops/permute.js'
import { slice, type SliceRange } from '../../../src/ops/slice.js'
import { Tensor } from '../../../src/tensor/tensor.js'
import { randomTensor } from '../../support/gradients.js'
import { define, integer, type OpCases } from './opCase.js'

// Sizes that are whole vectors of a GPU, and others.
const size = fc.oneof(integer(1, 5), fc.constantFrom(8, 16))
const few = (...shapes: number[][]): boolean => shapes.flat().reduce((product, d) => product * d, 1) <= 1000
const shapes = (most: number): fc.Arbitrary<number[]> => fc.array(size, { minLength: 1, maxLength: most }).filter((shape) => few(shape))

/** A shape and an order of its axes. */
export const permutation = shapes(5).chain((shape) =>
  fc.record({
    shape: fc.constant(shape),
    order: fc.shuffledSubarray(
      shape.map((_, axis) => axis),
      { minLength: shape.length },
    ),
  }),
)

const largePermutation = fc.constantFrom<{ shape: number[]; order: number[] }>(
  { shape: [2, 70, 67], order: [0, 2, 1] },
  { shape: [65, 3, 40], order: [2, 1, 0] },
  { shape: [2, 33, 5, 36], order: [3, 0, 2, 1] },
  { shape: [3, 8, 9, 40], order: [0, 3, 1, 2] },
)

/** Of an axis of `size` elements: forwards or backwards, to or from its end, never empty. */
const rangeOf = (size: number): fc.Arbitrary<SliceRange | undefined> =>
  fc.oneof(
    fc.constant(undefined),
    fc.constant<SliceRange>([undefined, undefined, -1]),
    fc.tuple(integer(0, size - 1), integer(1, 3)).map(([start, step]): SliceRange => [start, undefined, step]),
    fc.tuple(integer(1, size), integer(1, 3)).map(([stop, step]): SliceRange => [undefined, stop, step]),
    integer(1, size).map((fromEnd): SliceRange => [-fromEnd]),
  )
export const slicing = shapes(4).chain((shape) =>
  fc.record({ shape: fc.constant(shape), ranges: fc.tuple<(SliceRange | undefined)[]>(...shape.map(rangeOf)) }),
)

const joining = shapes(4).chain((shape) =>
  fc.record({
    shape: fc.constant(shape),
    axis: integer(-shape.length, shape.length - 1),
    sizes: fc.array(size, { minLength: 1, maxLength: 3 }),
  }),
)

const padding = shapes(4).chain((shape) =>
  fc.record({ shape: fc.constant(shape), by: fc.tuple<[number, number][]>(...shape.map(() => fc.tuple(integer(0, 3), integer(0, 3)))) }),
)

export const gathering = fc
  .record({ batch: shapes(2), before: fc.array(size, { maxLength: 1 }), rows: integer(1, 6), after: fc.array(size, { maxLength: 2 }) })
  .filter(({ batch, before, rows, after }) => few(batch, before, [rows], after))
  .chain((part) => fc.record({ ...asConstants(part), picks: fc.array(size, { maxLength: 2 }), batchAxes: integer(0, part.batch.length) }))
  .filter(({ batch, before, picks, after }) => few(batch, before, picks, after))

function asConstants<T extends object>(values: T): { [K in keyof T]: fc.Arbitrary<T[K]> } {
  return Object.fromEntries(Object.entries(values).map(([key, value]) => [key, fc.constant(value)])) as {
    [K in keyof T]: fc.Arbitrary<T[K]>
  }
}

/** A shape and what it broadcasts to: each axis as it is or repeated, and others in front. */
const repetition = fc
  .record({
    axes: fc.array(fc.record({ size, times: fc.oneof(fc.constant(1), size) }), { minLength: 1, maxLength: 4 }),
    added: fc.array(integer(1, 3), { maxLength: 2 }),
  })
  .filter(({ axes, added }) =>
    few(
      added,
      axes.map(({ size, times }) => size * times),
    ),
  )

export const layoutCases = {
  broadcastTo: define({
    parameters: repetition,
    inputs: ({ axes }, random) => [
      randomTensor(
        random,
        axes.map(({ size, times }) => (times > 1 ? 1 : size)),
      ),
    ],
    run: ({ axes, added }, [x]) => broadcastTo(x!, [...added, ...axes.map(({ size, times }) => (times > 1 ? times : size))]),
    accumulates: () => 1,
  }),
  concat: define({
    parameters: joining,
    inputs: ({ shape, axis, sizes }, random) => sizes.map((size) => randomTensor(random, shape.with(axis, size))),
    run: ({ axis }, parts) => concat(parts, axis),
    accumulates: () => 1,
  }),
  gather: define({
    parameters: gathering,
    inputs: ({ batch, before, rows, after }, random) => [randomTensor(random, [...batch, ...before, rows, ...after])],
    run({ batch, before, rows, picks, batchAxes }, [x]) {
      const shape = [...batch.slice(0, batchAxes), ...picks]
      const count = shape.reduce((product, d) => product * d, 1)
      const index = Tensor.from(
        // -1 picks nothing.
        Int32Array.from({ length: count }, (_, i) => ((i * 7 + 3) % (rows + 1)) - 1),
        shape,
        'i32',
      )
      return gather(x!, index, { axis: batch.length + before.length, batchAxes })
    },
    accumulates: ({ picks }) => picks.reduce((product, d) => product * d, 1),
  }),
  pad: define({
    parameters: padding,
    inputs: ({ shape }, random) => [randomTensor(random, shape)],
    run: ({ by }, [x]) => pad(x!, by, 0.5),
    accumulates: () => 1,
  }),
  permute: define({
    parameters: permutation,
    large: largePermutation,
    inputs: ({ shape }, random) => [randomTensor(random, shape)],
    run: ({ order }, [x]) => permute(x!, order),
    accumulates: () => 1,
  }),
  scatterAdd: define({
    parameters: gathering,
    inputs: ({ batch, before, picks, after }, random) => [randomTensor(random, [...batch, ...before, ...picks, ...after])],
    run({ batch, before, rows, picks, batchAxes }, [x]) {
      const shape = [...batch.slice(0, batchAxes), ...picks]
      const count = shape.reduce((product, d) => product * d, 1)
      const index = Tensor.from(
        Int32Array.from({ length: count }, (_, i) => (i * 7 + 3) % rows),
        shape,
        'i32',
      )
      return scatterAdd(x!, index, rows, { axis: batch.length + before.length, batchAxes })
    },
    // What meets at a place may cancel.
    magnitude: () => 1,
    accumulates: ({ picks }) => picks.reduce((product, d) => product * d, 1),
  }),
  slice: define({
    parameters: slicing,
    inputs: ({ shape }, random) => [randomTensor(random, shape)],
    run: ({ ranges }, [x]) => slice(x!, ranges),
    accumulates: () => 1,
  }),
} satisfies OpCases
