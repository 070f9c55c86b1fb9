import fc from 'fast-check'
import * as assert from 'uvu/assert'

import { averagePrecision } from '../../src/eval/averagePrecision.js'
import { hasModules, python, runPython } from '../support/python.js'
import { suite, testWhere, throwsError } from '../support/suite.js'

const test = suite('average precision')
const hasSklearn = hasModules(python, 'sklearn')

const ranked = fc
  .array(fc.record({ score: fc.integer({ min: 0, max: 12 }).map((value) => value / 4), positive: fc.boolean() }), {
    minLength: 1,
    maxLength: 40,
  })
  .filter((rows) => rows.some(({ positive }) => positive))

test('a list by hand, in each form', () => {
  const scores = [0.9, 0.8, 0.7, 0.6, 0.5]
  const positive = [1, 0, 1, 1, 0]
  // Precision at the positives: 1, 2/3, 3/4; made monotone from the right: 1, 3/4, 3/4.
  assert.ok(Math.abs(averagePrecision(scores, positive, 'step') - (1 + 2 / 3 + 3 / 4) / 3) < 1e-12)
  assert.ok(Math.abs(averagePrecision(scores, positive, 'area') - (1 + 3 / 4 + 3 / 4) / 3) < 1e-12)
  // Recalls 0 to 0.3 reach 1, the other seven 3/4.
  assert.ok(Math.abs(averagePrecision(scores, positive, '11-point') - (4 + 7 * 0.75) / 11) < 1e-12)
})

test('perfect is 1, no positive is no number, and a score that is none is an error', () => {
  for (const form of ['area', '11-point', 'step'] as const) {
    assert.is(averagePrecision([3, 2, 1], [1, 1, 0], form), 1)
    assert.ok(Number.isNaN(averagePrecision([3, 2], [0, 0], form)))
  }
  throwsError(() => averagePrecision([1, NaN], [1, 0]), 'NAN', /score 1/)
})

test('monotone precision is never below the step form where scores differ; both depend on the order alone', () => {
  fc.assert(
    fc.property(ranked, (rows) => {
      const scores = rows.map(({ score }, i) => score + i * 1e-6)
      const positive = rows.map((row) => Number(row.positive))
      const [area, step] = [averagePrecision(scores, positive), averagePrecision(scores, positive, 'step')]
      assert.ok(area >= step - 1e-12 && area <= 1 + 1e-12 && step > 0)
      assert.is(
        averagePrecision(
          scores.map((score) => Math.exp(score)),
          positive,
        ),
        area,
      )
    }),
  )
})

testWhere(
  hasSklearn,
  'scikit-learn is not installed for /usr/bin/python3',
  test,
  'the step form is scikit-learn’s, equal scores included',
  () => {
    const cases = fc
      .sample(ranked, { numRuns: 60, seed: 4 })
      .map((rows) => ({ scores: rows.map(({ score }) => score), positive: rows.map((row) => Number(row.positive)) }))
    const program = `
import json, sys
from sklearn.metrics import average_precision_score
print(json.dumps([average_precision_score(c["positive"], c["scores"]) for c in json.loads(sys.argv[1])]))`
    const expected = JSON.parse(runPython(program, [JSON.stringify(cases)])) as number[]
    cases.forEach(({ scores, positive }, i) => assert.ok(Math.abs(averagePrecision(scores, positive, 'step') - expected[i]!) < 1e-12))
  },
)

test.run()
