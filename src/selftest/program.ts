/**
 * The process that runs the kernels of a check: `program.js <device> <parent> <part>...`. It says in lines of JSON which part it
 * starts and what it found, so that who waits for it knows which kernel it died of.
 */
import { writeSync } from 'node:fs'
import { Worker } from 'node:worker_threads'

import { DenseclError } from '../tensor/errors.js'
import type { Finding } from './compare.js'
import { type Part, runPart } from './parts.js'

export type Line =
  | { start: Part }
  | { part: Part; findings: Finding[] }
  | { part: Part; error: string; code: string; fatal: boolean }
  | { ready: true }
  | { done: true }

const [device, parent, ...parts] = process.argv.slice(2) as [string, string, ...string[]]

// Whoever started this decides when it ends; only when that process is gone, this one goes too. In a thread of its own: the main
// one may sit in a kernel that never ends.
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => undefined)
new Worker(`setInterval(() => { if (process.ppid !== ${Number(parent)}) process.kill(process.pid, 'SIGKILL') }, 250)`, {
  eval: true,
}).unref()

const say = (line: Line): void =>
  void writeSync(1, `${JSON.stringify(line, (_, value: unknown) => (value === Infinity ? 'Infinity' : value))}\n`)

function check(part: Part): Line {
  try {
    return { part, findings: runPart(device, part) }
  } catch (error) {
    if (!(error instanceof Error)) throw error
    const code = error instanceof DenseclError ? error.code : 'INTERNAL'
    // After an error of CUDA the device may be lost to this process.
    return { part, error: error.message, code, fatal: code === 'CUDA' || code === 'OUT_OF_MEMORY' }
  }
}

say({ ready: true })
for (const part of parts) {
  say({ start: part })
  const line = check(part)
  say(line)
  if ('fatal' in line && line.fatal) process.exit(1)
}
say({ done: true })
process.exit(0)
