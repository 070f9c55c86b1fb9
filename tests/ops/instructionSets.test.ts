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
const main = join(packageRoot, 'dist', 'src', 'cli', 'main.js')

for (const set of sets.filter((each) => each !== best)) {
  testWhere(sets.indexOf(best) > sets.indexOf(set), `this processor computes by ${best}`, test, `products by ${set}`, () => {
    const environment = { ...process.env, DENSECL_ISA: set, DENSECL_TEST_RUNS: '6' }
    const asked = spawnSync(process.execPath, [main, 'doctor', '--json'], { env: environment, encoding: 'utf8' })
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

const doctorWith = (set: string): { status: number | null; said: string } => {
  const { status, stdout, stderr } = spawnSync(process.execPath, [main, 'doctor', '--json'], {
    env: { ...process.env, DENSECL_ISA: set },
    encoding: 'utf8',
  })
  return { status, said: stdout + stderr }
}

test('a word that names no instruction set is refused with those that there are', () => {
  const { status, said } = doctorWith('avx1024')
  assert.is(status, 1, said)
  assert.match(said, /DENSECL_ISA is avx1024: expected portable, avx2, avx512, avx512bf16 or amx/)
  assert.is(doctorWith('').status, 0)
})

for (const set of sets.slice(1))
  testWhere(
    sets.indexOf(set) > sets.indexOf(best),
    `this processor has ${set}`,
    test,
    `${set} is refused by a processor without it`,
    () => {
      const { status, said } = doctorWith(set)
      assert.is(status, 1, said)
      assert.ok(said.includes(`DENSECL_ISA is ${set}: expected at most ${best === 'neon' ? 'portable' : best}`), said)
    },
  )

test.run()
