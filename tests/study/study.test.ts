import * as assert from 'uvu/assert'

import { type Arm, interval, type StudyRow, summarise } from '../../src/study/study.js'
import { suite } from '../support/suite.js'

const test = suite('study')
const near = (actual: number, expected: number, bound = 1e-3): void =>
  assert.ok(Math.abs(actual - expected) < bound, `${actual} and ${expected}`)

test('intervals are those of Student’s t', () => {
  // Deviation 1, t 4.303: 4.303 / sqrt 3.
  near(interval([1, 2, 3]).mean, 2)
  near(interval([1, 2, 3]).half, 2.4843)
  assert.ok(Number.isNaN(interval([5]).half))
  assert.is(interval([4, 4, 4]).half, 0)
  // t 2.228 for 10 degrees of freedom, 2.086 for 20, beyond the table.
  for (const [n, t] of [
    [11, 2.228],
    [21, 2.086],
  ] as const) {
    const values = Array.from({ length: n }, (_, i) => i)
    const deviation = Math.sqrt(values.reduce((sum, value) => sum + (value - (n - 1) / 2) ** 2, 0) / (n - 1))
    near((interval(values).half * Math.sqrt(n)) / deviation, t, 5e-3)
  }
})

const rows = (scores: Record<Arm, number[]>): StudyRow[] =>
  Object.entries(scores).flatMap(([method, values]) =>
    values.map((value, seed) => ({ method: method as Arm, seed, scores: { score: value } })),
  )

test('verdicts compare seed by seed, and say what is not shown', () => {
  // Seeds differ much, methods within a seed by the same: only pairs show it.
  const clear = summarise(rows({ random: [10, 30, 50], mocov2: [20, 40, 60], densecl: [22, 42.1, 61.9] }))
  assert.match(clear.verdicts[0]!, /DenseCL - MoCo v2 = \+2\.00 .*: DenseCL is ahead/)
  assert.match(clear.verdicts[2]!, /MoCo v2 - random weights = \+10\.00 .*: MoCo v2 is ahead/)
  const behind = summarise(rows({ random: [1, 2, 3], mocov2: [20, 40, 60], densecl: [18, 38, 58.1] }))
  assert.match(behind.verdicts[0]!, 'MoCo v2 is ahead')
  assert.match(summarise(rows({ random: [1, 2, 3], mocov2: [5, 6, 7], densecl: [9, 2, 8] })).verdicts[0]!, 'no difference is shown')
  assert.match(summarise(rows({ random: [1], mocov2: [5], densecl: [9] })).verdicts[0]!, 'from one seed: shows nothing')
})

test.run()
