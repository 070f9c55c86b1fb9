/**
 * Options as one flat table: a key of a YAML file, `key=value` and a flag `--key` are the same thing (camelCase and kebab-case both
 * work). A row is a zod schema with a default, a description for --help, and `free` where a run that is resumed may change it. A dotted
 * key names an option with the section that it is in, as `optimizer.lr`, or an entry of a map or list, as `cropScale.0`.
 */
import { LineCounter, parseDocument } from 'yaml'
import { z } from 'zod'

import { isAddress } from '../data/addresses.js'
import { readText } from '../files/look.js'
import { DenseclError, fail } from '../tensor/errors.js'
import { didYouMean } from '../tensor/hint.js'
import { expectedOf } from '../tensor/issues.js'
import { taken } from './expected.js'

/** Rows by camelCase name. */
export type OptionTable = Readonly<Record<string, z.ZodType>>

/** The values of a table. */
export type OptionValues<O extends OptionTable> = { [K in keyof O]: z.output<O[K]> }

/** Marks a row as one that does not change what a run computes: resuming may change it. */
export const free = <R extends z.ZodType>(row: R): R => row.meta({ freeOnResume: true })
export const isFree = (row: z.ZodType): boolean => row.meta()?.freeOnResume === true

/** Puts rows into a section: a group of --help, and what may precede their names. */
export const section = <O extends OptionTable>(name: string, rows: O): O =>
  Object.fromEntries(Object.entries(rows).map(([key, row]) => [key, row.meta({ section: name })])) as O
/** The section of a row; undefined for one that is in none. */
export const sectionOf = (row: z.ZodType): string | undefined => row.meta()?.section as string | undefined

/** A row less its default and that it may be null. */
const typeOf = (row: z.ZodType): z.ZodType =>
  row instanceof z.ZodDefault || row instanceof z.ZodNullable ? typeOf(row.unwrap() as z.ZodType) : row

/** The values that a row takes where they are few; empty otherwise. */
export function choicesOf(row: z.ZodType): string[] {
  const type = typeOf(row)
  if (type instanceof z.ZodEnum) return Object.values(type.enum).map(String)
  if (type instanceof z.ZodLiteral) return [...type.values].map(String)
  return type instanceof z.ZodBoolean ? ['true', 'false'] : []
}

/** A value, and for messages where it came from: a file and line, a flag, `key=value`, a preset. */
export interface Setting {
  key: string
  value: unknown
  from: string
  /** Name and value as a command line has them, for messages: what `from` says of them is not needed then. */
  typed?: string
}

/** An object's entries as settings. */
export const settingsOf = (values: Readonly<Record<string, unknown>>, from: string): Setting[] =>
  Object.entries(values).map(([key, value]) => ({ key, value, from }))

/** The values of `table` by `settings`, of which later ones win. Unknown keys and wrong values are all reported at once. */
export function resolveOptions<O extends OptionTable>(table: O, settings: readonly Setting[]): OptionValues<O> {
  const values: Record<string, unknown> = {}
  /** Of each value that is set, what a message that it is wrong begins with. */
  const origin: Record<string, string> = {}
  const problems: string[] = []
  for (const { key, value, from, typed } of settings.flatMap((setting) => partsOf(table, setting))) {
    const place = placeOf(table, key)
    if (place === undefined) {
      problems.push(`${from}: unknown option ${key}${didYouMean(key, Object.keys(table))}`)
      continue
    }
    const { option, path } = place
    // A program's key without a value is one that is not given.
    if (value === undefined && path.length === 0) continue
    const before: unknown = values[option] ?? table[option]!.safeParse(undefined).data
    const whole = path.length === 0 ? value : withEntry(before, path, value)
    if (whole === undefined) {
      const what = typeof before === 'object' ? `the option ${option} has no ${path.join('.')}` : `unknown option ${key}`
      problems.push(`${from}: ${what}${didYouMean(key, Object.keys(table))}`)
      continue
    }
    values[option] = whole
    origin[option] = path.length === 0 && typed !== undefined ? typed : `${from}: ${path.length === 0 ? key : option} is ${shown(whole)}`
  }
  // The schema is used once: compiling it would take longer than it does.
  const result = z.strictObject(table).safeParse(values, { jitless: true, error: () => unsaid })
  if (!result.success) {
    // Of a list with several wrong entries all is said by one.
    const wrong = new Map(result.error.issues.map((issue) => [String(issue.path[0]), issue]))
    for (const [key, issue] of wrong) {
      const expected = (issue.code === 'custom' ? undefined : taken(table[key]!)) ?? expectedOf(issue)
      problems.push(
        `${origin[key] ?? key}: ${issue.message === unsaid ? `expected ${expected}${hintOf(table[key]!, values[key])}` : issue.message}`,
      )
    }
  }
  if (problems.length > 0) throw new DenseclError('CONFIG', problems.join('\n'))
  return result.data as OptionValues<O>
}

/** The message of an issue for which its schema has no words of its own. */
const unsaid = ' '

