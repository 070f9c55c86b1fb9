/** What a study is to show and how, written into its folder before its first step; it may grow, not change. */
import { existsSync } from 'node:fs'
import { join } from 'node:path'

import { stringify } from 'yaml'
import { z } from 'zod'

import { makeFolder, writeTextAtomic } from '../files/atomic.js'
import { readConfigFile } from '../run/options.js'
import { firstIssue } from '../tensor/issues.js'
import { checkSame } from '../run/results.js'
import { fail } from '../tensor/errors.js'
import { packageVersion } from '../tensor/addon.js'

/** What counts as a result, in words. */
export const winRule =
  'a dense arm wins where, on every primary measure, it is ahead of every control in every seed, and the 95 % interval of the paired ' +
  "differences (Student's t over seeds, not corrected for the number of comparisons) lies above 0"

const schema = z.object({
  begun: z.string(),
  densecl: z.string(),
  size: z.string(),
  /** Settings of all arms that the command line gave. */
  settings: z.array(z.string()),
  /** What the settings of all arms come to, and what each arm sets over them. */
  config: z.record(z.string(), z.unknown()),
  arms: z.record(z.string(), z.object({ describe: z.string(), sets: z.record(z.string(), z.unknown()) })),
  seeds: z.int(),
  data: z.record(z.string(), z.unknown()),
  primary: z.array(z.string()),
  secondary: z.array(z.string()),
  win: z.string(),
  /** When something was added to it, and what. */
  added: z.array(z.object({ date: z.string(), what: z.string() })),
})
export type StudyPlan = z.output<typeof schema>

export const planPath = (out: string): string => join(out, 'plan.yaml')

/**
 * Writes the plan of a study that begins, or compares it with that of one that goes on, to which seeds, arms and secondary measures may be
 * added; the plan as it is then. Throws CONFIG for any other difference.
 */
export function keepPlan(out: string, wanted: Omit<StudyPlan, 'begun' | 'densecl' | 'win' | 'added'>): StudyPlan {
  const path = planPath(out)
  const now = new Date().toISOString()
  const fresh = { begun: now, densecl: packageVersion, ...wanted, win: winRule, added: [] }
  if (!existsSync(path)) {
    makeFolder(out)
    return write(path, fresh)
  }
  const had = readPlan(path)
  const steady = ({ size, settings, config, data, primary }: Omit<StudyPlan, 'begun' | 'densecl' | 'win' | 'added'>) =>
    JSON.parse(JSON.stringify({ size, settings, config, data, primary })) as Record<string, unknown>
  checkSame(path, steady(had), steady(wanted))
  for (const [name, { sets }] of Object.entries(had.arms)) {
    const own =
      wanted.arms[name] ?? fail('CONFIG', `${path}: the study has the arm ${name}: expected it in --arms, which may only add some`)
    checkSame(path, sets, own.sets)
  }
  if (wanted.seeds < had.seeds)
    fail('CONFIG', `${path}: the study has ${had.seeds} seeds, and now ${wanted.seeds}: expected as many or more`)
  const lost = had.secondary.filter((name) => !wanted.secondary.includes(name))
  if (lost.length > 0) fail('CONFIG', `${path}: the study measures ${lost.join(', ')}: expected --also as before, or more`)
  const more = (name: string, list: readonly string[]): string[] => (list.length === 0 ? [] : [`${name} ${list.join(', ')}`])
  const added = [
    ...(wanted.seeds > had.seeds ? [`seeds ${had.seeds} to ${wanted.seeds - 1}`] : []),
    ...more(
      'arms',
      Object.keys(wanted.arms).filter((name) => had.arms[name] === undefined),
    ),
    ...more(
      'measures',
      wanted.secondary.filter((name) => !had.secondary.includes(name)),
    ),
  ]
  if (added.length === 0) return had
  const grown = { seeds: wanted.seeds, arms: wanted.arms, secondary: wanted.secondary }
  return write(path, { ...had, ...grown, added: [...had.added, { date: now, what: added.join('; ') }] })
}

function write(path: string, plan: StudyPlan): StudyPlan {
  writeTextAtomic(path, `# What this study is to show and how, written before its first step (docs/study.md).\n${stringify(plan)}`)
  return plan
}

/** The plan in a file. Throws CONFIG where it is none. */
export function readPlan(path: string): StudyPlan {
  const { data, error } = schema.safeParse(Object.fromEntries(readConfigFile(path).map(({ key, value }) => [key, value])))
  return data ?? fail('CONFIG', `${path}: no plan of a study (${firstIssue(error)}); choose another --out`)
}
