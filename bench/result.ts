/** Rows of bench/results/: what was measured, on what, when, at which commit. */
import { spawnSync } from 'node:child_process'
import { mkdirSync, writeFileSync } from 'node:fs'
import { availableParallelism, cpus } from 'node:os'
import { dirname } from 'node:path'

import { native, packageRoot, packageVersion } from '../src/tensor/native.js'

export function environmentRow(): Record<string, unknown> {
  const git = (...args: string[]): string => spawnSync('git', ['-C', packageRoot, ...args], { encoding: 'utf8' }).stdout.trim()
  return {
    date: new Date().toISOString().slice(0, 10),
    // A bundle has no history: whoever runs it says what it was made of.
    commit: process.env.DENSECL_COMMIT ?? git('rev-parse', '--short', 'HEAD') + (git('status', '--porcelain') === '' ? '' : '+'),
    densecl: packageVersion,
    node: process.version,
    device: 'cpu',
    cpu: cpus()[0]?.model.trim(),
    cores: availableParallelism(),
    instructionSet: native.instructionSet(),
  }
}

export function writeResult(path: string, result: Record<string, unknown>): void {
  mkdirSync(dirname(path), { recursive: true })
  writeFileSync(path, `${JSON.stringify(result, undefined, 2)}\n`)
  console.log(`written: ${path}`)
}

export function median(values: number[]): number {
  const sorted = [...values].sort((a, b) => a - b)
  return sorted[Math.floor(sorted.length / 2)]!
}
