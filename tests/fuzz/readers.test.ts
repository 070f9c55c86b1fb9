/** Every reader of files: inputs that once failed, and for some seconds new ones. */
import { existsSync, readdirSync } from 'node:fs'
import { join } from 'node:path'

import * as assert from 'uvu/assert'

import { packageRoot } from '../../src/tensor/addon.js'
import { suite } from '../support/suite.js'
import { readers } from './readers.js'
import { type Found, fuzzReader, replay } from './run.js'

const test = suite('fuzzed readers')
const seed = Number(process.env.DENSECL_TEST_SEED ?? Date.now() % 1_000_000_000)
const names = Object.keys(readers)
/** Of all readers together, as one after the other is started. */
const seconds = Number(process.env.DENSECL_FUZZ_SECONDS ?? 24) / names.length

const told = (found: readonly Found[]): string =>
  found
    .map(({ reader, why, bytes }) => `${reader}: ${why}\n${bytes.length} bytes in base64: ${bytes.toString('base64').slice(0, 2000)}`)
    .join('\n')

test('what once failed is read or refused by name', async () => {
  const fixtures = join(packageRoot, 'tests', 'fixtures', 'fuzz')
  const unknown = readdirSync(fixtures).filter((name) => !names.includes(name))
  assert.equal(unknown, [], 'fixtures of readers that there are not')
  for (const reader of names) {
    const folder = join(fixtures, reader)
    if (!existsSync(folder)) continue
    const found = await replay(
      reader,
      readdirSync(folder)
        .sort()
        .map((name) => join(folder, name)),
    )
    assert.is(found.length, 0, told(found))
  }
})

test('new inputs are read or refused by name', async () => {
  console.log(`seed ${seed}: DENSECL_TEST_SEED=${seed} tries the same`)
  for (const reader of names) {
    const { found, inputs, refused } = await fuzzReader(reader, { seed, seconds })
    console.log(`${reader}: ${inputs} inputs, ${refused} refused`)
    assert.is(found.length, 0, `seed ${seed}\n${told(found)}`)
    assert.ok(inputs > 0, `${reader} read nothing`)
  }
})

test.run()
