/**
 * `npm run torture -- [--kills N] [--seed S]`: hurts commands (tests/torture/torture.ts) and prints what was tried; with `--ranks` those of
 * runs of several processes alone (tests/torture/ranks.ts). `--soak [--steps N]`: a run of 100,000 tiny steps, in which nothing may grow.
 * Exit code 1 where anything is wrong; the seed that is printed does the same again.
 */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'

import { hasMpi, noMpi } from './support/mpi.js'
import { hurtRanks } from './torture/ranks.js'
import { growth, sampleLine, soak } from './torture/soak.js'
import { tableOf, Torture } from './torture/torture.js'

const number = { type: 'string' } as const
const options = {
  kills: { ...number, default: '100' },
  seed: number,
  steps: { ...number, default: '100000' },
  soak: { type: 'boolean' },
  ranks: { type: 'boolean' },
} as const

function parsed() {
  try {
    const { values } = parseArgs({ options })
    const whole = (name: 'kills' | 'steps' | 'seed', text: string): number => {
      if (/^\d{1,15}$/.test(text)) return Number(text)
      throw new Error(`--${name} is ${text}: expected a whole number`)
    }
    const { kills, steps, seed = String(Date.now() % 1_000_000_000) } = values
    return {
      kills: whole('kills', kills),
      steps: whole('steps', steps),
      seed: whole('seed', seed),
      soak: values.soak === true,
      ranks: values.ranks === true,
    }
  } catch (error) {
    console.error(
      `densecl: ${error instanceof Error ? error.message : String(error)}\n` +
        '  usage: torture [--kills N] [--seed S] [--ranks] [--soak [--steps N]]',
    )
    return process.exit(2)
  }
}
const flags = parsed()

const folder = mkdtempSync(join(tmpdir(), 'densecl-torture-'))
const say = (line: string): void => console.log(line)
const started = performance.now()
try {
  let wrong: string[]
  if (flags.soak) {
    const samples = await soak(flags.steps, folder, say)
    say(sampleLine(samples.at(-1)!))
    wrong = growth(samples).map((what) => `grows: ${what}`)
  } else {
    say(`seed ${flags.seed}`)
    const how = { kills: flags.kills, seed: flags.seed, folder, say }
    if (flags.ranks && !hasMpi) throw new Error(`--ranks: ${noMpi}`)
    const rows = flags.ranks ? await hurtRanks(how) : await new Torture(how).all()
    say(`\n${tableOf(rows)}`)
    wrong = rows.flatMap((row) => row.wrong.map((problem) => `${row.what}: ${problem}`))
  }
  for (const problem of wrong) console.error(`\nWRONG ${problem}`)
  const what = flags.soak ? `${flags.steps} steps` : `seed ${flags.seed}`
  say(`${what}: ${wrong.length} wrong, in ${((performance.now() - started) / 1000).toFixed(0)} s`)
  process.exitCode = wrong.length === 0 ? 0 : 1
} finally {
  rmSync(folder, { recursive: true, force: true })
}
