/**
 * Options as one flat table: a key of a YAML file, `key=value` and a flag `--key` are the same thing (camelCase and kebab-case both
 * work). A row is a zod schema with a default, a description for --help, and `free` where a run that is resumed may change it.
 */
import { LineCounter, parseDocument } from 'yaml'
import { z } from 'zod'

import { readText } from '../files/look.js'
import { DenseclError, fail } from '../tensor/errors.js'

/** Rows by camelCase name. */
export type OptionTable = Readonly<Record<string, z.ZodType>>

/** The values of a table. */
export type OptionValues<O extends OptionTable> = { [K in keyof O]: z.output<O[K]> }

/** Marks a row as one that does not change what a run computes: resuming may change it. */
export const free = <R extends z.ZodType>(row: R): R => row.meta({ freeOnResume: true })
export const isFree = (row: z.ZodType): boolean => row.meta()?.freeOnResume === true

/** Where a value came from, for messages: a file and line, a flag, `key=value`, a preset. */
export interface Setting {
  key: string
  value: unknown
  from: string
}

/** An object's entries as settings. */
export const settingsOf = (values: Readonly<Record<string, unknown>>, from: string): Setting[] =>
  Object.entries(values).map(([key, value]) => ({ key, value, from }))

/** The values of `table` by `settings`, of which later ones win. Unknown keys and wrong values are all reported at once. */
export function resolveOptions<O extends OptionTable>(table: O, settings: readonly Setting[]): OptionValues<O> {
  const values: Record<string, unknown> = {}
  const origin: Record<string, string> = {}
  const problems: string[] = []
  for (const { key, value, from } of settings) {
    const known = optionKey(table, key)
    if (known === undefined) {
      problems.push(`${from}: unknown option ${key} (did you mean ${nearest(key, Object.keys(table))}?)`)
      continue
    }
    values[known] = value
    origin[known] = from
  }
  // The schema is used once: compiling it would take longer than it does.
  const result = z.strictObject(table).safeParse(values, { jitless: true })
  if (!result.success) {
    for (const issue of result.error.issues) {
      const key = String(issue.path[0])
      problems.push(`${origin[key] ?? 'configuration'}: ${key} is ${JSON.stringify(values[key])}: ${issue.message}`)
    }
  }
  if (problems.length > 0) throw new DenseclError('CONFIG', problems.join('\n'))
  return result.data as OptionValues<O>
}

/** The first thing that is wrong with a value, and its place in it. */
export const firstIssue = ({ issues }: z.ZodError): string => [...issues[0]!.path.map(String), issues[0]!.message].join(': ')

/** The defaults of a table. */
export const defaultsOf = <O extends OptionTable>(table: O): OptionValues<O> => resolveOptions(table, [])

const camelCase = (key: string): string => key.replace(/-([a-z0-9])/g, (_, letter: string) => letter.toUpperCase())
export const kebabCase = (key: string): string => key.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)

/** The table's name of a key in either spelling. */
export function optionKey(table: OptionTable, key: string): string | undefined {
  const known = camelCase(key)
  return Object.hasOwn(table, known) ? known : undefined
}

/** A number that people write and JSON has not: .5, 5. and +1. */
const looseNumber = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i

/**
 * The value of a flag or of key=value for `row`: JSON where it is JSON (numbers, true, [0.2, 1], null) that the row takes or that
 * the text itself would not do better, else the text: a folder named 2024 is no number.
 */
export function parseValue(text: string, row?: z.ZodType): unknown {
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch {
    if (!looseNumber.test(text)) return text
    value = Number(text)
  }
  return row !== undefined && !row.safeParse(value).success && row.safeParse(text).success ? text : value
}

/** `key=value` as a setting of `table`. */
export function keyValue(table: OptionTable, text: string): Setting {
  const at = text.indexOf('=')
  if (at < 1) fail('CONFIG', `${text}: expected key=value (did you mean ${nearest(text, Object.keys(table))}=...?)`)
  const key = text.slice(0, at)
  const known = optionKey(table, key)
  return { key, value: parseValue(text.slice(at + 1), known === undefined ? undefined : table[known]), from: text }
}

/** The settings of a YAML file; errors name the file and line. */
export function readConfigFile(path: string): Setting[] {
  const text = readText(path, 'CONFIG')
  const lines = new LineCounter()
  const document = parseDocument(text, { lineCounter: lines })
  if (document.errors[0] !== undefined) fail('CONFIG', `${path}: ${document.errors[0].message}`)
  let values: unknown
  try {
    values = document.toJS()
    JSON.stringify(values) // throws where an alias holds itself
  } catch (error) {
    return fail('CONFIG', `${path}: ${(error instanceof Error ? error.message : String(error)).split('\n')[0]}`)
  }
  if (values === null) return []
  if (typeof values !== 'object' || Array.isArray(values)) return fail('CONFIG', `${path}: expected a map of options`)
  return Object.entries(values as Record<string, unknown>).map(([key, value]) => {
    const { items = [] } = document.contents as unknown as {
      items?: { key: { value?: unknown; range: [number, number, number] } | null }[]
    }
    const node = items.find((item) => item.key?.value === key)
    return { key, value, from: `${path} line ${node === undefined ? '?' : lines.linePos(node.key!.range[0]).line}` }
  })
}

/** The row of a table that `word` names. Throws CONFIG, with all names and the nearest, where there is none. */
export function entryOf<T>(option: string, word: string, table: Readonly<Record<string, T>>): T {
  const names = Object.keys(table)
  return Object.hasOwn(table, word)
    ? table[word]!
    : fail('CONFIG', `${option} is ${word}: expected one of ${names.join(', ')} (did you mean ${nearest(word, names)}?)`)
}

/** The candidate that begins with the word, else the one with the smallest edit distance. */
export function nearest(word: string, candidates: readonly string[]): string {
  const distance = (a: string, b: string): number => {
    let row = Array.from({ length: b.length + 1 }, (_, j) => j)
    for (let i = 1; i <= a.length; ++i) {
      const next = [i]
      for (let j = 1; j <= b.length; ++j) next.push(Math.min(row[j]! + 1, next[j - 1]! + 1, row[j - 1]! + Number(a[i - 1] !== b[j - 1])))
      row = next
    }
    return row[b.length]!
  }
  const begun = candidates.find((candidate) => candidate.startsWith(camelCase(word)))
  return begun ?? [...candidates].sort((a, b) => distance(camelCase(word), a) - distance(camelCase(word), b))[0]!
}
