/** The tables of tiles: what they hold, how a shape finds its entry, and the model that fills them without a GPU. */
import { readdirSync, readFileSync } from 'node:fs'
import { dirname } from 'node:path'

import fc from 'fast-check'
import * as assert from 'uvu/assert'

import { convolutionCases } from '../../src/bench/cases/conv2d.js'
import { architectures, predict, tiles, tilesFor } from '../../src/bench/model.js'
import {
  candidateSplits,
  candidateTiles,
  type ConvolutionShape,
  directions,
  indexed,
  nearestTile,
  type Product,
  productOf,
  type ProductOp,
  pointwiseWindows,
  shapeOfCall,
  tunedTile,
  tuningFile,
  type TuningTable,
  withKernels,
} from '../../src/ops/tuning.js'
import { suite } from '../support/suite.js'

const test = suite('tuning')
const product: fc.Arbitrary<Product> = fc.record({
  direction: fc.constantFrom(...directions),
  rows: fc.integer({ min: 1, max: 1e6 }),
  columns: fc.integer({ min: 1, max: 4096 }),
  depth: fc.integer({ min: 1, max: 1e5 }),
})

test('a shape finds the entry of its columns and depth with the nearest rows, within a factor of four', () => {
  fc.assert(
    fc.property(
      product,
      fc.array(fc.record({ rows: fc.integer({ min: 1, max: 1e6 }), tile: fc.integer({ min: 1, max: 6 }) }), { maxLength: 6 }),
      (wanted, rows) => {
        const others = { ...wanted, depth: wanted.depth + 1, tile: 5 }
        const index = indexed({ architecture: 'x', date: '', how: '', entries: [...rows.map((row) => ({ ...wanted, ...row })), others] })
        const found = nearestTile(index, wanted)
        const distance = (r: number): number => Math.abs(Math.log(r / wanted.rows))
        const near = rows.filter((row) => distance(row.rows) <= Math.log(4))
        if (near.length === 0) assert.is(found, 0)
        else assert.ok(near.some((row) => row.tile === found && near.every((other) => distance(row.rows) <= distance(other.rows))))
      },
    ),
  )
  assert.is(tunedTile('cpu', { direction: 'forward', rows: 1, columns: 1, depth: 1 }), 0)
})

const convolution: fc.Arbitrary<ConvolutionShape> = fc
  .record({
    direction: fc.constantFrom(...directions),
    n: fc.integer({ min: 1, max: 300 }),
    side: fc.integer({ min: 7, max: 60 }),
    c: fc.integer({ min: 1, max: 20 }),
    o: fc.integer({ min: 1, max: 20 }),
    kernel: fc.constantFrom(1, 3),
    stride: fc.constantFrom(1, 2),
    dtype: fc.constantFrom('bf16' as const, 'f32' as const),
  })
  .map(({ direction, n, side, c, o, kernel, stride, dtype }) => ({
    direction,
    input: [n, side, side, 32 * c],
    weight: [32 * o, kernel, kernel, 32 * c],
    numbers: {
      ...{ strideH: stride, strideW: stride, paddingH: kernel >> 1, paddingW: kernel >> 1, dilationH: 1, dilationW: 1 },
      ...{ tile: 0, tf32: false },
    },
    dtype,
  }))

test('the products of a call are those that the tables are made for', () => {
  for (const { name, call, product: expected } of convolutionCases(32))
    assert.equal(productOf(shapeOfCall(call.op as ProductOp, call.tensors, call.numbers)), expected, name)
})

