/** Elementwise ops and reductions against plain JavaScript, which knows nothing of strides, vectors or polynomials. */
import fc from 'fast-check'
import * as assert from 'uvu/assert'

import { Tape } from '../../src/autograd/tape.js'
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
  neg,
  notEqual,
  pow,
  sub,
  where,
} from '../../src/ops/arithmetic.js'
import { max, mean, sum, variance } from '../../src/ops/reduce.js'
import { abs, exp, gelu, log, reciprocal, sigmoid, silu, sqrt, square, tanh } from '../../src/ops/unary.js'
import { Random } from '../../src/tensor/random.js'
import { scope, sizeOf, Tensor } from '../../src/tensor/tensor.js'
import { randomTensor } from '../support/gradients.js'
import { suite, throwsError } from '../support/suite.js'
import { broadcast, operandShape } from './cases/arithmetic.js'

const test = suite('arithmetic')
const seeds = fc.integer({ min: 0, max: 2 ** 30 })

/** The place in a tensor of `shape` of the element at `index` of what it broadcasts to. */
function placeOf(shape: readonly number[], index: readonly number[]): number {
  const own = index.slice(index.length - shape.length)
  return shape.reduce((place, d, axis) => place * d + (d === 1 ? 0 : own[axis]!), 0)
}

function indicesOf(shape: readonly number[]): number[][] {
  return shape.reduce<number[][]>((all, d) => all.flatMap((index) => Array.from({ length: d }, (_, i) => [...index, i])), [[]])
}

const bits = (value: boolean): number => Number(value)
const binaries: Record<string, [(a: Tensor, b: Tensor) => Tensor, (a: number, b: number) => number]> = {
  add: [add, (a, b) => a + b],
  sub: [sub, (a, b) => a - b],
  mul: [mul, (a, b) => a * b],
  div: [div, (a, b) => a / b],
  pow: [pow, (a, b) => a ** b],
  maximum: [maximum, Math.max],
  minimum: [minimum, Math.min],
  equal: [equal, (a, b) => bits(a === b)],
  notEqual: [notEqual, (a, b) => bits(a !== b)],
  less: [less, (a, b) => bits(a < b)],
  lessEqual: [lessEqual, (a, b) => bits(a <= b)],
  greater: [greater, (a, b) => bits(a > b)],
  greaterEqual: [greaterEqual, (a, b) => bits(a >= b)],
}

test('binary ops and where broadcast as NumPy does: every element is that of plain loops', () => {
  for (const [name, [op, value]] of Object.entries(binaries)) {
    fc.assert(
      fc.property(broadcast, seeds, (p, seed) => {
        scope(() => {
          const random = new Random(seed)
          const draw = (k: number): Tensor => {
            const shape = operandShape(p, k)
            return Tensor.from(
              Float64Array.from({ length: sizeOf(shape) }, () => Math.round(4 * random.normal()) / 4),
              shape,
              'f64',
            )
          }
          const [a, b, condition] = [draw(0), draw(1), draw(2)]
          const y = op(a, b)
          const indices = indicesOf(y.shape)
          assert.is(y.size, indices.length)
          const [x, z, chosen] = [a.data(), b.data(), condition.data()]
          // -0 is 0 here.
          const close = (actual: number, expected: number): boolean =>
            Object.is(actual + 0, expected + 0) || Math.abs(actual - expected) <= 1e-14 * Math.abs(expected)
          const values = y.data()
          indices.forEach((index, i) => {
            const expected = value(x[placeOf(a.shape, index)]!, z[placeOf(b.shape, index)]!)
            assert.ok(close(values[i]!, expected), `${name} at ${index.join()}: ${values[i]} instead of ${expected}`)
          })
          const picked = where(greater(condition, 0), a, b)
          const all = picked.data()
          indicesOf(picked.shape).forEach((index, i) => {
            const of = chosen[placeOf(condition.shape, index)]! > 0 ? x[placeOf(a.shape, index)] : z[placeOf(b.shape, index)]
            assert.is(all[i]! + 0, of! + 0)
          })
        })
      }),
      { numRuns: 25 },
    )
  }
})

