/** Intervals, paired differences and verdicts, against numbers that were worked out by hand. */
import * as assert from 'uvu/assert'

import { type ArmName } from '../../src/study/arms.js'
import { seedsAhead, type StudyRow, summarise } from '../../src/study/compare.js'
import { interval, intervalText } from '../../src/study/statistics.js'
import { suite } from '../support/suite.js'

const test = suite('study, comparisons')
const near = (actual: number, expected: number, bound = 1e-3): void =>
  assert.ok(Math.abs(actual - expected) < bound, `${actual} and ${expected}`)

test('intervals are those of Student’s t', () => {
  // Deviation 1, t 4.303: 4.303 / sqrt 3.
  near(interval([1, 2, 3]).mean, 2)
  near(interval([1, 2, 3]).half, 2.4843)
  // Two values 11.0 and 12.1: deviation 0.7778, t 12.706.
  near(interval([12.1, 11]).half, 6.988)
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
  assert.is(intervalText({ mean: 1.234, half: 0.5 }, '+'), '+1.23 ± 0.50')
  assert.is(intervalText({ mean: -1.2, half: NaN }, '+'), '-1.20')
})

const rows = (arms: Partial<Record<ArmName, number[]>>, more: (value: number) => Record<string, number> = () => ({})): StudyRow[] =>
  Object.entries(arms).flatMap(([arm, values]) =>
    values.map((value, seed) => ({ arm: arm as ArmName, seed, scores: { auc: value, ...more(value) } })),
  )

test('arms are compared seed by seed: what seeds differ by does not hide what arms differ by', () => {
  const { comparisons, scores } = summarise(rows({ random: [10, 30, 50], mocov2: [20, 40, 60], 'geometry-image': [22, 42.1, 61.9] }), [
    'auc',
  ])
  const [toRandom, toMoco] = comparisons
  assert.equal([toRandom!.against, toMoco!.against], ['random', 'mocov2'])
  assert.is(seedsAhead(toMoco!), 3)
  near(toMoco!.mean, 2)
  // Deviation 0.1: 4.303 * 0.1 / sqrt 3.
  near(toMoco!.half, 0.2484)
  // Alone, each has an interval that holds the others' mean.
  const { mocov2 } = scores[0]!.arms
  near(mocov2!.half, 49.69, 0.01)
})

test('a seed that only one of two arms has is in no difference', () => {
  const few = rows({ mocov2: [1, 2, 3], geometry: [2, 4] })
  few.splice(0, 1)
  const [comparison] = summarise(few, ['auc']).comparisons
  assert.equal(comparison!.differences, [2])
  assert.ok(Number.isNaN(comparison!.half))
})

test('a win is ahead of every control in every seed on every primary measure, with the interval above 0; nothing less', () => {
  const verdictOf = (...given: Parameters<typeof summarise>): string => summarise(...given).verdicts[0]!
  const controls = { mocov2: [10, 20, 30], 'mocov2-scaled': [11, 21, 31] }
  assert.match(verdictOf(rows({ ...controls, geometry: [13, 23.1, 32.9] }), ['auc']), 'geometry: a win')
  // One control is ahead in one seed.
  const beaten = verdictOf(rows({ ...controls, geometry: [13, 20.9, 33] }), ['auc'])
  assert.match(beaten, 'no win; not ahead in every seed: auc against MoCo v2, lr (1 - λ) (2 of 3 seeds)')
  // Ahead everywhere, by 0.1, 5 and 10: the interval holds 0.
  assert.match(verdictOf(rows({ ...controls, geometry: [11.1, 26, 41] }), ['auc']), 'in every seed on every primary measure, but')
  // Random weights are no control.
  assert.match(verdictOf(rows({ ...controls, random: [50, 50, 50], geometry: [13, 23.1, 32.9] }), ['auc']), 'geometry: a win')
  // A secondary measure does not decide, a second primary one does.
  const worse = rows({ ...controls, geometry: [13, 23.1, 32.9] }, (value) => ({ other: -value }))
  assert.match(verdictOf(worse, ['auc']), 'geometry: a win')
  assert.match(verdictOf(worse, ['auc', 'other']), 'no win; not ahead in every seed: other against MoCo v2 (0 of 3 seeds)')
  assert.match(verdictOf(rows({ mocov2: [1], geometry: [9] }), ['auc']), 'of one seed, which shows nothing')
  assert.match(verdictOf(rows({ random: [1, 2], geometry: [9, 9] }), ['auc']), 'no control')
})

test.run()
