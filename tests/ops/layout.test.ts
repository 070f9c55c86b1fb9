/** Ops that move values, against plain loops over indices, against each other, and what they refuse. */
import fc from 'fast-check'
import * as assert from 'uvu/assert'

import { Tape } from '../../src/autograd/tape.js'
import { broadcastTo, expandDims, squeeze } from '../../src/ops/broadcastTo.js'
import { concat, stack } from '../../src/ops/concat.js'
import { stridesOf } from '../../src/ops/copyStrided.js'
import { gather, oneHot, scatterAdd } from '../../src/ops/gather.js'
import { pad } from '../../src/ops/pad.js'
import { permute, transpose } from '../../src/ops/permute.js'
import { slice } from '../../src/ops/slice.js'
import { runNative } from '../../src/tensor/native.js'
import { Random } from '../../src/tensor/random.js'
import { type DType, scope, type Shape, sizeOf, Tensor } from '../../src/tensor/tensor.js'
import { gathering, permutation, slicing } from './cases/layout.js'
import { suite, throwsError } from '../support/suite.js'

const test = suite('layout')
const dtypes = fc.constantFrom<DType>('f32', 'f64', 'i32', 'u8', 'bf16')

/** 0, 1, 2, .. in a dtype that holds them. */
const counting = (shape: Shape, dtype: DType = 'f32'): Tensor =>
  Tensor.from(
    Array.from({ length: sizeOf(shape) }, (_, i) => i % 128),
    shape,
    dtype,
  )

/** The value at each index of `shape`, row-major. */
function tabulate(shape: Shape, value: (index: number[]) => number): number[] {
  const strides = stridesOf(shape)
  return Array.from({ length: sizeOf(shape) }, (_, i) => value(strides.map((stride, axis) => Math.floor(i / stride) % shape[axis]!)))
}
const at = (tensor: Tensor, values: ArrayLike<number>, index: readonly number[]): number =>
  values[stridesOf(tensor.shape).reduce((sum, stride, axis) => sum + stride * index[axis]!, 0)]!
const check = (y: Tensor, expected: number[]): void => assert.equal([...y.data()], expected)

test('permute moves every element to its place, and the inverse order moves it back', () => {
  fc.assert(
    fc.property(permutation, dtypes, ({ shape, order }, dtype) => {
      scope(() => {
        const x = counting(shape, dtype)
        const y = permute(x, order)
        const values = x.data()
        check(
          y,
          tabulate(y.shape, (index) =>
            at(
              x,
              values,
              shape.map((_, axis) => index[order.indexOf(axis)]!),
            ),
          ),
        )
        const inverse = order.map((_, axis) => order.indexOf(axis))
        const back = permute(y, inverse)
        assert.equal([back.shape, [...back.data()]], [shape, [...values]])
      })
    }),
  )
})

test('a transposition beyond the tile of the loops is right in every element', () => {
  scope(() => {
    const x = Tensor.from(
      Array.from({ length: 3 * 70 * 67 }, (_, i) => i),
      [3, 70, 67],
      'i32',
    )
    const y = transpose(x)
    assert.equal(y.shape, [3, 67, 70])
    const values = x.data()
    check(
      y,
      tabulate(y.shape, ([n, i, j]) => at(x, values, [n!, j!, i!])),
    )
    assert.equal(transpose(y, 1, -1).data(), values)
  })
})

test('slice takes the elements that its ranges name', () => {
  fc.assert(
    fc.property(slicing, dtypes, ({ shape, ranges }, dtype) => {
      scope(() => {
        const x = counting(shape, dtype)
        // JavaScript's own slice, and every |step|-th element of it.
        const places = shape.map((size, axis) => {
          const [start, stop, step = 1] = ranges[axis] ?? []
          const all = Array.from({ length: size }, (_, i) => i).slice(start, stop)
          return (step < 0 ? all.reverse() : all).filter((_, i) => i % Math.abs(step) === 0)
        })
        const y = slice(x, ranges)
        assert.equal(
          y.shape,
          places.map(({ length }) => length),
        )
        const values = x.data()
        check(
          y,
          tabulate(y.shape, (index) =>
            at(
              x,
              values,
              index.map((i, axis) => places[axis]![i]!),
            ),
          ),
        )
      })
    }),
  )
})

test('a slice may be empty, its bounds may count from the end, and the gradient of what it left is zero', () => {
  scope(() => {
    const x = counting([4, 3])
    assert.equal(slice(x, [[2, 2]]).shape, [0, 3])
    check(slice(x, [[-1], [0, -1]]), [9, 10])
    check(slice(x, [[3, 0, -2]]), [9, 10, 11, 3, 4, 5])
    const tape = new Tape().watch([x])
    const y = tape.record(() => slice(x, [undefined, [1, 2]]))
    check(tape.backward(y, [x])[0]!, [0, 1, 0, 0, 1, 0, 0, 1, 0, 0, 1, 0])
  })
})

