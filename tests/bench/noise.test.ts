import fc from 'fast-check'
import * as assert from 'uvu/assert'

import { noiseOf } from '../../src/bench/result.js'
import { suite } from '../support/suite.js'

const test = suite('noise')
const times = fc.array(fc.double({ min: 0.01, max: 1000, noNaN: true }), { minLength: 1, maxLength: 50 })

test('noise is 0 of equal times, does not depend on the unit or the order, and one outlier is not noise', () => {
  fc.assert(
    fc.property(times, fc.integer({ min: -3, max: 3 }), (values, power) => {
      const noise = noiseOf(values)
      assert.ok(noise >= 0)
      assert.is(noiseOf([...values].reverse()), noise)
      assert.ok(Math.abs(noiseOf(values.map((value) => value * 2 ** power)) - noise) < 1e-12 * (1 + noise))
      assert.is(noiseOf(values.map(() => values[0]!)), 0)
    }),
  )
  const steady = new Array<number>(20).fill(2)
  assert.is(noiseOf([...steady, 1000]), 0)
  assert.is(noiseOf([...steady, 0.001]), 0)
  assert.ok(noiseOf(steady.map((time, i) => time * (1 + i / 20))) > 0.2)
})

test.run()
