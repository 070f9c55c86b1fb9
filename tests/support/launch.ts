/** Runs of several processes by `densecl launch`, as tests hurt them. */
import { type ChildProcess, spawn } from 'node:child_process'
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'

import * as assert from 'uvu/assert'

import { files } from '../../src/run/runFolder.js'
import { readMetrics } from '../../src/run/runLog.js'
import { type Ended, mpiEnvironment } from './mpi.js'
import { cli } from './suite.js'

/** Settings of runs of small steps that take long. */
export const tiny = [
  ...['data=scenes:64', 'imageSize=32', 'batchSize=16', 'normGroups=4', 'epochs=200'],
  ...['depth=18', 'baseChannels=4', 'hidden=8', 'featDim=8'],
  ...['queueLength=64', 'logEvery=1', 'workers=1', 'knnImages=20', 'knnData=scenes:20', 'checkpointSteps=1', 'checkpointEvery=1000'],
  ...['stopOnCollapse=false'],
]

export interface Launched {
  child: ChildProcess
  ended: Promise<Ended>
}

/** Starts `densecl launch`, with `env` beside the environment. */
export const launch = (args: readonly string[], env: NodeJS.ProcessEnv = {}): Launched => start(['launch', ...args], env)

/** Starts a command of `densecl`. */
export function start(args: readonly string[], env: NodeJS.ProcessEnv = {}): Launched {
  const child = spawn(process.execPath, [cli, ...args], { env: { ...mpiEnvironment, ...env } })
  let [out, err] = ['', '']
  child.stdout.on('data', (data: Buffer) => (out += data.toString().replaceAll('\r', '')))
  child.stderr.on('data', (data: Buffer) => (err += data.toString()))
  return { child, ended: new Promise((resolve) => child.on('close', (code) => resolve({ code, out, err }))) }
}

/** The processes that `parent` has started, and those that they have. */
function descendants(parent: number): { pid: number; command: string }[] {
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .flatMap((name) => {
      try {
        // The name of the program is in parentheses and may hold anything.
        const stat = readFileSync(join('/proc', name, 'stat'), 'utf8')
        if (Number(stat.slice(stat.lastIndexOf(')') + 4).split(' ')[0]) !== parent) return []
        const pid = Number(name)
        return [{ pid, command: readFileSync(join('/proc', name, 'cmdline'), 'utf8') }, ...descendants(pid)]
      } catch {
        return [] // It has ended.
      }
    })
}

export const isAlive = (pid: number): boolean => existsSync(`/proc/${pid}/cmdline`) && readFileSync(`/proc/${pid}/cmdline`, 'utf8') !== ''

export async function until(condition: () => boolean, seconds: number, what: string): Promise<void> {
  for (const limit = performance.now() + 1000 * seconds; !condition(); await new Promise((resolve) => setTimeout(resolve, 20)))
    if (performance.now() > limit) assert.unreachable(`${what} did not happen within ${seconds} s`)
}

/** Steps of which a run has written the losses. */
export const stepsTaken = (out: string): number => readMetrics(files(out).metrics).filter((row) => row.loss !== undefined).length

const rankOf = (pid: number): number =>
  Number(/(?<=(?:OMPI_COMM_WORLD|DENSECL|PMI)_RANK=)\d+/.exec(readFileSync(`/proc/${pid}/environ`, 'utf8'))?.[0])

/** The pids of the ranks of a command that `launch` runs, in their order. */
export const ranksOf = ({ child }: Launched, name = 'pretrain'): number[] =>
  descendants(child.pid!)
    .filter(({ command }) => command.includes(name) && command.startsWith(process.execPath))
    .map(({ pid }) => ({ pid, rank: rankOf(pid) }))
    .sort((a, b) => a.rank - b.rank)
    .map(({ pid }) => pid)

export interface Running extends Launched {
  /** The pids of the ranks. */
  ranks: number[]
  /** Those of all processes that launch has started, or that these have. */
  started: number[]
}

/** A run that is some steps on. */
export async function running(
  out: string,
  {
    processes = 2,
    env = {},
    settings = [],
    seconds = 120,
  }: { processes?: number; env?: NodeJS.ProcessEnv; settings?: string[]; seconds?: number } = {},
): Promise<Running> {
  const launched = launch(['--processes', String(processes), '--', 'pretrain', ...tiny, ...settings, '--out', out], env)
  await until(() => stepsTaken(out) > 2, seconds, 'a third step')
  const ranks = ranksOf(launched)
  assert.is(ranks.length, processes)
  return { ...launched, ranks, started: descendants(launched.child.pid!).map(({ pid }) => pid) }
}
