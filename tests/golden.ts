/** `npm run golden -- DIR`: checks every golden file of DIR and prints a row a case. */
import { DenseclError } from '../src/tensor/errors.js'
import { goldenRows } from './support/golden.js'

const folder = process.argv[2]
if (folder === undefined) {
  console.error('usage: npm run golden -- DIR      (a folder of golden *.safetensors files)')
  process.exit(2)
}
try {
  let passed = 0
  let failed = 0
  for (const { name, dtype, error, tolerance } of goldenRows(folder)) {
    const ok = error <= tolerance
    if (ok) passed += 1
    else failed += 1
    console.log(`${ok ? 'ok  ' : 'FAIL'} ${dtype} ${error.toExponential(2).padStart(9)} (at most ${tolerance.toExponential(0)})  ${name}`)
  }
  console.log(`${passed} passed, ${failed} failed, 0 skipped`)
  process.exitCode = failed === 0 ? 0 : 1
} catch (error) {
  console.error(error instanceof DenseclError ? error.message : error)
  process.exitCode = 1
}
