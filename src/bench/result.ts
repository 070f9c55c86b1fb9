/** Rows of bench/results/: what was measured, on what, when, at which commit. */
import { spawnSync } from 'node:child_process'
import { appendFileSync, existsSync, readFileSync, renameSync, writeFileSync } from 'node:fs'
import { availableParallelism, cpus } from 'node:os'
import { dirname, join } from 'node:path'

import { z } from 'zod'

import { makeFolder } from '../files/atomic.js'
import { firstIssue } from '../tensor/issues.js'
import { fail } from '../tensor/errors.js'
import { packageRoot, packageVersion } from '../tensor/addon.js'
import { native } from '../tensor/native.js'

/** DENSECL_COMMIT, else what a bundle was made of, else what is checked out here, with + when it was changed since. */
function commit(): string {
  const [bundled, git] = [
    join(packageRoot, 'COMMIT'),
    (...args: string[]): string => spawnSync('git', ['-C', packageRoot, ...args], { encoding: 'utf8' }).stdout?.trim() ?? '',
  ]
  if (process.env.DENSECL_COMMIT !== undefined) return process.env.DENSECL_COMMIT
  if (existsSync(bundled)) return readFileSync(bundled, 'utf8').trim()
  const head = git('rev-parse', '--short', 'HEAD')
  return head === '' ? 'unknown' : head + (git('status', '--porcelain') === '' ? '' : '+')
}

export function environmentRow(): Record<string, unknown> {
  return {
    date: new Date().toISOString().slice(0, 10),
    commit: commit(),
    densecl: packageVersion,
    node: process.version,
    device: 'cpu',
    cpu: cpus()[0]?.model.trim(),
    cores: availableParallelism(),
    instructionSet: native.instructionSet(),
  }
}

/** Whole or not at all, so that a program which is killed leaves what it wrote before. */
export function writeResult(path: string, result: Record<string, unknown>, quiet = false): void {
  makeFolder(dirname(path))
  writeFileSync(`${path}.part`, `${JSON.stringify(result, undefined, 2)}\n`)
  renameSync(`${path}.part`, path)
  if (!quiet) console.log(`written: ${path}`)
}

/** Adds a row to a file of one JSON object a line: what is there stays when the program is killed. */
export function appendRow(path: string, row: Record<string, unknown>): void {
  makeFolder(dirname(path))
  appendFileSync(path, `${JSON.stringify(row)}\n`)
}

const row = z.object({
  op: z.string(),
  name: z.string(),
  milliseconds: z.number(),
  spread: z.tuple([z.number(), z.number()]),
  /** Absent in results of before. */
  noise: z.number().exactOptional(),
  gigabytesPerSecond: z.number(),
  teraflops: z.number(),
  /** Share of the floor, the larger of bytes and operations at the ceilings, that was reached. */
  floor: z.number(),
  peakMegabytes: z.number(),
  peerMilliseconds: z.number().exactOptional(),
  peerPeakMegabytes: z.number().exactOptional(),
})
/** An op as it was timed. */
export type Row = z.output<typeof row>

const result = z.looseObject({ device: z.string(), dtype: z.string(), batch: z.number(), rows: z.array(row) })
/** The ops of a device as `bench --save` keeps them. */
export type Result = z.output<typeof result>

/** Reads what writeResult wrote. Throws FILE for anything else. */
export function readResult(path: string): Result {
  let value: unknown
  try {
    value = JSON.parse(readFileSync(path, 'utf8'))
  } catch (error) {
    return fail('FILE', `${path}: expected a result that bench --save wrote (${error instanceof Error ? error.message : String(error)})`)
  }
  const { data, error } = result.safeParse(value)
  return data ?? fail('FILE', `${path}: expected a result that bench --save wrote, but ${firstIssue(error)}`)
}

export function median(values: number[]): number {
  const sorted = [...values].sort((a, b) => a - b)
  return sorted[Math.floor(sorted.length / 2)]!
}

/** How far the middle half of some times lies apart, as a share of their median; 0 for a single one. */
export function noiseOf(times: readonly number[]): number {
  const sorted = [...times].sort((a, b) => a - b)
  const at = (share: number): number => sorted[Math.round(share * (sorted.length - 1))]!
  return (at(0.75) - at(0.25)) / median([...times])
}
