/**
 * Every op on the device under test against the CPU in f64, from the same (rounded) inputs: values and gradients, in f32 and
 * bf16. On `simt` each tensor is poisoned when it is made and lies between guard bytes that are looked at after every op.
 */
import fc from 'fast-check'
import * as assert from 'uvu/assert'

import { Random } from '../../src/tensor/random.js'
import { catalogue, type OpName } from '../../src/ops/catalogue.js'
import { batchNorm } from '../../src/ops/batchNorm.js'
import { conv2dForNorm } from '../../src/ops/conv2d.js'
import { precisions, withCompute } from '../../src/tensor/compute.js'
import { native } from '../../src/tensor/native.js'
import { type FloatDType, scope, Tensor, withDevice } from '../../src/tensor/tensor.js'
import { checkAgreement, evaluate, roundedTo, seeds } from '../support/agreement.js'
import { device } from '../support/devices.js'
import { relativeDifference } from '../support/gradients.js'
import { suite } from '../support/suite.js'
import { opCases } from './cases/index.js'

const runs = Number(process.env.DENSECL_TEST_RUNS ?? 25)

const check = (name: OpName, parameters: fc.Arbitrary<unknown>, numRuns: number): void =>
  checkAgreement(device, name, parameters, numRuns, ['f32', 'bf16'])

for (const name of Object.keys(opCases) as OpName[]) {
  const test = suite(`${name} on ${device}`, device)
  test(`${name}: small shapes with every odd parameter`, () => check(name, opCases[name].parameters, runs))
  const { large } = opCases[name]
  if (large !== undefined) test(`${name}: shapes beyond a tile`, () => check(name, large, Math.ceil(runs / 3)))
  if (name === 'conv2d' || name === 'linear') {
    for (const tile of [1, 2, 3]) {
      for (const precision of precisions) {
        test(`${name}: tile ${tile}${precision === 'tf32' ? ' in tf32' : ''}`, () =>
          withCompute({ tile, precision }, () => check(name, large!, Math.ceil(runs / 6))))
      }
    }
  }
  test.run()
}

const test = suite(`properties on ${device}`, device)

test('batch norm from the statistics of the convolution is batch norm from a pass of its own, in groups too', () => {
  const shapes = fc.record({
    n: fc.integer({ min: 1, max: 3 }),
    size: fc.integer({ min: 1, max: 13 }),
    c: fc.constantFrom(3, 8),
    o: fc.constantFrom(5, 64, 72, 136),
    groups: fc.integer({ min: 1, max: 2 }),
    shift: fc.constantFrom(0, 300),
  })
  fc.assert(
    fc.property(shapes, seeds, fc.constantFrom<FloatDType>('f32', 'bf16'), ({ n, size, c, o, groups, shift }, seed, dtype) => {
      // Enough values that their deviation is of order 1: two may lie so near each other that their own rounding shows.
      fc.pre(n * size * size >= 16)
      scope(() =>
        withDevice(device, () => {
          const random = new Random(seed)
          const draw = (shape: number[], offset = 0): Tensor =>
            Tensor.from(
              Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, () => offset + random.normal()),
              shape,
              dtype,
            )
          // A mean far from 0: squares would cancel.
          const [x, weight] = [draw([n * groups, size, size, c], shift), draw([o, 1, 1, c])]
          const normalise = (y: Tensor, statistics: Tensor | undefined): [ArrayLike<number>, ArrayLike<number>] => {
            const vector = (value: number): Tensor => Tensor.full([o], value)
            const running = vector(0)
            const z = batchNorm(y, vector(1), vector(0), running, vector(1), { train: true, groups, statistics })
            return [z.data(), running.data()]
          }
          const { y, statistics } = conv2dForNorm(x, weight, {}, groups)
          assert.is(statistics !== undefined, groups === 1 || (n * size * size) % 64 === 0)
          const [fused, apart] = [normalise(y, statistics), normalise(y, undefined)]
          // y itself is rounded at |mean| * 2^-24, and its deviations are of order 1; bf16 rounds the result.
          const bound = 1e-4 + (shift + 1) * 2 ** -20 + (dtype === 'bf16' ? 2 ** -7 : 0)
          assert.ok(relativeDifference(fused[0], apart[0]) < bound, `values ${relativeDifference(fused[0], apart[0])}`)
          assert.ok(relativeDifference(fused[1], apart[1]) < 1e-5)
        }),
      )
    }),
    { numRuns: runs },
  )
})

