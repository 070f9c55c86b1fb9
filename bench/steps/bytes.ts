/**
 * The bytes that a step's ops pass through device memory at each level of fusion, counted on the calls of a step that is not
 * computed (src/bench/step/calls.ts). Usage: bytes.js [file]
 */
import { fusionLevels as levels, type FusionLevel } from '../../src/tensor/compute.js'
import { environmentRow, writeResult } from '../../src/bench/result.js'
import { bytesOf, stepCalls } from '../../src/bench/step/calls.js'

const wanted = 256

/** Gigabytes of each native op. */
function counted(level: FusionLevel): Map<string, number> {
  const bytes = new Map<string, number>()
  for (const call of stepCalls({ level })(wanted)) bytes.set(call.op, (bytes.get(call.op) ?? 0) + bytesOf(call) / 1e9)
  return bytes
}

const columns = levels.map(counted)
const names = [...new Set(columns.flatMap((column) => [...column.keys()]))]
const row = (name: string, values: number[]): string => `${name.padEnd(24)}${values.map((value) => value.toFixed(2).padStart(11)).join('')}`
console.log(`${`GB, batch ${wanted}`.padEnd(24)}${levels.map((level) => level.padStart(11)).join('')}`)
for (const name of names.sort((a, b) => (columns[0]!.get(b) ?? 0) - (columns[0]!.get(a) ?? 0)))
  console.log(
    row(
      name,
      columns.map((column) => column.get(name) ?? 0),
    ),
  )
const [file] = process.argv.slice(2)
if (file !== undefined) {
  const gigabytes = Object.fromEntries(
    levels.map((level, i) => [level, Object.fromEntries([...columns[i]!].map(([name, value]) => [name, Number(value.toFixed(3))]))]),
  )
  writeResult(file, {
    ...environmentRow(),
    bench: 'bytes',
    how: 'counted on the calls of a step, not measured',
    step: `ResNet-50, 224 px, batch ${wanted}, queue 65536, bf16`,
    gigabytes,
  })
}
console.log(
  row(
    'all',
    columns.map((column) => [...column.values()].reduce((sum, bytes) => sum + bytes, 0)),
  ),
)
