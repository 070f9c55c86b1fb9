/**
 * What a step costs that two processes share, on the CPU: sides in turn, round after round, each in processes of their own.
 *   alone, echo  on one core a process of one thread with half of the batch: alone, and with another that answers at once
 *   one          a process of two threads
 *   halves       two processes of one thread that exchange nothing, each with half of the batch
 *   two, beside, behind  two processes of one thread, by MPI: gradients as a run exchanges them, beside the backward pass, and behind it
 * Usage: processes.js [--cases resnet18,resnet50] [--sides LIST] [--rounds N] [--rows FILE] [--save FILE]. `--rows` gets a JSON line for
 * each row, and those that it had count too.
 */
import { spawnSync } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { parseArgs } from 'node:util'

import { appendRow, environmentRow, median, writeResult } from '../../src/bench/result.js'
import { findMpirun } from '../../src/distributed/mpirun.js'
import { fail } from '../../src/tensor/errors.js'
import { mpiAddonPath, packageRoot } from '../../src/tensor/addon.js'
import type { StepRow } from './steps.js'

const mpirun = findMpirun() ?? fail('TOOL', 'mpirun was not found: expected that of Open MPI or MPICH')

const cases = {
  resnet18: { name: 'resnet18-64px-batch32-queue4096', batch: 32, flags: '--depth 18 --image 64 --queue 4096 --hidden 512 --steps 10' },
  resnet50: { name: 'resnet50-224px-batch8-queue4096', batch: 8, flags: '--depth 50 --image 224 --queue 4096 --hidden 2048 --steps 3' },
} as const

/** What starts a side, the share of the batch that it is told of, the flags of densecl.js, and the share that its processes compute. */
interface Side {
  command: readonly string[]
  share: number
  flags: string
  computes: number
}
const oneCore = ['taskset', '-c', '0']
const two = [mpirun.program, '-n', '2', ...mpirun.options]
const sides: Record<string, Side> = {
  alone: { command: oneCore, share: 1 / 2, flags: '--groups 1 --threads 1', computes: 1 / 2 },
  echo: { command: oneCore, share: 1, flags: '--groups 2 --threads 1 --group echo', computes: 1 / 2 },
  one: { command: [], share: 1, flags: '--groups 2 --threads 2', computes: 1 },
  halves: { command: two, share: 1 / 2, flags: '--groups 1 --threads 1', computes: 1 },
  two: { command: two, share: 1, flags: '--groups 2 --threads 1 --group shared', computes: 1 },
  beside: { command: two, share: 1, flags: '--groups 2 --threads 1 --group beside', computes: 1 },
  behind: { command: two, share: 1, flags: '--groups 2 --threads 1 --group behind', computes: 1 },
}

interface Row extends StepRow {
  case: string
  side: string
}

function measured(name: keyof typeof cases, side: string): Row {
  const { batch, flags, name: shape } = cases[name]
  const { command, share, flags: own } = sides[side]!
  const program = join(packageRoot, 'dist', 'bench', 'steps', 'densecl.js')
  const [first, ...rest] = [...command, process.execPath, program, ...flags.split(' '), ...own.split(' '), '--batch', `${batch * share}`]
  const env = { ...process.env, DENSECL_ADDON: process.env.DENSECL_ADDON ?? mpiAddonPath }
  const { stdout, stderr, status } = spawnSync(first, rest, { encoding: 'utf8', env })
  if (status !== 0) throw new Error(`${shape} ${side}: ${stderr}`)
  // Of processes that know nothing of each other the slower says its last.
  return { case: shape, side, ...(JSON.parse(stdout.trim().split('\n').at(-1)!) as StepRow) }
}

/** The median step of each round, as the rounds came, and what that of all is worth. */
function summary(rows: readonly Row[]): Record<string, unknown>[] {
  return Object.values(cases).map(({ name, batch }) => {
    const here = rows.filter((row) => row.case === name)
    return {
      name,
      rows: [...new Set(here.map(({ side }) => side))].map((side) => {
        const own = here.filter((row) => row.side === side)
        const times = own.map(({ seconds }) => 1000 * seconds)
        const pairsPerSecond = (1000 * batch * sides[side]!.computes) / median(times)
        return { side, milliseconds: times, pairsPerSecond, loss: own[0]!.loss }
      }),
    }
  })
}

const text = { type: 'string' } as const
const { values: flags } = parseArgs({
  options: {
    cases: { ...text, default: Object.keys(cases).join(',') },
    sides: { ...text, default: Object.keys(sides).join(',') },
    rounds: { ...text, default: '3' },
    rows: text,
    save: text,
  },
})
const asked = (flag: 'cases' | 'sides', known: object): string[] => {
  const words = flags[flag].split(',')
  for (const word of words) if (!(word in known)) fail('CONFIG', `--${flag} has ${word}: expected some of ${Object.keys(known).join(', ')}`)
  return words
}
const [askedCases, askedSides] = [asked('cases', cases) as (keyof typeof cases)[], asked('sides', sides)]
const before = flags.rows !== undefined && existsSync(flags.rows) ? readFileSync(flags.rows, 'utf8').trim().split('\n') : []
const rows = before.map((line) => JSON.parse(line) as Row)
for (let round = 0; round < Number(flags.rounds); ++round)
  for (const name of askedCases)
    for (const side of askedSides) {
      const row = measured(name, side)
      rows.push(row)
      if (flags.rows !== undefined) appendRow(flags.rows, row)
      console.log(`${row.case}  ${side.padEnd(8)} ${(1000 * row.seconds).toFixed(1)} ms a step, loss ${row.loss.toFixed(6)}`)
    }
if (flags.save !== undefined)
  writeResult(flags.save, { ...environmentRow(), bench: 'processes', mpi: mpirun.version, cases: summary(rows) })