test('kernels of Hopper are candidates for whole slices where the device has them, splits of 16 slices or more', () => {
  fc.assert(
    fc.property(convolution, fc.boolean(), fc.boolean(), fc.integer({ min: 1, max: 132 }), (shape, prologue, hopper, multiprocessors) => {
      const found = candidateTiles(shape, prologue, hopper, [6, 7])
      const [c, o] = [shape.input[3]!, shape.weight[0]!]
      assert.equal(
        found.filter((tile) => tile <= 3),
        shape.dtype === 'bf16' ? [1, 2, 3] : [],
      )
      assert.is(
        found.includes(4),
        hopper && shape.dtype === 'bf16' && (shape.direction === 'backward input' ? o % 64 === 0 && !prologue : c % 64 === 0),
      )
      assert.is(found.includes(5), found.includes(4))
      // A tile of 256 channels where two of 128 would have no half of one to spare.
      const channels = shape.direction === 'backward input' ? c : o
      assert.is(found.includes(6), found.includes(4) && Math.floor((channels + 127) / 128) % 2 === 0)
      assert.is(found.includes(7), found.includes(4) && shape.direction === 'forward' && o % 8 === 0)
      for (const untimed of [[], [6], [7]])
        assert.equal(
          candidateTiles(shape, prologue, hopper, untimed),
          found.filter((tile) => tile < 6 || untimed.includes(tile)),
        )
      for (const tile of [0, ...found]) {
        const splits = candidateSplits(shape, tile, multiprocessors)
        assert.is(splits.length > 0, shape.direction === 'backward weight')
        assert.is(new Set(splits).size, splits.length)
        for (const count of splits)
          assert.ok(
            count >= 1 && (count === 1 || productOf(shape).depth / count >= 16 * (tile > 3 ? 64 : shape.dtype === 'bf16' ? 32 : 16)),
            `${count} splits`,
          )
      }
    }),
  )
})

test('where the sum is long enough, splits of a weight gradient give one to four tiles to each multiprocessor', () => {
  // By tile the rows and columns of a block in a weight gradient: Hopper's lie on their side.
  const blocks = { 1: [128, 128], 2: [128, 64], 3: [64, 64], 4: [128, 128], 5: [64, 128], 6: [256, 128] }
  const multiprocessors = 12
  for (const [tile, [m, n]] of Object.entries(blocks) as unknown as [string, [number, number]][])
    for (const [down, across] of [
      [1, 1],
      [2, 3],
    ] as const) {
      const [o, c] = [m * down, n * across]
      const shape = { input: [256, 64, 64, c], weight: [o, 1, 1, c], numbers: { ...pointwiseWindows, tile: 0, tf32: false } }
      const splits = candidateSplits({ ...shape, direction: 'backward weight', dtype: 'bf16' }, Number(tile), multiprocessors)
      assert.equal(
        splits,
        [1, 2, 3, 4].map((each) => (each * multiprocessors) / (down * across)),
        `${tile} ${down}x${across}`,
      )
    }
})

test('the numbers of a call with kernels: only the tile changes, and the splits of a weight gradient', () => {
  const numbers = { ...pointwiseWindows, tile: 0, tf32: false }
  assert.equal(withKernels(numbers, { tile: 4, splits: 9 }), { ...numbers, tile: 4 })
  assert.equal(withKernels({ ...numbers, relu: true, splits: 7 }, { tile: 4, splits: 9 }), { ...numbers, relu: true, tile: 4, splits: 9 })
})

test('each table covers ResNet-50 with tiles that its architecture has, and says how and when it was made', () => {
  const files = readdirSync(dirname(tuningFile('x')))
  assert.ok(files.length >= 4)
  for (const file of files) {
    const table = JSON.parse(readFileSync(tuningFile(file.replace('.json', '')), 'utf8')) as TuningTable
    const architecture = architectures[table.architecture]!
    assert.match(table.date, /^\d{4}-\d\d-\d\d$/)
    assert.ok(table.how.length > 0)
    const index = indexed(table)
    for (const { product: shape, wholeSlices } of convolutionCases(256)) {
      const tile = nearestTile(index, shape)
      assert.ok(
        tilesFor(architecture, wholeSlices).some(({ id }) => id === tile),
        `${file}: ${JSON.stringify(shape)} has tile ${tile}`,
      )
    }
  }
})

test('the model never predicts less than the floor, and more work never takes less time', () => {
  fc.assert(
    fc.property(
      product,
      fc.constantFrom(...Object.values(architectures)),
      fc.constantFrom(...tiles),
      fc.integer({ min: 1, max: 1e9 }),
      (shape, architecture, tile, bytes) => {
        const { microseconds, memory } = predict(architecture, shape, tile, bytes)
        const operations = (2 * shape.rows * shape.columns * shape.depth) / architecture.teraflops / 1e6
        assert.ok(microseconds >= Math.max(memory, bytes / architecture.gigabytesPerSecond / 1e3, 0.999 * operations))
        if (shape.direction !== 'backward weight')
          assert.ok(predict(architecture, { ...shape, rows: 2 * shape.rows }, tile, bytes).microseconds >= microseconds)
      },
    ),
  )
})

test.run()
