/** What a command says of the memory that it will take, and what it takes. */
import { spawnSync } from 'node:child_process'

import * as assert from 'uvu/assert'

import { cli } from './suite.js'

/** Runs a command that says an estimate; the estimate over the largest resident memory. */
export function estimateOverResident(args: readonly string[]): number {
  const hook = 'data:text/javascript,process.on("exit",()=>console.log("resident "+process.resourceUsage().maxRSS))'
  const { status, stdout, stderr } = spawnSync(process.execPath, ['--import', hook, cli, ...args], { encoding: 'utf8' })
  assert.is(status, 0, stderr)
  const [, said] = /^memory {2}about ([\d.]+) GiB of the [\d.]+ GiB of this machine/m.exec(stdout)!
  // Of workers too, that end before.
  const resident = 1024 * Math.max(...[...stdout.matchAll(/^resident (\d+)$/gm)].map(([, kibibytes]) => Number(kibibytes)))
  return (Number(said) * 2 ** 30) / resident
}

/** Flags of a command line by their names. */
export const flagsOf = (values: Record<string, string | number>): string[] =>
  Object.entries(values).flatMap(([name, value]) => [`--${name}`, String(value)])

/** Asserts that estimates are 0.7 to 1.4 times what was taken. */
export function assertClose(shares: readonly number[]): void {
  assert.ok(
    shares.every((share) => share > 0.7 && share < 1.4),
    shares.map((share) => share.toFixed(2)).join(', '),
  )
}
