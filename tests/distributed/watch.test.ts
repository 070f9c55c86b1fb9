/** Who counts as lost, by the clock and by what processes say: none is needed to ask. */
import * as assert from 'uvu/assert'

import { pace, Pace, withPace } from '../../src/distributed/pace.js'
import { Watch } from '../../src/distributed/watch.js'
import { fail } from '../../src/tensor/errors.js'
import { stopIfInterrupted, unlessInterrupted } from '../../src/tensor/interruption.js'
import { suite, throwsError } from '../support/suite.js'

const test = suite('watch over processes')

/** How a rank does at a second: `silent`, or its moves, with `w` where it waits. */
type Way = (second: number) => string

/** The first verdict, and the second at which it was given, over 100 s of a clock that leaves out the seconds of `sleep`. */
function watched(ways: readonly Way[], { silence = 20, stall = 40, sleep = [0, 0] as readonly [number, number] } = {}): string | undefined {
  const watch = new Watch({ silence, stall })
  for (const rank of ways.keys()) watch.add(rank, `rank ${rank}`, 0)
  for (let second = 1; second < 100; ++second) {
    if (second >= sleep[0] && second < sleep[1]) continue
    for (const [rank, way] of ways.entries()) {
      const how = way(second)
      if (how !== 'silent') watch.hear(rank, { step: 7, moves: parseInt(how), waiting: how.endsWith('w') }, second)
    }
    const verdict = watch.verdict(second)
    if (verdict !== undefined) return `${second} s: ${verdict}`
  }
  return undefined
}

const busy: Way = (second) => String(second)
const waits: Way = (second) => (second < 10 ? String(second) : '10w')
const still: Way = (second) => String(Math.min(second, 10))

test('processes that get on are not lost, however long the others wait', () => {
  assert.is(watched([busy, busy]), undefined)
  assert.is(watched([waits, busy, waits]), undefined)
})

test('one that says nothing is lost after the seconds of silence, whatever the others do', () => {
  assert.is(watched([waits, (second) => (second > 30 ? 'silent' : busy(second))]), '51 s: rank 1 gave no sign of life for 20 s, at step 7')
})

test('one that stands still is lost once others have waited as long; alone it is not', () => {
  assert.is(watched([waits, still, waits]), '51 s: rank 1 got nothing done for 40 s at step 7, while ranks 0, 2 waited')
  assert.is(watched([busy, still]), undefined)
  const later: Way = (second) => (second < 50 ? String(second) : '50w')
  assert.is(watched([later, still]), '91 s: rank 1 got nothing done for 40 s at step 7, while rank 0 waited')
})

test('where all wait for each other, nobody is blamed', () => {
  assert.is(watched([waits, waits]), '51 s: ranks 0, 1 waited for each other for 40 s, at step 7, 7')
  // Who sees one alone does not know for whom it waits.
  assert.is(watched([waits]), undefined)
})

test('who slept itself gives the others as long again', () => {
  const sleep = [15, 75] as const
  assert.is(watched([busy, busy], { sleep }), undefined)
  const gone: Way = (second) => (second < 15 ? String(second) : 'silent')
  assert.is(watched([busy, gone], { sleep }), '96 s: rank 1 gave no sign of life for 20 s, at step 7')
})

test('questions whether work is to end count as progress, those of a clock while something is awaited do not', async () => {
  const moves = (): number => pace.beat().moves
  let asked = 0
  await withPace(
    () => ++asked < 0,
    async () => {
      const before = moves()
      stopIfInterrupted()
      assert.is(moves(), before + 1)
      await unlessInterrupted(new Promise((resolve) => setTimeout(resolve, 350)))
      assert.is(moves(), before + 2)
    },
  )
  assert.ok(asked > 3)
})

test('who waits says so, and what it did before and after', () => {
  const own = new Pace()
  own.begin(7)
  assert.equal(own.beat(), { step: 7, moves: 1, waiting: false })
  own.waiting(() => assert.equal(own.beat(), { step: 7, moves: 2, waiting: true }))
  throwsError(() => own.waiting(() => fail('COMM', 'it failed')), 'COMM')
  assert.equal(own.beat(), { step: 7, moves: 5, waiting: false })
})

test.run()
