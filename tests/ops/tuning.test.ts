/** The tables of tiles: what they hold, how a shape finds its entry, and the model that fills them without a GPU. */
import { readdirSync, readFileSync } from 'node:fs'
import { dirname } from 'node:path'

import fc from 'fast-check'
import * as assert from 'uvu/assert'

import { convolutionCases } from '../../bench/ops/cases.js'
import { architectures, predict, tiles, tilesFor } from '../../bench/ops/model.js'
import { directions, indexed, nearestTile, type Product, tunedTile, tuningFile, type TuningTable } from '../../src/ops/tuning.js'
import { suite } from '../support/suite.js'

const test = suite('tuning')
const product: fc.Arbitrary<Product> = fc.record({ direction: fc.constantFrom(...directions), rows: fc.integer({ min: 1, max: 1e6 }), columns: fc.integer({ min: 1, max: 4096 }), depth: fc.integer({ min: 1, max: 1e5 }) })

test('a shape finds the entry of its columns and depth with the nearest rows, within a factor of four', () => {
  fc.assert(
    fc.property(product, fc.array(fc.record({ rows: fc.integer({ min: 1, max: 1e6 }), tile: fc.integer({ min: 1, max: 5 }) }), { maxLength: 6 }), (wanted, rows) => {
      const others = { ...wanted, depth: wanted.depth + 1, tile: 5 }
      const index = indexed({ architecture: 'x', date: '', how: '', entries: [...rows.map((row) => ({ ...wanted, ...row })), others] })
      const found = nearestTile(index, wanted)
      const distance = (r: number): number => Math.abs(Math.log(r / wanted.rows))
      const near = rows.filter((row) => distance(row.rows) <= Math.log(4))
      if (near.length === 0) assert.is(found, 0)
      else assert.ok(near.some((row) => row.tile === found && near.every((other) => distance(row.rows) <= distance(other.rows))))
    }),
  )
  assert.is(tunedTile('cpu', { direction: 'forward', rows: 1, columns: 1, depth: 1 }), 0)
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
      assert.ok(tilesFor(architecture, wholeSlices).some(({ id }) => id === tile), `${file}: ${JSON.stringify(shape)} has tile ${tile}`)
    }
  }
})

test('the model never predicts less than the floor, and more work never takes less time', () => {
  fc.assert(
    fc.property(product, fc.constantFrom(...Object.values(architectures)), fc.constantFrom(...tiles), fc.integer({ min: 1, max: 1e9 }), (shape, architecture, tile, bytes) => {
      const { microseconds, memory } = predict(architecture, shape, tile, bytes)
      const operations = (2 * shape.rows * shape.columns * shape.depth) / architecture.teraflops / 1e6
      assert.ok(microseconds >= Math.max(memory, bytes / architecture.gigabytesPerSecond / 1e3, 0.999 * operations))
      if (shape.direction !== 'backward weight') assert.ok(predict(architecture, { ...shape, rows: 2 * shape.rows }, tile, bytes).microseconds >= microseconds)
    }),
  )
})

test.run()
