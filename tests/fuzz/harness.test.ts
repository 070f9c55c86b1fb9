/** Fuzzing finds each kind of fault, in an input as small as can be, and nothing where there is none. */
import * as assert from 'uvu/assert'

import { suite } from '../support/suite.js'
import { fuzzReader } from './run.js'

const test = suite('fuzzing')

const faults: Readonly<Record<string, RegExp>> = {
  throws: /TypeError/,
  nameless: /does not name fuzzed/,
  mistaken: /INTERNAL/,
  pollutes: /prototype/,
  crashes: /SIGSEGV/,
  hangs: /no answer/,
  waits: /no answer|ended with/,
  grows: /MiB for/,
  slow: /took [2-9]\.\d s of a core/,
}

for (const [reader, word] of Object.entries(faults))
  test(`a reader that ${reader}`, async () => {
    // Who is slow on a busy machine is not yet hanging; of those that hang each try to make the input smaller takes so long.
    const ends = ['hangs', 'waits'].includes(reader)
    const patience = reader === 'slow' ? 30_000 : ends ? 1500 : 4000
    const { found } = await fuzzReader(reader, { seed: 1, seconds: ends ? 60 : 8, inputs: 200, patience, finds: 1 })
    assert.ok(found.length > 0, 'was not found')
    assert.match(found[0]!.why, word)
    assert.ok(found[0]!.bytes[0] !== 65 && found[0]!.bytes.length <= 4, `input ${found[0]!.bytes.toString('latin1')}`)
  })

test('a sound reader reads and refuses thousands', async () => {
  const { found, read, refused } = await fuzzReader('sound', { seed: 1, seconds: 60, inputs: 3000 })
  assert.equal(found, [])
  assert.ok(read > 100 && refused > 100, `${read} read, ${refused} refused`)
})

test.run()
