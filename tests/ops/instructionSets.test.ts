/** What is written once for each instruction set of the CPU: its tests by each that this processor has, in processes of their own. */
import { spawnSync } from 'node:child_process'
import { join } from 'node:path'

import * as assert from 'uvu/assert'

import { packageRoot } from '../../src/tensor/addon.js'
import { native } from '../../src/tensor/native.js'
import { suite, testWhere } from '../support/suite.js'

const test = suite('instruction sets')

const sets = ['portable', 'avx2', 'avx512', 'avx512bf16', 'amx']
const best = native.instructionSet()

for (const set of sets.filter((each) => each !== best)) {
  testWhere(sets.indexOf(best) > sets.indexOf(set), `this processor computes by ${best}`, test, `products by ${set}`, () => {
    const environment = { ...process.env, DENSECL_ISA: set, DENSECL_TEST_RUNS: '6' }
    const asked = spawnSync(process.execPath, [join(packageRoot, 'dist', 'src', 'cli', 'main.js'), 'doctor', '--json'], {
      env: environment,
      encoding: 'utf8',
    })
    assert.match(asked.stdout, new RegExp(`"${set}[" ]`))
    // The sets of AVX-512 differ in bf16 alone.
    const files = ['ops/bf16', ...(set.startsWith('avx512') ? [] : ['ops/conv2d', 'ops/matmul'])]
    const { status, stdout, stderr } = spawnSync(process.execPath, [join(packageRoot, 'dist', 'tests', 'run.js'), ...files], {
      env: environment,
      encoding: 'utf8',
    })
    assert.is(status, 0, stdout + stderr)
    assert.match(stdout, /\b0 failed/)
  })
}

test.run()