test('many rows of few elements: of operands that are whole, a row, a column, or a number, every element is that of plain loops', () => {
  const kinds = ['whole', 'row', 'column', 'number'] as const
  const kind = fc.constantFrom(...kinds)
  const rows = fc.oneof(fc.integer({ min: 1, max: 80 }), fc.integer({ min: 500, max: 2200 }))
  fc.assert(
    fc.property(rows, fc.integer({ min: 1, max: 70 }), kind, kind, fc.boolean(), (count, width, kindA, kindB, planes) => {
      scope(() => {
        const draw = (kind: (typeof kinds)[number], phase: number): { tensor: Tensor; at: (row: number, column: number) => number } => {
          const [r, c] = [kind === 'row' || kind === 'number' ? 1 : count, kind === 'column' || kind === 'number' ? 1 : width]
          const values = Float64Array.from({ length: r * c }, (_, i) => Math.round(50 * Math.sin(i + phase)))
          // Of two planes the operand is repeated for the second.
          return {
            tensor: Tensor.from(values, [1, r, c], 'f64'),
            at: (row, column) => values[(r === 1 ? 0 : row) * c + (c === 1 ? 0 : column)]!,
          }
        }
        const [a, b, one] = [draw(kindA, 0), draw(kindB, 9), Tensor.zeros([planes ? 2 : 1, 1, 1], 'f64')]
        const [x, z] = [add(a.tensor, one), b.tensor]
        const [difference, smaller] = [sub(x, z), less(x, z)]
        const shape = difference.shape
        const [values, truth] = [difference.data(), smaller.data()]
        indicesOf(shape).forEach(([, row, column], i) => {
          const [p, q] = [a.at(row!, column!), b.at(row!, column!)]
          assert.is(values[i]! + 0, p - q + 0, `${shape.join('x')} at ${row},${column}`)
          assert.is(truth[i], bits(p < q))
        })
      })
    }),
    { numRuns: 40 },
  )
})

test('shapes that do not broadcast and dtypes that differ are named, both of them', () => {
  scope(() => {
    const [a, b] = [Tensor.zeros([2, 3]), Tensor.zeros([4])]
    throwsError(() => add(a, b), 'SHAPE', 'add: expected shapes that broadcast but received a f32[2,3] and b f32[4]')
    throwsError(() => less(a, b), 'SHAPE', 'less: expected shapes that broadcast but received a f32[2,3] and b f32[4]')
    throwsError(() => where(Tensor.zeros([5], 'u8'), a, a), 'SHAPE', /where: .*condition u8\[5\] and a f32\[2,3\]/)
    throwsError(() => mul(a, Tensor.zeros([3], 'f64')), 'DTYPE', /mul: expected one dtype but received a f32\[2,3\] and b f64\[3\]/)
    throwsError(() => exp(Tensor.zeros([3], 'i32')), 'DTYPE', /exp: expected x of dtype f32, f64 or bf16 but received i32\[3\]/)
    throwsError(() => add(1, 2), 'ARGUMENT', /add: expected at least one tensor/)
    throwsError(
      () => less(Tensor.zeros([3], 'i32'), 0.5),
      'ARGUMENT',
      /less: expected b to be an integer .* as i32 holds, but received 0.5/,
    )
    throwsError(() => less(Tensor.zeros([3], 'u8'), 300), 'ARGUMENT', /less: expected b to be an integer from 0 to 255.*300/)
    throwsError(() => where(Tensor.zeros([3], 'u8'), Tensor.zeros([3], 'i32'), 3e9), 'ARGUMENT', /where: expected b .*3000000000/)
    throwsError(() => Tensor.full([2], -1, 'u8'), 'ARGUMENT', /expected value to be an integer from 0 to 255/)
    for (const wrong of [undefined, null, '1', [1]])
      throwsError(() => add(a, wrong as unknown as Tensor), 'ARGUMENT', /add: expected b to be a tensor or a number but received/)
    throwsError(() => sum(a, { axes: 2 }), 'ARGUMENT', /sum: expected an axis of x f32\[2,3\], from -2 to 1, but received 2/)
    throwsError(() => sum(a, { axes: [0, -2] }), 'ARGUMENT', /sum: expected each axis once but received \[0,-2\]/)
    throwsError(() => max(Tensor.zeros([2, 0]), { axes: 1 }), 'SHAPE', /max: expected at least one element/)
  })
})