test('the parts of a concatenation are found again by slices, along every axis', () => {
  const cases = fc.record({
    shape: fc.array(fc.integer({ min: 1, max: 4 }), { minLength: 1, maxLength: 4 }),
    sizes: fc.array(fc.integer({ min: 0, max: 4 }), { minLength: 1, maxLength: 4 }),
    axis: fc.nat(),
    dtype: dtypes,
  })
  fc.assert(
    fc.property(cases, ({ shape, sizes, axis, dtype }) => {
      scope(() => {
        const along = axis % shape.length
        const random = new Random(axis)
        const parts = sizes.map((size) => {
          const of = shape.with(along, size)
          return Tensor.from(
            Array.from({ length: sizeOf(of) }, () => random.below(100)),
            of,
            dtype,
          )
        })
        const y = concat(parts, along - shape.length)
        let first = 0
        for (const part of parts) {
          const next = first + part.shape[along]!
          const again = slice(y, [...shape.slice(0, along).map(() => undefined), [first, next]])
          assert.equal([again.shape, [...again.data()]], [part.shape, [...part.data()]])
          first = next
        }
        assert.is(first, y.shape[along])
      })
    }),
  )
})

test('stack puts tensors side by side along a new axis', () => {
  scope(() => {
    const [a, b] = [counting([2, 3]), Tensor.full([2, 3], 9)]
    check(stack([a, b]), [0, 1, 2, 3, 4, 5, 9, 9, 9, 9, 9, 9])
    check(stack([a, b], 1), [0, 1, 2, 9, 9, 9, 3, 4, 5, 9, 9, 9])
    check(stack([a, b], -1), [0, 9, 1, 9, 2, 9, 3, 9, 4, 9, 5, 9])
    assert.equal(stack([a, b], -1).shape, [2, 3, 2])
    const tape = new Tape().watch([a])
    const y = tape.record(() => stack([a, b, a], 1))
    const cotangent = counting(y.shape)
    // a is there twice: both parts of the cotangent are its gradient.
    check(tape.backward(y, [a], cotangent)[0]!, [6, 8, 10, 24, 26, 28])
  })
})

test('what pad added is the value, and a slice takes it off again', () => {
  const cases = fc
    .array(fc.tuple(fc.integer({ min: 1, max: 4 }), fc.integer({ min: 0, max: 3 }), fc.integer({ min: 0, max: 3 })), {
      minLength: 1,
      maxLength: 4,
    })
    .map((axes) => ({ shape: axes.map(([size]) => size), by: axes.map(([, before, after]): [number, number] => [before, after]) }))
  fc.assert(
    fc.property(cases, dtypes, ({ shape, by }, dtype) => {
      scope(() => {
        const x = counting(shape, dtype)
        const y = pad(x, by, 7)
        const values = x.data()
        check(
          y,
          tabulate(y.shape, (index) => {
            const place = index.map((i, axis) => i - by[axis]![0])
            return place.every((i, axis) => i >= 0 && i < shape[axis]!) ? at(x, values, place) : 7
          }),
        )
        const inner = slice(
          y,
          shape.map((size, axis) => [by[axis]![0], by[axis]![0] + size]),
        )
        assert.equal([...inner.data()], [...values])
      })
    }),
  )
})

test('gather picks what its index says along the axis, zeros for -1, with and without a batch', () => {
  fc.assert(
    fc.property(gathering, dtypes, ({ batch, before, rows, after, picks, batchAxes }, dtype) => {
      scope(() => {
        const x = counting([...batch, ...before, rows, ...after], dtype)
        const [axis, shared, random] = [batch.length + before.length, batch.slice(0, batchAxes), new Random(7)]
        const indexShape = [...shared, ...picks]
        const index = Tensor.from(
          Array.from({ length: sizeOf(indexShape) }, () => random.below(rows + 1) - 1),
          indexShape,
          'i32',
        )
        const y = gather(x, index, { axis: axis - x.shape.length, batchAxes })
        assert.equal(y.shape, [...batch, ...before, ...picks, ...after])
        const [values, chosen] = [x.data(), index.data()]
        check(
          y,
          tabulate(y.shape, (place) => {
            const [outer, inner] = [place.slice(0, axis), place.slice(axis + picks.length)]
            const picked = at(index, chosen, [...place.slice(0, batchAxes), ...place.slice(axis, axis + picks.length)])
            return picked < 0 ? 0 : at(x, values, [...outer, picked, ...inner])
          }),
        )
      })
    }),
  )
})