/** A value in a message. */
function shown(value: unknown): string {
  if (typeof value === 'number' || typeof value === 'bigint' || typeof value === 'symbol') return String(value)
  try {
    const text = JSON.stringify(value, (_, part: unknown) => (typeof part === 'number' && !Number.isFinite(part) ? String(part) : part))
    return text === undefined ? typeof value : text.length > 200 ? `${text.slice(0, 197)}...` : text
  } catch {
    return typeof value // one that holds itself
  }
}

const hintOf = (row: z.ZodType, value: unknown): string => (typeof value === 'string' ? didYouMean(value, choicesOf(row)) : '')

/** The defaults of a table. */
export const defaultsOf = <O extends OptionTable>(table: O): OptionValues<O> => resolveOptions(table, [])

const camelCase = (key: string): string => key.replace(/-([a-z0-9])/g, (_, letter: string) => letter.toUpperCase())
export const kebabCase = (key: string): string => key.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)

/** The table's name of a key in either spelling. */
export function optionKey(table: OptionTable, key: string): string | undefined {
  const known = camelCase(key)
  return Object.hasOwn(table, known) ? known : undefined
}

/** A key as an option, and the entry of its value that is meant; undefined where there is no such option in the section of the key. */
function placeOf(table: OptionTable, key: string): { option: string; path: string[] } | undefined {
  const [first = '', ...rest] = key.split('.')
  const inside = rest[0] === undefined ? undefined : optionKey(table, rest[0])
  if (inside !== undefined && sectionOf(table[inside]!) === first) return { option: inside, path: rest.slice(1) }
  const option = optionKey(table, first)
  return option === undefined ? undefined : { option, path: rest }
}

/** The option of a table that a key in either spelling, dotted or not, belongs to. */
export const optionOf = (table: OptionTable, key: string): string | undefined => placeOf(table, key)?.option

export const isMap = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value)

/** A map that stands for a section of the table, as the settings in it. */
function partsOf(table: OptionTable, setting: Setting): Setting[] {
  const { key, value, from } = setting
  const own = optionKey(table, key)
  const isSection = Object.values(table).some((row) => sectionOf(row) === key)
  if (!isSection || !isMap(value) || (own !== undefined && table[own]!.safeParse(value).success)) return [setting]
  return Object.entries(value).map(([name, part]) => ({ key: `${key}.${name}`, value: part, from }))
}

/** A copy of a map or list with another value at `path`, whose last name may be new to a map; undefined where there is no such place. */
function withEntry(whole: unknown, [name = '', ...path]: readonly string[], value: unknown): unknown {
  if (Array.isArray(whole)) {
    const at = Number(name)
    if (!/^\d+$/.test(name) || at >= whole.length) return undefined
    const entry = path.length === 0 ? value : withEntry(whole[at], path, value)
    return entry === undefined ? undefined : whole.map((other: unknown, i) => (i === at ? entry : other))
  }
  if (!isMap(whole) || name === '') return undefined
  const entry = path.length === 0 ? value : withEntry(whole[name] ?? {}, path, value)
  return entry === undefined ? undefined : { ...whole, [name]: entry }
}

/** A number that people write and JSON has not: .5, 5. and +1. */
const looseNumber = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i

/**
 * The value of a flag or of key=value for `row`: JSON where it is JSON (numbers, true, [0.2, 1], null) that the row takes or that
 * the text itself would not do better, else the text: a folder named 2024 is no number. A row that takes a list of numbers has it without
 * brackets too (0.2,1).
 */
export function parseValue(text: string, row?: z.ZodType): unknown {
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch {
    if (!looseNumber.test(text)) return listOf(text, row) ?? text
    value = Number(text)
  }
  return row !== undefined && !row.safeParse(value).success && row.safeParse(text).success ? text : value
}

/** Numbers between commas, where `row` takes a list; undefined otherwise. */
function listOf(text: string, row?: z.ZodType): number[] | undefined {
  const type = row && typeOf(row)
  if (!(type instanceof z.ZodArray || type instanceof z.ZodTuple)) return undefined
  const words = text.split(',').map((word) => word.trim())
  return words.every((word) => looseNumber.test(word)) ? words.map(Number) : undefined
}

/** `key=value` as a setting of `table`. */
export function keyValue(table: OptionTable, text: string): Setting {
  const at = text.indexOf('=')
  // What a shell makes of https://host/{00..02}.tar without quotes.
  if (isAddress(text)) fail('CONFIG', `${text}: expected key=value; an address with {..} needs quotes, or the shell makes several of it`)
  if (at < 1) fail('CONFIG', `${text}: expected key=value${didYouMean(text, Object.keys(table), (name) => `${name}=...`)}`)
  const key = text.slice(0, at)
  const place = placeOf(table, key)
  const row = place === undefined || place.path.length > 0 ? undefined : table[place.option]
  return { key, value: parseValue(text.slice(at + 1), row), from: text, typed: text }
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
    : fail('CONFIG', `${option} is ${word}: expected one of ${names.join(', ')}${didYouMean(word, names)}`)
}