test('a number stands for a tensor of one value and leaves nothing behind', () => {
  scope(() => {
    const x = Tensor.from([1, -2, 4], [3])
    assert.equal([...add(x, 1).data()], [2, -1, 5])
    assert.equal([...sub(1, x).data()], [0, 3, -3])
    assert.equal([...mul(x, 3).data()], [3, -6, 12])
    assert.equal([...mul(3, x).data()], [3, -6, 12])
    assert.equal([...div(8, x).data()], [8, -4, 2])
    assert.equal([...neg(x).data()], [-1, 2, -4])
    assert.equal([...pow(x, 2).data()], [1, 4, 16])
    assert.equal([...where(greater(x, 0), x, 0).data()], [1, 0, 4])
    assert.equal([...equal(Tensor.from([1, 2, 3], [3], 'i32'), 2).data()], [0, 1, 0])
  })
})

test('gradients where they are a convention: ties are shared, powers of 0, |0|', () => {
  const gradients = (op: (a: Tensor, b: Tensor) => Tensor, a: number[], b: number[]): number[][] =>
    scope(() => {
      const inputs = [Tensor.from(a, [a.length]), Tensor.from(b, [b.length])] as const
      const tape = new Tape().watch(inputs)
      const y = tape.record(() => op(...inputs))
      return tape.backward(y, inputs).map((gradient) => [...gradient.data()])
    })
  assert.equal(gradients(maximum, [1, 2, 3], [2, 2, 2]), [
    [0, 0.5, 1],
    [1, 0.5, 0],
  ])
  assert.equal(gradients(minimum, [1, 2, 3], [2, 2, 2]), [
    [1, 0.5, 0],
    [0, 0.5, 1],
  ])
  assert.equal(gradients(pow, [0, 0, 3], [0, 2, 0]), [
    [0, 0, 0],
    [0, 0, Math.fround(Math.log(3))],
  ])
  assert.equal(gradients((a, b) => mul(abs(a), b), [0, -2, 2], [1, 1, 1])[0], [0, -1, 1])
  assert.equal(gradients((a, b) => mul(max(a), sum(b)), [3, 1, 3, 2], [1])[0], [0.5, 0, 0.5, 0])
  // One tensor as both operands.
  scope(() => {
    const x = Tensor.from([3, -1], [2])
    const tape = new Tape().watch([x])
    const y = tape.record(() => mul(x, x))
    assert.equal([...tape.backward(y, [x])[0]!.data()], [6, -2])
  })
})

// erf by its series, in double: of plain JavaScript.
function erf(x: number): number {
  if (Math.abs(x) > 5) return Math.sign(x)
  let [term, total] = [x, x]
  for (let n = 1; n < 200; ++n) {
    term *= (-x * x) / n
    total += term / (2 * n + 1)
  }
  return (2 / Math.sqrt(Math.PI)) * total
}
const functions: Record<string, [(x: Tensor) => Tensor, (x: number) => number]> = {
  exp: [exp, Math.exp],
  log: [log, Math.log],
  sqrt: [sqrt, Math.sqrt],
  abs: [abs, Math.abs],
  square: [square, (x) => x * x],
  reciprocal: [reciprocal, (x) => 1 / x],
  sigmoid: [sigmoid, (x) => 1 / (1 + Math.exp(-x))],
  tanh: [tanh, Math.tanh],
  silu: [silu, (x) => x / (1 + Math.exp(-x))],
  gelu: [gelu, (x) => 0.5 * x * (1 + erf(x / Math.SQRT2))],
}

test('functions of f32 err by a few units in the last place, over all magnitudes', () => {
  const random = new Random(5)
  const draws = Float32Array.from({ length: 20000 }, (_, i) =>
    i % 2 === 0 ? random.normal() * 4 : (i % 4 === 1 ? 1 : -1) * 2 ** (random.uniform() * 250 - 125),
  )
  scope(() => {
    const x = Tensor.from(draws, [draws.length])
    for (const [name, [op, value]] of Object.entries(functions)) {
      const y = op(x).data()
      draws.forEach((v, i) => {
        const expected = value(v)
        if (Number.isNaN(expected) || Math.abs(expected) > 3.4028235e38)
          return assert.ok(Object.is(y[i], Math.fround(expected)), `${name}(${v}) is ${y[i]}`)
        // The series of erf cancels below -3: there the tail is looked at below.
        const cancels = name === 'gelu' && v < -3
        // The argument of the exponential in the tails is rounded: its error grows with it.
        const bound =
          (name === 'gelu' ? 8 + v * v : 4) * 2 ** -24 * Math.abs(expected) * (1 + (name === 'exp' ? 0 : Math.min(Math.abs(v), 90) / 4)) +
          1e-36 +
          (cancels ? 1e-6 : 0)
        assert.ok(Math.abs(y[i]! - expected) <= bound, `${name}(${v}) is ${y[i]} instead of ${expected}`)
      })
    }
  })
})

