/** A step of W processes is the step of one, in f64: what they share is a matter of who computes it, not of what is computed. */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'

import * as assert from 'uvu/assert'

import { beside, type Ended, hasMpi, mpi, mpich, noMpi, runMpi } from '../support/mpi.js'
import { suite, testWhere, withFolder } from '../support/suite.js'

const test = suite('width')

type Match = 'feature' | 'geometry'

interface Outcome {
  losses: number[]
  state: Record<string, number[]>
}

/** What the program leaves with so many processes; undefined where it failed. */
async function train(processes: number, match: Match, mistake?: string, by = mpi): Promise<{ outcome: Outcome | undefined; ended: Ended }> {
  return withFolder(async (folder) => {
    const out = join(folder, 'outcome.json')
    const args = [out, match, ...(mistake === undefined ? [] : [mistake])]
    const ended = await runMpi(processes, beside(import.meta.url, 'widthProgram'), args, {}, by)
    const outcome = ended.code === 0 ? (JSON.parse(readFileSync(out, 'utf8')) as Outcome) : undefined
    return { outcome, ended }
  })
}

/** The largest difference between two states, over the largest value of the tensor (at least 1e-3, of which biases begin at 0). */
function difference(a: Outcome, b: Outcome): number {
  assert.equal(Object.keys(a.state), Object.keys(b.state))
  const all = Object.keys(a.state).map((name) => {
    const [x, y] = [a.state[name]!, b.state[name]!]
    const largest = y.reduce((most, value) => Math.max(most, Math.abs(value)), 1e-3)
    return x.reduce((most, value, i) => Math.max(most, Math.abs(value - y[i]!)), 0) / largest
  })
  const losses = a.losses.map((loss, i) => Math.abs(loss - b.losses[i]!))
  return Math.max(...all, ...losses)
}

const single: Partial<Record<Match, Outcome>> = {}
const alone = async (match: Match): Promise<Outcome> => (single[match] ??= (await train(1, match)).outcome!)

for (const [processes, match, by] of [
  [2, 'feature', mpi],
  [4, 'feature', mpi],
  [4, 'geometry', mpi],
  [2, 'feature', mpich],
] as const)
  testWhere(
    by.missing === undefined,
    by.missing!,
    test,
    `${processes} of ${by.name} have all that one has, partners by ${match}`,
    async () => {
      const { outcome, ended } = await train(processes, match, undefined, by)
      assert.is(ended.code, 0, ended.out + ended.err)
      const apart = difference(outcome!, await alone(match))
      assert.ok(apart < 1e-10, `${apart} apart`)
    },
  )

// What would look like training and is another one.
for (const mistake of ['sum', 'ownQueue', 'noExchange', 'ownStatistics', 'ownSeed', 'ownCount'])
  testWhere(hasMpi, noMpi, test, `is not met with the mistake ${mistake}`, async () => {
    const match = mistake === 'ownCount' ? 'geometry' : 'feature'
    const { outcome, ended } = await train(2, match, mistake)
    if (outcome === undefined) assert.match(ended.err, /what was learnt of rank (1|0, 1) is not that of the others/)
    else assert.ok(difference(outcome, await alone(match)) > 1e-6)
  })

test.run()
