/** Where a step's time goes, by native op: profile.js takes the flags of densecl.js and prints a table. */
import { parseArgs } from 'node:util'

import { native, observe } from '../../src/tensor/native.js'

const { values } = parseArgs({ options: { device: { type: 'string', default: 'cpu' } }, strict: false })
const device = String(values.device)
const marks: { name: string; from: number; to: number }[] = []
// Marks lie in the device's own work: an op is timed where it runs, not where it is called.
observe.op = (name, run) => {
  const from = native.mark(device)
  run()
  marks.push({ name, from, to: native.mark(device) })
}

await import('./densecl.js')
const spent = new Map<string, { milliseconds: number; calls: number }>()
for (const { name, from, to } of marks) {
  const row = spent.get(name) ?? { milliseconds: 0, calls: 0 }
  row.milliseconds += native.elapsed(device, from, to)
  row.calls += 1
  spent.set(name, row)
}
const total = [...spent.values()].reduce((sum, { milliseconds }) => sum + milliseconds, 0)
for (const [name, { milliseconds, calls }] of [...spent].sort((a, b) => b[1].milliseconds - a[1].milliseconds)) {
  console.log(`${name.padEnd(24)} ${String(calls).padStart(6)} calls ${(milliseconds / 1000).toFixed(3).padStart(8)} s ${((100 * milliseconds) / total).toFixed(1).padStart(5)} %`)
}