test('values at the ends: infinities, NaN, zeros, the smallest numbers', () => {
  const at = (op: (x: Tensor) => Tensor, ...xs: number[]): number[] => scope(() => [...op(Tensor.from(xs, [xs.length])).data()])
  const f = Math.fround
  for (const op of [exp, log, sqrt, abs, square, reciprocal, sigmoid, tanh, silu, gelu]) assert.ok(Number.isNaN(at(op, NaN)[0]!))
  assert.equal(at(exp, -Infinity, -200, 0, 88.7, 89, Infinity), [0, 0, 1, at(exp, 88.7)[0], Infinity, Infinity])
  assert.ok(Math.abs(at(exp, 88.7)[0]! / Math.exp(f(88.7)) - 1) < 1e-6)
  // A subnormal result.
  assert.ok(Math.abs(at(exp, -95)[0]! - Math.exp(-95)) < 2e-45)
  assert.equal(at(log, 0, 1, Infinity), [-Infinity, 0, Infinity])
  assert.ok(at(log, -1, -Infinity).every(Number.isNaN))
  assert.ok(Math.abs(at(log, 1e-40)[0]! - Math.log(f(1e-40))) < 1e-5)
  assert.equal(at(sigmoid, -Infinity, -200, 0, 200, Infinity), [0, 0, 0.5, 1, 1])
  assert.equal(at(tanh, -Infinity, -20, 0, 20, Infinity), [-1, -1, 0, 1, 1])
  assert.equal(at(gelu, -40, 0, 40), [-0, 0, 40])
  // The tail, by its asymptotic series: x Phi(x) = -phi(x) (1 - 1/x^2 + 3/x^4 - 15/x^6 + 105/x^8).
  for (const x of [-6, -8, -10]) {
    const series = 1 - x ** -2 + 3 * x ** -4 - 15 * x ** -6 + 105 * x ** -8
    assert.ok(Math.abs(at(gelu, x)[0]! / ((-series * Math.exp((-x * x) / 2)) / Math.sqrt(2 * Math.PI)) - 1) < 1e-3, `gelu(${x})`)
  }
})

test('powers of f32: a few units in the last place over all magnitudes, signs of odd powers, and the ends', () => {
  const random = new Random(6)
  const bases = Float32Array.from({ length: 20000 }, () => 2 ** (random.uniform() * 60 - 30))
  const exponents = Float32Array.from({ length: 20000 }, () => 4 * random.normal())
  const ends: [number, number, number][] = [
    [Infinity, 0, 1],
    [0, 0, 1],
    [0, -1, Infinity],
    [0, 2, 0],
    [-2, 3, -8],
    [-2, 2, 4],
    [-2, -1, -0.5],
    [-2, 0.5, NaN],
    [-2, 16777217, Infinity],
    [Infinity, -1, 0],
    [2, Infinity, Infinity],
    [0.5, Infinity, 0],
    [2, -Infinity, 0],
    [NaN, 2, NaN],
    [2, NaN, NaN],
    [2, 127.5, Math.fround(2 ** 127.5)],
    [2, 128, Infinity],
    [2, -151, 0],
    [-0, -1, -Infinity],
    [-0, 0.5, 0],
    [-Infinity, 0.5, Infinity],
    [-Infinity, 3, -Infinity],
    [NaN, 0, 1],
    [1, NaN, 1],
    [1, -Infinity, 1],
    [-1, Infinity, 1],
    [-1, NaN, NaN],
  ]
  scope(() => {
    const [a, b] = [Tensor.from(bases, [bases.length]), Tensor.from(exponents, [exponents.length])]
    pow(a, b)
      .data()
      .forEach((value, i) => {
        const expected = bases[i]! ** exponents[i]!
        if (expected > 3.4028235e38) assert.is(value, Infinity)
        else assert.ok(Math.abs(value - expected) <= 1.5 * 2 ** -24 * expected + 1e-44, `${bases[i]} ** ${exponents[i]} is ${value}`)
      })
    // A scalar on either side has loops of its own.
    for (const [x, y, expected] of ends)
      for (const [p, q] of [
        [
          [x, x],
          [y, y],
        ],
        [[x], [y, y]],
        [[x, x], [y]],
      ] as const) {
        const [value] = pow(Tensor.from(p, [p.length]), Tensor.from(q, [q.length])).data()
        assert.ok(value === expected || (Number.isNaN(value) && Number.isNaN(expected)), `${x} ** ${y} is ${value}`)
      }
  })
})

