/** Updates of a detector that processes share are those of one, in f64, whatever the images of each hold. */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'

import * as assert from 'uvu/assert'

import { beside, type Ended, hasMpi, noMpi, runMpi } from '../support/mpi.js'
import { suite, testWhere, withFolder } from '../support/suite.js'

const test = suite('detectors of several processes')

/** By training. */
type Outcome = Record<string, { losses: Record<string, number>[]; state: Record<string, number[]> }>

/** What the program leaves with so many processes; undefined where it failed. */
async function train(processes: number, mistake?: string): Promise<{ outcome: Outcome | undefined; ended: Ended }> {
  return withFolder(async (folder) => {
    const out = join(folder, 'outcome.json')
    const ended = await runMpi(processes, beside(import.meta.url, 'detectorProgram'), [out, ...(mistake === undefined ? [] : [mistake])])
    return { outcome: ended.code === 0 ? (JSON.parse(readFileSync(out, 'utf8')) as Outcome) : undefined, ended }
  })
}

/** The largest difference of the losses of trainings, and of parameters and statistics over the largest of each tensor. */
function difference(trainings: Outcome, others: Outcome): number {
  const apart = Object.entries(trainings).flatMap(([training, { losses, state }]) => {
    const other = others[training]!
    assert.equal(Object.keys(state), Object.keys(other.state))
    const ofState = Object.entries(state).map(([name, x]) => {
      const y = other.state[name]!
      const largest = y.reduce((most, value) => Math.max(most, Math.abs(value)), 1e-3)
      return x.reduce((most, value, k) => Math.max(most, Math.abs(value - y[k]!)), 0) / largest
    })
    const ofLosses = losses.flatMap((parts, step) => Object.entries(parts).map(([key, loss]) => Math.abs(loss - other.losses[step]![key]!)))
    return [...ofState, ...ofLosses]
  })
  return Math.max(...apart)
}

let single: Outcome | undefined
const alone = async (): Promise<Outcome> => (single ??= (await train(1)).outcome!)

testWhere(
  hasMpi,
  noMpi,
  test,
  'two processes, of which one has no objects at times, have what one has, batches whole or in parts',
  async () => {
    const { outcome, ended } = await train(2)
    assert.is(ended.code, 0, ended.out + ended.err)
    const apart = difference(outcome!, await alone())
    assert.ok(apart < 1e-10, `${apart} apart`)
  },
)

// Other images together in a part, and samples that are drawn by the place in the own part of the batch.
for (const mistake of ['ownParts', 'ownPlaces'])
  testWhere(hasMpi, noMpi, test, `is not met with the mistake ${mistake}`, async () => {
    const { outcome, ended } = await train(2, mistake)
    assert.is(ended.code, 0, ended.out + ended.err)
    assert.ok(difference(outcome!, await alone()) > 1e-6)
  })

test.run()
