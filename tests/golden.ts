/**
 * `npm run golden -- DIR`: checks every golden file of DIR and prints a row a case: on the CPU, and whole steps on `simt` and on a GPU,
 * each in a process of its own (DENSECL_TEST_DEVICE), where they are.
 */
import { spawnSync } from 'node:child_process'
import { fileURLToPath } from 'node:url'

import { DenseclError } from '../src/tensor/errors.js'
import { packageRoot } from '../src/tensor/addon.js'
import { variants } from './support/devices.js'
import { goldenRows } from './support/golden.js'

const [folder] = process.argv.slice(2)
if (folder === undefined) {
  console.error('usage: npm run golden -- DIR      (a folder of golden *.safetensors files)')
  process.exit(2)
}

const only = process.env.DENSECL_TEST_DEVICE
const total = { ok: 0, FAIL: 0, SKIP: 0 }
/** Prints a line, and counts it by its first word. */
function say(line: string): void {
  const [word = ''] = line.split(' ')
  if (word in total) total[word as keyof typeof total] += 1
  console.log(line)
}

const started = performance.now()
try {
  for (const { name, dtype, error, tolerance } of goldenRows(folder, only)) {
    const found = `${dtype.padEnd(4)} ${error.toExponential(2).padStart(9)} (at most ${tolerance.toExponential(0)})`
    say(`${error <= tolerance ? 'ok  ' : 'FAIL'} ${(only ?? 'cpu').padEnd(6)} ${found}  ${name}`)
  }
} catch (error) {
  say(`FAIL ${only ?? 'cpu'}: ${error instanceof DenseclError ? error.message : String(error)}`)
}
if (only === undefined) {
  for (const { name, env, missing } of variants(packageRoot).filter((form) => ['simt', 'cuda:0'].includes(form.name))) {
    if (missing !== undefined) {
      say(`SKIP ${name}: ${missing}`)
      continue
    }
    const { stdout, stderr, status, signal } = spawnSync(process.execPath, [fileURLToPath(import.meta.url), folder], {
      env: { ...process.env, ...env },
      encoding: 'utf8',
    })
    const lines = stdout.trimEnd().split('\n')
    for (const line of lines) say(line)
    if (status !== 0 && !lines.some((line) => line.startsWith('FAIL'))) say(`FAIL ${name}: ${signal ?? `exit code ${status}`}: ${stderr}`)
  }
  console.log(`${total.ok} passed, ${total.FAIL} failed, ${total.SKIP} skipped in ${((performance.now() - started) / 1000).toFixed(1)} s`)
}
process.exitCode = total.FAIL === 0 ? 0 : 1
