/** `densecl bench growth`: points of axes, the powers between them, and what is refused. */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'

import * as assert from 'uvu/assert'

import { exponent, growthAxes, type GrowthRow } from '../../src/bench/growth.js'
import { runCli, suite, withFolder } from '../support/suite.js'

const test = suite('growth')

test('the power of c x^p is p, between the two largest sizes; none is told of one point, or of what is too small to be seen', () => {
  const points = (power: number, scale: number) =>
    [10, 100, 1000].map((size) => ({ size, milliseconds: scale * size ** power, mebibytes: size === 10 ? 500 : 2 }))
  for (const power of [0.5, 1, 2])
    assert.ok(Math.abs(exponent(points(power, 3), ({ milliseconds }) => milliseconds)! - power) < 1e-12, String(power))
  assert.is(
    exponent(points(1, 1), ({ mebibytes }) => mebibytes),
    0,
  )
  assert.is(
    exponent(points(1, 1e-9), ({ milliseconds }) => milliseconds),
    undefined,
  )
  assert.is(
    exponent(points(1, 1).slice(0, 1), ({ milliseconds }) => milliseconds),
    undefined,
  )
})

test('every axis is measured at its smallest size in a process of its own; what is printed is what is saved', () =>
  withFolder((folder) => {
    const save = join(folder, 'growth.json')
    for (const [axis, { sizes }] of Object.entries(growthAxes)) {
      const { code, out, err } = runCli(['bench', 'growth', axis, '--most', String(sizes[0]), '--json', '--save', save])
      assert.is(code, 0, err)
      const { rows } = JSON.parse(out) as { rows: GrowthRow[] }
      assert.equal(JSON.parse(readFileSync(save, 'utf8')), JSON.parse(out))
      const [row] = rows
      assert.equal([rows.length, row!.axis, row!.exponents], [1, axis, {}])
      assert.equal(
        row!.points.map(({ size }) => size),
        sizes.slice(0, 1),
      )
      assert.ok(row!.points[0]!.milliseconds > 0 && row!.points[0]!.mebibytes >= 0)
    }
  }))

test('an axis that is not there, and a limit below its sizes, are refused in words', () => {
  for (const [args, words] of [
    [['row'], /there is no axis row \(did you mean rows\?\); axes: batch, .*, log/],
    [['rows', '--most', '5'], /--most is 5: expected at least 1000, the smallest size of rows/],
    [['--most', '-1'], /--most is -1: expected an integer of at least 1/],
  ] as const) {
    const { code, err } = runCli(['bench', 'growth', ...args])
    assert.is(code, 2, err)
    assert.match(err, words)
  }
})

test.run()
