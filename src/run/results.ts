/** What evaluations write: tables that people read, that machines read, and that the report of a run collects. */
import { existsSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { basename, dirname, extname, join } from 'node:path'

import { z } from 'zod'

import { fail } from '../tensor/errors.js'
import { packageVersion } from '../tensor/addon.js'
import { makeFolder, removeLeftovers, writeTextAtomic } from '../files/atomic.js'
import { FileLock, untilSure } from '../files/lock.js'
import { namesIn } from '../files/look.js'
import { largest } from '../tensor/numbers.js'
import { called } from '../tensor/settingNames.js'
import { isMap, readConfigFile } from './options.js'

const evaluationTable = z
  .object({
    title: z.string(),
    columns: z.array(z.string()),
    rows: z.array(z.array(z.union([z.string(), z.number(), z.null().transform(() => '-')]))),
    /** What a reader must know: the protocol, what deviates from it, what was left out. */
    notes: z.array(z.string()),
  })
  .refine(({ columns, rows }) => rows.every((row) => row.length === columns.length), 'a row has not as many cells as there are columns')
export type EvaluationTable = z.output<typeof evaluationTable>

const savedTable = z.object({ date: z.string(), table: evaluationTable })

/** The folder of the run that a file of weights belongs to; undefined for a file from elsewhere. */
const runOfWeights = (weights: string): string | undefined =>
  [dirname(weights), dirname(dirname(weights))].find((folder) => existsSync(join(folder, 'config.yaml')))

/** The side of the images that a file of weights was trained on; undefined where that is not said. Throws CONFIG. */
export function imageSizeOfRun(weights: string): number | undefined {
  const run = runOfWeights(weights)
  if (run === undefined) return undefined
  const value = readConfigFile(join(run, 'config.yaml')).find(({ key }) => key === 'imageSize')?.value
  return typeof value === 'number' && Number.isInteger(value) && value >= 1 ? value : undefined
}

/** The folder of evaluations of the run that a file of weights belongs to; a folder of its own for a file from elsewhere. */
export function evaluationFolder(weights: string): string {
  const run = runOfWeights(weights)
  return run === undefined ? join(dirname(weights), `${basename(weights, extname(weights))}.eval`) : join(run, 'eval')
}

/**
 * Makes the working folder of an evaluation that takes long, for one process at a time, until the lock is released. A folder that holds a
 * state is an error unless it is continued or replaced. Throws RUN for that, and where an evaluation that is alive has the folder.
 */
export function claimEvaluation(
  folder: string,
  { resume = false, overwrite = false }: { resume?: boolean; overwrite?: boolean },
): FileLock {
  makeFolder(folder)
  const lock = new FileLock(evaluationLock(folder))
  const holder = lock.take()
  if (holder !== undefined)
    fail(
      'RUN',
      `${folder}: process ${holder.pid} on ${holder.host} writes its evaluation there since ${holder.since}; wait for its end, stop it, ` +
        'or choose another --out',
    )
  if (!resume) {
    try {
      checkClaimable(folder, { overwrite })
    } catch (error) {
      lock.release()
      throw error
    }
    // One that was killed before its first state has a log and pictures all the same.
    if (readEvaluationRecord(folder) !== undefined || existsSync(statePath(folder))) {
      for (const name of readdirSync(folder).filter((file) => ofEvaluation.test(file))) rmSync(join(folder, name), { recursive: true })
      rmSync(`${folder}.json`, { force: true })
    }
  }
  removeLeftovers(folder)
  return lock
}

/**
 * Throws what the beginning of an evaluation in this folder would: RUN where it holds a state that is neither continued nor replaced,
 * CHECKPOINT where it has none to continue. For who has long work to do before that.
 */
export function checkClaimable(folder: string, { resume = false, overwrite = false }: { resume?: boolean; overwrite?: boolean }): void {
  const state = statePath(folder)
  if (existsSync(state) && !resume && !overwrite)
    fail('RUN', `${folder} holds an evaluation already; continue it with --resume, replace it with --overwrite, or choose another --out`)
  if (!existsSync(state) && resume) fail('CHECKPOINT', `${state}: there is no checkpoint to resume from`)
}

/** What an evaluation leaves in its folder beside the lock. */
const ofEvaluation =
  /^((state|detector|classifier)\.safetensors|evaluation\.json|detections\.json|metrics\.jsonl|samples\.\w+|pictures|events\..*)$/

/** Says who writes an evaluation into its working folder. */
export const evaluationLock = (folder: string): string => join(folder, 'eval.lock')

/** Waits until claimEvaluation() knows whether who has the folder is alive. */
export const untilClaimable = (folder: string): Promise<void> => untilSure(evaluationLock(folder))

export const statePath = (folder: string): string => join(folder, 'state.safetensors')

/** The folder of pictures that an evaluation leaves on its way, and those of a position, without extension. */
export const picturesOfEvaluation = (folder: string): string => join(folder, 'pictures')
export const pictureAt = (folder: string, position: number): string =>
  join(picturesOfEvaluation(folder), `at_${String(position).padStart(6, '0')}`)

const evaluationRecord = z.object({
  /** Which evaluation it is, such as detection. */
  kind: z.string(),
  /** What it counts, such as iteration: the rows of its metrics have the count as globalStep. */
  unit: z.string(),
  /** What it was begun with. */
  began: z.record(z.string(), z.unknown()),
})
/** What the folder of an evaluation says of it. */
export type EvaluationRecord = z.output<typeof evaluationRecord>

/** Writes down what an evaluation is, for who looks at its folder. */
export const writeEvaluationRecord = (folder: string, record: EvaluationRecord): void =>
  writeTextAtomic(join(folder, 'evaluation.json'), `${JSON.stringify(record, undefined, 2)}\n`)

/** What the evaluation of a folder is; undefined where that is not said, or cannot be read. */
export function readEvaluationRecord(folder: string): EvaluationRecord | undefined {
  try {
    return evaluationRecord.safeParse(JSON.parse(readFileSync(join(folder, 'evaluation.json'), 'utf8'))).data
  } catch {
    return undefined // not there, or being written
  }
}

/** Throws CONFIG where what an evaluation was begun with, by the file `path`, is not what it is to be continued with. */
export function checkSame(path: string, began: Record<string, unknown>, now: Record<string, unknown>): void {
  const changes = changesOf(began, now)
  if (changes.length > 0) fail('CONFIG', `resume: ${path}: ${changes.join('; ')}; start a new evaluation for that`)
}

/** What settings were and are now, those of maps one by one, in words. */
export function changesOf(began: Record<string, unknown>, now: Record<string, unknown>, within = ''): string[] {
  return [...new Set([...Object.keys(began), ...Object.keys(now)])].flatMap((key) => {
    const [was, is] = [began[key], now[key]]
    if (isMap(was) && isMap(is)) return changesOf(was, is, `${within}${key}.`)
    const [before, after] = [JSON.stringify(was), JSON.stringify(is)]
    return before === after ? [] : [`${called(within + key)} was ${before} and is now ${after}`]
  })
}

const cell = (value: string | number): string => (typeof value === 'number' && !Number.isInteger(value) ? value.toFixed(2) : String(value))

/** Header and rows as text. */
export const tableCells = ({ columns, rows }: EvaluationTable): string[][] => [columns, ...rows.map((row) => row.map(cell))]

/** A share as percents; a dash where there is none. */
export const percent = (share: number): string => (Number.isNaN(share) ? '-' : (100 * share).toFixed(2))

export function tableText(table: EvaluationTable): string {
  const { title, columns, notes } = table
  const cells = tableCells(table)
  const widths = columns.map((_, c) => largest(cells.map((row) => row[c]!.length)))
  const lines = cells.map((row) =>
    row
      .map((text, c) => (c === 0 ? text.padEnd(widths[c]!) : text.padStart(widths[c]!)))
      .join('  ')
      .trimEnd(),
  )
  return [title, ...lines, ...notes.map((note) => `- ${note}`)].join('\n')
}

/** Writes `<folder>/<name>.json`: the table, and all numbers that it was made of. */
export function saveResult(folder: string, name: string, table: EvaluationTable, result: Record<string, unknown>): string {
  makeFolder(folder)
  removeLeftovers(folder)
  const path = join(folder, `${name}.json`)
  writeTextAtomic(
    path,
    `${JSON.stringify({ name, densecl: packageVersion, date: new Date().toISOString(), table, result }, undefined, 2)}\n`,
  )
  return path
}

/** The tables of a run's evaluations, by name. */
export function savedTables(folder: string): { name: string; date: string; table: EvaluationTable }[] {
  return namesIn(folder)
    .filter((name) => name.endsWith('.json'))
    .flatMap((name) => {
      try {
        const { data } = savedTable.safeParse(JSON.parse(readFileSync(join(folder, name), 'utf8')))
        return data === undefined ? [] : [{ name: name.slice(0, -'.json'.length), ...data }]
      } catch {
        return [] // being written, or somebody else's
      }
    })
}
