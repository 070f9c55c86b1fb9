/** Random ops under AddressSanitizer: no shape and no value lets an op read or write outside of its tensors, or end the process. */
import { spawnSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

import * as assert from 'uvu/assert'

import { packageRoot } from '../../src/tensor/addon.js'
import { sanitizedCpu } from '../support/devices.js'
import { suite, testWhere } from '../support/suite.js'

const test = suite('fuzzed ops')
const env = sanitizedCpu(packageRoot)
const seconds = Number(process.env.DENSECL_FUZZ_SECONDS ?? 15)
const seed = Number(process.env.DENSECL_TEST_SEED ?? Date.now() % 1_000_000_000)

testWhere(
  env !== undefined,
  'no addon with a sanitizer: node scripts/native.mjs cpu --sanitize',
  test,
  'random ops end in a result or an error',
  () => {
    const folder = mkdtempSync(join(tmpdir(), 'densecl-fuzz-'))
    const last = join(folder, 'last.json')
    try {
      const program = fileURLToPath(new URL('./fuzz.js', import.meta.url))
      console.log(`seed ${seed}: DENSECL_TEST_SEED=${seed} tries the same`)
      const child = spawnSync(process.execPath, [program, String(seconds), String(seed), last], {
        encoding: 'utf8',
        env: { ...process.env, ...env },
      })
      assert.is(
        child.status,
        0,
        `seed ${seed}, ended by ${child.signal ?? child.status} at ${readFileSync(last, 'utf8')}\n${child.stderr.slice(0, 6000)}`,
      )
      const count = JSON.parse(child.stdout) as { given: number; refused: number }
      console.log(`${count.given} results, ${count.refused} refused`)
      assert.ok(count.given > 20 && count.refused > 5, child.stdout)
    } finally {
      rmSync(folder, { recursive: true })
    }
  },
)

test.run()