test('reductions over any axes are those of plain loops, with and without the reduced axes', () => {
  const shapes = fc.array(fc.integer({ min: 0, max: 6 }), { maxLength: 4 })
  fc.assert(
    fc.property(shapes, fc.array(fc.boolean(), { minLength: 4, maxLength: 4 }), fc.boolean(), seeds, (shape, reduced, keepDims, seed) => {
      scope(() => {
        const x = randomTensor(new Random(seed), shape)
        const axes = shape.map((_, axis) => axis).filter((axis) => reduced[axis])
        const groups = new Map<number, number[]>()
        const kept = shape.map((d, axis) => (axes.includes(axis) ? 1 : d))
        for (let i = 0; i < sizeOf(kept); ++i) groups.set(i, [])
        const values = x.data()
        indicesOf(shape).forEach((index, i) => groups.get(placeOf(kept, index))!.push(values[i]!))
        const total = (list: number[]): number => list.reduce((s, v) => s + v, 0)
        const negated = axes.map((axis) => axis - shape.length)
        const expectedShape = keepDims ? kept : shape.filter((_, axis) => !axes.includes(axis))
        const check = (y: Tensor, expected: (list: number[]) => number): void => {
          assert.equal(y.shape, expectedShape)
          y.data().forEach((v, i) => {
            const e = expected(groups.get(i)!)
            assert.ok((Number.isNaN(v) && Number.isNaN(e)) || Math.abs(v - e) <= 1e-12, `${v} instead of ${e}`)
          })
        }
        check(sum(x, { axes, keepDims }), total)
        check(sum(x, { axes: negated, keepDims }), total)
        check(mean(x, { axes, keepDims }), (list) => total(list) / list.length)
        check(variance(x, { axes, keepDims }), (list) => total(list.map((v) => (v - total(list) / list.length) ** 2)) / list.length)
        if (x.size > 0) check(max(x, { axes, keepDims }), (list) => Math.max(...list))
      })
    }),
    { numRuns: 150 },
  )
})

test('long sums of f32 are as good as their rounding: lines, rows, and both', () => {
  for (const [shape, axes] of [
    [[3_000_000], 0],
    [[400_000, 7], 0],
    [[7, 400_000], 1],
    [
      [100, 3, 9_000],
      [0, 2],
    ],
    [
      [9_000, 3, 100],
      [0, 2],
    ],
  ] as const)
    scope(() => {
      const random = new Random(1)
      // Without a sign: nothing cancels, and an accumulator that grows loses the last bits of what it is given.
      const values = Float32Array.from({ length: sizeOf(shape) }, () => random.uniform())
      const x = Tensor.from(values, shape)
      const [single, double] = [sum(x, { axes }).data(), sum(x.to('f64'), { axes }).data()]
      single.forEach((v, i) => assert.ok(Math.abs(v / double[i]! - 1) < 1e-6, `${shape.join('x')}: ${v} instead of ${double[i]}`))
      const largest = values.reduce((m, v) => Math.max(m, v), 0)
      assert.is(max(x).item(), largest)
    })
})

test('the variance of values far from 0 does not cancel, and is unbiased with correction 1', () => {
  scope(() => {
    const random = new Random(3)
    const x = Tensor.from(
      Float32Array.from({ length: 1000 }, () => 10_000 + random.normal()),
      [1000],
    )
    const values = [...x.data()]
    const average = values.reduce((s, v) => s + v, 0) / 1000
    const squares = values.reduce((s, v) => s + (v - average) ** 2, 0)
    assert.ok(Math.abs(variance(x).item() / (squares / 1000) - 1) < 1e-5)
    assert.ok(Math.abs(variance(x, { correction: 1 }).item() / (squares / 999) - 1) < 1e-5)
    // More is taken off than there are elements: a division by 0, as in PyTorch, and no negative variance.
    assert.is(variance(x, { correction: 1001 }).item(), Infinity)
    throwsError(() => variance(x, { correction: NaN }), 'ARGUMENT', /variance/, /correction/, /NaN/)
  })
})

test.run()