test('the gradient of gather adds what was picked twice and is zero where nothing was', () => {
  scope(() => {
    const x = counting([4, 2])
    const tape = new Tape().watch([x])
    const y = tape.record(() => gather(x, Tensor.from([3, 0, 3, -1], [4], 'i32')))
    check(tape.backward(y, [x], counting(y.shape))[0]!, [2, 3, 0, 0, 0, 0, 4, 6])
  })
})

test('the rows of oneHot hold a single 1, where the index says, and none for -1', () => {
  fc.assert(
    fc.property(
      fc.array(fc.integer({ min: -1, max: 9 }), { minLength: 1, maxLength: 20 }),
      fc.constantFrom('f32' as const, 'f64' as const),
      (indices, dtype) => {
        scope(() => {
          const y = oneHot(Tensor.from(indices, [1, indices.length], 'i32'), 10, dtype)
          assert.equal([y.shape, y.dtype], [[1, indices.length, 10], dtype])
          check(
            y,
            tabulate(y.shape, ([, row, column]) => Number(indices[row!] === column)),
          )
        })
      },
    ),
  )
})

test('broadcastTo repeats, expandDims and squeeze undo each other without a copy', () => {
  scope(() => {
    const x = counting([2, 1, 3])
    const y = broadcastTo(x, [2, 2, 2, 3])
    const values = x.data()
    check(
      y,
      tabulate(y.shape, ([, i, , k]) => at(x, values, [i!, 0, k!])),
    )
    const wide = expandDims(squeeze(x), -1)
    assert.equal(wide.shape, [2, 3, 1])
    assert.equal(squeeze(wide, 2).shape, [2, 3])
    check(squeeze(wide, -1), [...values])
  })
})

test('wrong arguments are named with their shapes', () => {
  scope(() => {
    const x = Tensor.zeros([2, 3])
    throwsError(() => permute(x, [0, 0]), 'ARGUMENT', /permute/, /f32\[2,3\]/, /\[0,0\]/)
    throwsError(() => permute(x, [0]), 'ARGUMENT', /order/)
    throwsError(() => permute(x, [0, 2]), 'ARGUMENT', /from -2 to 1/, /received 2/)
    throwsError(() => transpose(Tensor.zeros([3])), 'ARGUMENT', /transpose/, /f32\[3\]/)
    throwsError(() => slice(x, [[0, 3]]), 'RANGE', /slice/, /axis 0/, /f32\[2,3\]/, /0, 3, 1/)
    throwsError(() => slice(x, [undefined, [-4]]), 'RANGE', /axis 1/)
    throwsError(() => slice(x, [[0, 1, 0]]), 'ARGUMENT', /step of axis 0/)
    throwsError(() => slice(x, [[0], [0], [0]]), 'ARGUMENT', /at most 2 ranges/, /received 3/)
    throwsError(() => concat([x, Tensor.zeros([3, 3])]), 'SHAPE', /concat/, /x1 \[2,3\]/, /f32\[3,3\]/)
    throwsError(() => concat([x, Tensor.zeros([2, 3], 'f64')]), 'DTYPE', /x0 f32\[2,3\]/, /x1 f64\[2,3\]/)
    throwsError(() => concat([x], 2), 'ARGUMENT', /axis/, /received 2/)
    throwsError(() => stack([x, Tensor.zeros([2, 2])]), 'SHAPE', /stack/, /x1 \[2,3\]/, /f32\[2,2\]/)
    throwsError(() => stack([]), 'ARGUMENT', /stack/)
    throwsError(() => pad(x, [[1, 1]]), 'ARGUMENT', /pad/, /2 pairs/, /f32\[2,3\]/)
    throwsError(
      () =>
        pad(x, [
          [0, 0],
          [-1, 0],
        ]),
      'ARGUMENT',
      /padding/,
      /received -1/,
    )
    throwsError(() => broadcastTo(x, [2, 4]), 'SHAPE', /broadcastTo/, /f32\[2,3\]/, /\[2,4\]/)
    throwsError(() => broadcastTo(x, [3]), 'SHAPE', /\[3\]/)
    throwsError(() => squeeze(x, 0), 'SHAPE', /squeeze/, /axis 0/, /f32\[2,3\]/)
    throwsError(() => expandDims(x, 3), 'ARGUMENT', /expandDims/, /received 3/)
    const index = (values: number[], shape: Shape): Tensor => Tensor.from(values, shape, 'i32')
    throwsError(() => gather(x, Tensor.zeros([1])), 'DTYPE', /gather/, /index of dtype i32/)
    throwsError(() => gather(x, index([2], [1])), 'RANGE', /gather/, /index 2/, /2 rows/)
    throwsError(() => gather(x, index([-2], [1])), 'RANGE', /index -2/)
    throwsError(() => gather(x, index([0], [1]), { axis: 1, batchAxes: 1 }), 'SHAPE', /index \[2,\.\.\]/, /i32\[1\]/)
    throwsError(() => gather(x, index([0], [1]), { batchAxes: 1 }), 'ARGUMENT', /batchAxes/)
    throwsError(() => oneHot(index([5], [1]), 5), 'RANGE', /index 5/, /5 rows/)
    throwsError(() => oneHot(index([0], [1]), 0), 'ARGUMENT', /depth/)
  })
})

