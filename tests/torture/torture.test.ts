/** A few rounds of `npm run torture`, and that it finds what it is there for. */
import { join } from 'node:path'

import * as assert from 'uvu/assert'

import { suite, withFolder } from '../support/suite.js'
import { growth, type Sample, soak } from './soak.js'
import { tableOf, Torture } from './torture.js'

const test = suite('torture')

test('ten killed processes of four commands go on to the same bits', async () => {
  await withFolder(async (folder) => {
    const seed = Number(process.env.DENSECL_TEST_SEED ?? Date.now() % 1_000_000)
    console.log(`DENSECL_TEST_SEED=${seed}`)
    const torture = new Torture({ kills: 10, seed, folder: join(folder, 'torture') })
    await torture.begin()
    await torture.killed(10)
    const { rows } = torture
    assert.is(
      rows.reduce((sum, { kills }) => sum + kills, 0),
      10,
    )
    assert.equal(
      rows.flatMap(({ wrong }) => wrong),
      [],
      tableOf(rows),
    )
  })
})

test('a run of 400 steps holds no more tensors at its end than at its beginning; what grows is named', async () => {
  await withFolder(async (folder) => {
    const samples = await soak(400, folder)
    assert.ok(samples.length >= 100)
    assert.equal(
      growth(samples).filter((what) => !/^(resident|heap)/.test(what)),
      [],
    )
    const grown = (more: (i: number) => Partial<Sample>): string =>
      growth(samples.map((each, i) => ({ ...samples[0]!, step: each.step, ...more(i) }))).join('; ')
    assert.is(
      grown(() => ({})),
      '',
    )
    assert.match(
      grown((i) => ({ handles: 100 + (i > 50 ? 1 : 0) })),
      /^handles: 100 to 101$/,
    )
    assert.match(
      grown((i) => ({ resident: 2 ** 28 * (1 + i / 100) })),
      /^resident: /,
    )
  })
})

test.run()
