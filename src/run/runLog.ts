/** What a run writes down: metrics.jsonl, TensorBoard events, records for other programs, and the line that a person watches. */
import { existsSync } from 'node:fs'
import { join } from 'node:path'

import { z } from 'zod'

import { appendWhole, writeTextAtomic } from '../files/atomic.js'
import { readText } from '../files/look.js'
import { DenseclError } from '../tensor/errors.js'
import { called } from '../tensor/settingNames.js'
import { EventWriter } from './events.js'
import { isTerminal, LiveLine, styled } from './liveLine.js'
import { type LogTo, taggedValues } from './logTo.js'

export type Metrics = Record<string, number>

export class RunLog {
  readonly #folder: string | undefined
  readonly #metrics: string | undefined
  /** What logTo has not done yet. */
  #pending: Promise<void> = Promise.resolve()
  readonly #events: EventWriter | undefined
  readonly #live = isTerminal(process.stdout) ? new LiveLine(process.stdout) : undefined
  /** Files that could not be written once: each is warned of once. */
  readonly #left = new Set<string>()

  /**
   * Continues metrics.jsonl; rows of steps after `fromStep` were undone by going back to a checkpoint and are cut. Rows that cannot be
   * written, on a full disk say, are warned of once and left out, or with `throw`, where a result is made of them, throw WRITE. Without
   * a folder nothing is written.
   */
  constructor(
    folder: string | undefined,
    fromStep: number,
    readonly quiet: boolean,
    readonly onFailure: 'warn' | 'throw' = 'warn',
    /** Called with every record of a log that is written. */
    readonly logTo?: LogTo,
  ) {
    this.#folder = folder
    if (folder === undefined) return
    this.#metrics = join(folder, 'metrics.jsonl')
    if (existsSync(this.#metrics))
      writeTextAtomic(
        this.#metrics,
        readMetrics(this.#metrics)
          .filter((row) => row.globalStep! <= fromStep)
          .map((row) => `${JSON.stringify(row)}\n`)
          .join(''),
      )
    this.#events = new EventWriter(folder)
  }

  /** One row; what is not finite is written as null. */
  metrics(row: Metrics): void {
    const [path, events] = [this.#metrics, this.#events]
    if (path === undefined || events === undefined) return
    this.#write('rows of metrics', this.onFailure, () => appendWhole(path, new TextEncoder().encode(`${JSON.stringify(row)}\n`)))
    this.#write('events', 'warn', () => events.scalars(row.globalStep!, taggedValues(row)))
    this.#tell(row)
  }

  /** A function of the user's own must not end a run: what it throws is warned of once. */
  #tell({ globalStep, epoch, ...row }: Metrics): void {
    const { logTo } = this
    if (logTo === undefined) return
    const record = { run: this.#folder!, step: globalStep!, ...(epoch === undefined ? {} : { epoch }), values: taggedValues(row) }
    const failed = (error: unknown): void => {
      if (!this.#left.has('logTo'))
        this.warn(`${called('logTo')}: ${error instanceof Error ? error.message : String(error)}; the run goes on`)
      this.#left.add('logTo')
    }
    // One after the other, in their order.
    this.#pending = this.#pending.then(() => logTo(record)).catch(failed)
  }

  /** Waits for what logTo has begun. */
  finished(): Promise<void> {
    return this.#pending
  }

  #write(what: string, onFailure: 'warn' | 'throw', write: () => void): void {
    try {
      write()
    } catch (error) {
      if (onFailure === 'throw' || !(error instanceof DenseclError)) throw error
      if (!this.#left.has(what)) this.warn(`${error.message}; ${what} are left out while that is so`)
      this.#left.add(what)
    }
  }

  /** A line that stays. Where lines are not wanted, one that warns is heard on the error output. */
  line(text: string): void {
    const warning = /^warning (.*)/s.exec(text)?.[1]
    if (this.quiet) {
      if (warning !== undefined) this.warn(warning)
      return
    }
    this.#live?.clear()
    console.log(warning === undefined ? text : `${styled(process.stdout, 'yellow', 'warning')} ${warning}`)
  }

  /** What a person must know whatever output was asked for: on the error output, which is no part of a result. */
  warn(text: string): void {
    this.#live?.clear()
    console.error(`${styled(process.stderr, 'yellow', 'warning')} ${text}`)
  }

  /** The live line, the fields that are worth most first: rewritten on a terminal, printed whole at `plain` moments elsewhere. */
  progress(fields: readonly string[], plain: boolean): void {
    if (this.quiet) return
    if (this.#live !== undefined) this.#live.show(fields)
    else if (plain) console.log(fields.join('  '))
  }

  /** Takes the live line away: what is printed next is somebody else's. */
  close(): void {
    this.#live?.clear()
  }
}

/** A row names its step; null stands for what was not finite. */
const metricsRow = z
  .looseObject({ globalStep: z.number() })
  .transform((row): Metrics =>
    Object.fromEntries(
      Object.entries(row).flatMap(([key, value]) => (value === null ? [[key, NaN]] : typeof value === 'number' ? [[key, value]] : [])),
    ),
  )

/**
 * The rows of a metrics file, none where it is not there; a line that is none (half of one after a kill, a damaged one) is left out.
 * Throws FILE for one that cannot be read.
 */
export function readMetrics(path: string): Metrics[] {
  if (!existsSync(path)) return []
  const rows: Metrics[] = []
  for (const line of readText(path, 'FILE').split('\n')) {
    try {
      const { data } = metricsRow.safeParse(JSON.parse(line))
      if (data !== undefined) rows.push(data)
    } catch {
      continue
    }
  }
  return rows
}

/** Seconds as people say them, such as 2m07s. */
export function duration(seconds: number): string {
  const s = Math.max(0, Math.round(seconds))
  if (s < 60) return `${s}s`
  if (s < 3600) return `${Math.floor(s / 60)}m${String(s % 60).padStart(2, '0')}s`
  return `${Math.floor(s / 3600)}h${String(Math.floor((s % 3600) / 60)).padStart(2, '0')}m`
}
