/** Where the rows of a log go beside metrics.jsonl: tags that group them, a file, or a function of the user's own. */
import { existsSync } from 'node:fs'
import { extname } from 'node:path'

import { appendWhole } from '../files/atomic.js'
import { defaultExport, isModulePath } from '../files/module.js'
import { fail } from '../tensor/errors.js'
import { called } from '../tensor/settingNames.js'

/** A row of metrics.jsonl for other programs. */
export interface LogRecord {
  /** The run folder. */
  run: string
  /** Steps of the optimiser that were taken. */
  step: number
  /** Epochs that were passed, a fraction within one. */
  epoch?: number
  /** Numbers by tags such as loss/global; those that were not finite are NaN. */
  values: Record<string, number>
}

/** What `--log-to` calls with every record: the default export of a module may be one. A promise is waited for at the end of the run. */
export type LogTo = (record: LogRecord) => void | Promise<void>

const groups: readonly [group: string, keys: RegExp][] = [
  ['loss', /^loss|Loss$|^(anchor|region)(Class|Box)$|^mask$/],
  ['eval', /^(knn|correspondence|ap\d|cocoAp|maskAp|meanIou|top\d|heldOutTop)|Top\d$/],
  ['time', /^(imagesPerSecond|waitShare)$|Milliseconds$/],
  ['schedule', /^lr$/],
  ['memory', /^memory/],
]

/** The tag of a key of metrics.jsonl, in a group by what it is about; undefined for what counts the rows. */
export function tagOf(key: string): string | undefined {
  if (key === 'globalStep' || key === 'epoch') return undefined
  const group = groups.find(([, keys]) => keys.test(key))?.[0] ?? 'health'
  if (group !== 'loss') return `${group}/${key}`
  const term = key.replace(/^loss/, '')
  return `loss/${term === '' ? 'total' : term[0]!.toLowerCase() + term.slice(1)}`
}

/** A row of metrics.jsonl by tags. */
export const taggedValues = (row: Readonly<Record<string, number>>): Record<string, number> =>
  Object.fromEntries(
    Object.entries(row).flatMap(([key, value]) => {
      const tag = tagOf(key)
      return tag === undefined ? [] : [[tag, value]]
    }),
  )

const append = (path: string, lines: readonly string[]): void =>
  appendWhole(path, new TextEncoder().encode(lines.map((line) => `${line}\n`).join('')))

/** A record a line. */
const toJsonLines =
  (path: string): LogTo =>
  (record) =>
    append(path, [JSON.stringify(record)])

/** A number a line, as rows have not all the same numbers. */
const toCsv =
  (path: string): LogTo =>
  ({ run, step, epoch, values }) => {
    const quoted = `"${run.replaceAll('"', '""')}"`
    const lines = Object.entries(values).map(([tag, value]) => [quoted, step, epoch ?? '', tag, value].join(','))
    append(path, existsSync(path) ? lines : ['run,step,epoch,tag,value', ...lines])
  }

/** What `logTo` names: a .jsonl or .csv file, or a module whose default export is a LogTo. Throws CONFIG. */
export async function openLogTo(wanted: string | null): Promise<LogTo | undefined> {
  if (wanted === null) return undefined
  const extension = extname(wanted).toLowerCase()
  if (extension === '.jsonl') return toJsonLines(wanted)
  if (extension === '.csv') return toCsv(wanted)
  if (/\.[cm]?js$/.test(extension) && isModulePath(wanted)) {
    const exported = await defaultExport(called('logTo'), wanted)
    return typeof exported === 'function'
      ? (exported as LogTo)
      : fail('CONFIG', `${called('logTo')} is ${wanted}: expected its default export to be a function that takes a record`)
  }
  return fail(
    'CONFIG',
    `${called('logTo')} is ${wanted}: expected a .jsonl or .csv file, or the path of a JavaScript module (examples/logTo has one for ` +
      'MLflow and one for Weights & Biases)',
  )
}
