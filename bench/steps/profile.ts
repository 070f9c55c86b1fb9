/** Where a step's time goes, by native op: profile.js takes the flags of densecl.js and prints a table. */
import { observe } from '../../src/tensor/native.js'

const spent = new Map<string, { seconds: number; calls: number }>()
observe.op = (name, milliseconds) => {
  const row = spent.get(name) ?? { seconds: 0, calls: 0 }
  row.seconds += milliseconds / 1000
  row.calls += 1
  spent.set(name, row)
}

await import('./densecl.js')
const total = [...spent.values()].reduce((sum, { seconds }) => sum + seconds, 0)
for (const [name, { seconds, calls }] of [...spent].sort((a, b) => b[1].seconds - a[1].seconds)) {
  console.log(`${name.padEnd(24)} ${String(calls).padStart(6)} calls ${seconds.toFixed(3).padStart(8)} s ${((100 * seconds) / total).toFixed(1).padStart(5)} %`)
}
