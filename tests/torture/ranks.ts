/**
 * Ranks of runs of several processes are killed and stopped at moments that a seed draws: nothing may be left of the run, what is said must
 * name the rank, and the run must go on to the bits of one that was left alone.
 */
import { readFileSync, rmSync } from 'node:fs'
import { join } from 'node:path'

import { files } from '../../src/run/runFolder.js'
import { Random } from '../../src/tensor/random.js'
import { isAlive, launch, type Launched, ranksOf, stepsTaken, tiny } from '../support/launch.js'
import type { Row, TortureOptions } from './torture.js'

const signals = ['SIGKILL', 'SIGSTOP', 'SIGSEGV', 'SIGABRT'] as const
const widths = [2, 4] as const
const [epochs, stepsOfEpoch] = [6, 4]
/** Seconds within which all must be gone. */
const limit = 30

const pause = (seconds: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, 1000 * seconds))

const start = (processes: number, ...args: string[]): Launched => launch(['--processes', String(processes), '--', 'pretrain', ...args])

const begin = (processes: number, out: string): Launched => start(processes, ...tiny, `epochs=${epochs}`, 'knnEvery=2', '--out', out)

/** What is wrong with how a run goes on; `whole` is the backbone of one that was left alone. */
async function goesOn(processes: number, out: string, whole: Buffer): Promise<string | undefined> {
  const { code, out: said, err } = await start(processes, '--resume', '--out', out).ended
  if (code !== 0) return `does not go on: exit code ${code}\n${said}${err}`
  return readFileSync(files(out).backbone).equals(whole) ? undefined : `goes on to other bits\n${said}`
}

/** Rounds until `kills` ranks were hit; a row for each signal. */
export async function hurtRanks({ kills, seed, folder, say = () => undefined }: TortureOptions): Promise<Row[]> {
  const random = new Random(seed)
  const rows = signals.map((what): Row => ({ what: `${what} to a rank`, rounds: 0, kills: 0, missed: 0, wrong: [] }))
  const wholes = new Map<number, Buffer>()
  for (const processes of widths) {
    const out = join(folder, `whole ${processes}`)
    const { code, out: said, err } = await begin(processes, out).ended
    if (code !== 0) throw new Error(`${processes} processes: exit code ${code}\n${said}${err}`)
    wholes.set(processes, readFileSync(files(out).backbone))
  }
  const out = join(folder, 'round')
  while (rows.reduce((sum, row) => sum + row.kills, 0) < kills) {
    const which = random.below(signals.length)
    const [row, processes] = [rows[which]!, widths[random.below(widths.length)]!]
    const rank = random.below(processes)
    const [step, later] = [1 + random.below(epochs * stepsOfEpoch - 2), 0.3 * random.uniform()]
    const what = `${signals[which]} to rank ${rank} of ${processes}, ${later.toFixed(2)} s after step ${step}`
    const { problem, seconds, missed } = await hurt({ processes, rank, step, later, signal: signals[which]!, out })
    row.rounds += 1
    if (missed) row.missed += 1
    else row.kills += 1
    const wrong = problem ?? (missed ? undefined : await goesOn(processes, out, wholes.get(processes)!))
    if (wrong !== undefined) row.wrong.push(`${what}: ${wrong}`)
    say(`${what}: ${missed ? 'too late' : `all gone after ${seconds.toFixed(1)} s`}${wrong === undefined ? '' : `, WRONG ${wrong}`}`)
    rmSync(out, { recursive: true, force: true })
  }
  return rows
}

interface Blow {
  processes: number
  rank: number
  /** The signal comes `later` seconds after this step's loss was written. */
  step: number
  later: number
  signal: NodeJS.Signals
  out: string
}

async function hurt({ processes, rank, step, later, signal, out }: Blow): Promise<{ problem?: string; seconds: number; missed: boolean }> {
  const run = begin(processes, out)
  let over = false
  void run.ended.then(() => (over = true))
  while (!over && stepsTaken(out) < step) await pause(0.01)
  const ranks = ranksOf(run)
  await pause(later)
  const pid = ranks[rank]
  if (over || pid === undefined || !isAlive(pid)) {
    const { code, err } = await run.ended
    return { seconds: 0, missed: true, ...(code === 0 ? {} : { problem: `ended before: exit code ${code}\n${err}` }) }
  }
  const from = performance.now()
  process.kill(pid, signal)
  const { code, out: said, err } = await run.ended
  const seconds = (performance.now() - from) / 1000
  const named = [...err.matchAll(/^densecl: (?:rank \d+: )?(rank \d+ \(\S+, pid \d+\)) /gm)].map(([, name]) => name!)
  const isRank = (name: string): boolean => name.startsWith(`rank ${rank} (`) && name.endsWith(` pid ${pid})`)
  const left = ranks.filter(isAlive)
  const problems = [
    ...(code === 0 ? ['the exit code is 0'] : []),
    ...(seconds > limit ? [`it took ${seconds.toFixed(1)} s`] : []),
    ...(left.length > 0 ? [`left are ${left.join(', ')}`] : []),
    ...(named.some(isRank) ? [] : ['nobody names the rank']),
    ...(named.every(isRank) ? [] : ['another rank is named']),
  ]
  return { seconds, missed: false, ...(problems.length === 0 ? {} : { problem: `${problems.join('; ')}\n${said}${err}` }) }
}