test('batch norm finishes the statistics of many chunks, whose means drift, as a pass over the values would', () => {
  // Beyond 1,024 chunks a group they are added in parts; five groups share the lines of a block unevenly.
  for (const { rows, groups } of [
    { rows: 64 * 1100 + 13, groups: 1 },
    { rows: 64 * 1100, groups: 2 },
    { rows: 5 * 64 * 210, groups: 5 },
    { rows: 33 * 64, groups: 33 },
    { rows: 40, groups: 1 },
  ]) {
    scope(() => {
      const [c, random, per] = [3, new Random(rows), rows / groups]
      const values = Float32Array.from({ length: rows * c }, (_, i) => 100 + 40 * Math.sin(i / rows) + random.normal())
      const [mean, variance] = [new Float64Array(c), new Float64Array(c)]
      for (let k = 0; k < c; ++k)
        for (let g = 0; g < groups; ++g) {
          const column = Array.from({ length: per }, (_, r) => values[(g * per + r) * c + k]!)
          const own = column.reduce((sum, value) => sum + value, 0) / per
          mean[k]! += own / groups
          variance[k]! += column.reduce((sum, value) => sum + (value - own) ** 2, 0) / (per - 1) / groups
        }
      // Of each 64 rows, as the epilogue of a convolution leaves them.
      const statistics = Float32Array.from({ length: Math.ceil(rows / 64) * 2 * c })
      for (let chunk = 0; chunk < statistics.length / 2 / c; ++chunk)
        for (let k = 0; k < c; ++k) {
          const column = Array.from({ length: Math.min(64, rows - chunk * 64) }, (_, r) => values[(chunk * 64 + r) * c + k]!)
          const own = column.reduce((sum, value) => sum + value, 0) / column.length
          statistics[chunk * 2 * c + k] = own
          statistics[(chunk * 2 + 1) * c + k] = column.reduce((sum, value) => sum + (value - own) ** 2, 0)
        }
      withDevice(device, () => {
        const [running, variances] = [Tensor.full([c], 0), Tensor.full([c], 0)]
        const x = Tensor.from(values, [groups, per, 1, c])
        for (const given of [Tensor.from(statistics, [statistics.length / 2 / c, 2, c]), undefined]) {
          batchNorm(x, Tensor.full([c], 1), Tensor.full([c], 0), running, variances, {
            train: true,
            groups,
            statistics: given,
            momentum: 1,
          })
          assert.ok(
            relativeDifference(running.data(), mean) < 1e-6,
            `${rows} rows in ${groups} groups: means differ by ${relativeDifference(running.data(), mean)}`,
          )
          assert.ok(
            relativeDifference(variances.data(), variance) < 1e-5,
            `${rows} rows in ${groups} groups: variances differ by ${relativeDifference(variances.data(), variance)}`,
          )
        }
      })
    })
  }
})

if (native.simtShuffle !== undefined) {
  test('the same bits in every order of threads', () => {
    try {
      for (const name of Object.keys(opCases) as OpName[]) {
        const opCase = opCases[name]
        fc.assert(
          fc.property(opCase.large ?? opCase.parameters, seeds, fc.constantFrom<FloatDType>('f32', 'bf16'), (p, seed, dtype) => {
            const run = (shuffle: number): ArrayLike<number>[] =>
              scope(() => {
                native.simtShuffle!(shuffle)
                const inputs = opCase
                  .inputs(p, new Random(seed))
                  .map((input, i) => roundedTo(input, opCase.sums?.includes(i) === true ? 'f32' : dtype))
                  .map((input) => input.to(input.dtype, device))
                const differentiable = catalogue[name].backward === 'notDifferentiable' ? 0 : (opCase.differentiable ?? inputs.length)
                return withDevice(device, () =>
                  evaluate(opCase, p, inputs, differentiable, (y) => Float32Array.from({ length: y.size }, (_, i) => Math.sin(i))),
                )
              })
            const first = run(1)
            for (const shuffle of [2, 3]) assert.equal(run(shuffle), first)
          }),
          { numRuns: 2 },
        )
      }
    } finally {
      native.simtShuffle!(Number(process.env.DENSECL_SIMT_SHUFFLE ?? 0))
    }
  })
}

test.run()