test('the native copy refuses places outside of its tensors', () => {
  scope(() => {
    const [x, y] = [Tensor.zeros([4]), Tensor.zeros([4])]
    const copy = (yOffset: number, xOffset: number, xStride: number): void =>
      runNative('copyStrided', { y, x }, { shape: [3], yOffset, yStrides: [1], xOffset, xStrides: [xStride] })
    copy(1, 0, 1)
    throwsError(() => copy(2, 0, 1), 'RANGE', /copyStrided/, /inside of y f32\[4\]/, /2 to 4/)
    throwsError(() => copy(0, 0, 2), 'RANGE', /inside of x f32\[4\]/, /0 to 4/)
    throwsError(() => copy(0, 1, -1), 'RANGE', /-1 to 1/)
  })
})

test('scatterAdd is the adjoint of gather, and counts what meets at a place', () => {
  fc.assert(
    fc.property(gathering, fc.nat(), ({ batch, before, rows, after, picks, batchAxes }, seed) => {
      scope(() => {
        const random = new Random(seed)
        const draw = (shape: Shape): Tensor =>
          Tensor.from(
            Float64Array.from({ length: sizeOf(shape) }, () => random.normal()),
            shape,
            'f64',
          )
        const [leading, own] = [
          [...batch, ...before],
          [...batch.slice(0, batchAxes), ...picks],
        ]
        const index = Tensor.from(
          Int32Array.from({ length: sizeOf(own) }, () => random.below(rows + 1) - 1),
          own,
          'i32',
        )
        const [x, y] = [draw([...leading, ...picks, ...after]), draw([...leading, rows, ...after])]
        const options = { axis: leading.length, batchAxes }
        const dot = (a: Tensor, b: Tensor): number => {
          assert.equal(a.shape, b.shape)
          const other = b.data()
          return Array.from(a.data()).reduce((sum, value, i) => sum + value * other[i]!, 0)
        }
        const [there, back] = [dot(scatterAdd(x, index, rows, options), y), dot(x, gather(y, index, options))]
        assert.ok(Math.abs(there - back) <= 1e-12 * (1 + x.size), `${there} ${back}`)
      })
    }),
  )
  scope(() => {
    const index = Tensor.from([2, 0, 2, 2], [4], 'i32')
    assert.equal([...scatterAdd(Tensor.full([4], 1), index, 4).data()], [1, 0, 3, 0])
    for (const [name, call] of Object.entries({
      axis: (value: number) => scatterAdd(Tensor.zeros([4, 4]), index, 4, { axis: value }),
      batchAxes: (value: number) => scatterAdd(Tensor.zeros([4, 4]), index, 4, { batchAxes: value }),
      size: (value: number) => scatterAdd(Tensor.zeros([4, 4]), index, value),
    }))
      for (const value of [-1, 0.5, NaN])
        throwsError(() => call(value), 'ARGUMENT', `scatterAdd: expected ${name} to be an integer of at least 0 but received ${value}`)
    assert.equal([...scatterAdd(Tensor.zeros([0, 2]), Tensor.zeros([0], 'i32'), 2).data()], [0, 0, 0, 0])
    throwsError(() => scatterAdd(Tensor.zeros([4]), index, 2), 'RANGE', /index 2 is outside of 2 rows/)
    throwsError(() => scatterAdd(Tensor.zeros([3]), index, 3), 'SHAPE', /scatterAdd: expected the axes of index i32\[4\] in x/)
    throwsError(() => scatterAdd(Tensor.zeros([4]), index, 0), 'SHAPE', /scatterAdd: expected a size of at least 1/)
    throwsError(() => scatterAdd(Tensor.zeros([4]), index, 4, { batchAxes: 1 }), 'ARGUMENT', /scatterAdd: expected batchAxes of at most 0/)
  })
})

test.run()
