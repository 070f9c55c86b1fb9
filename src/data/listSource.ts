/** A text file that lists images. */
import { dirname, resolve, sep } from 'node:path'

import { fail } from '../tensor/errors.js'
import { untilInterrupted } from '../tensor/interruption.js'
import { classNames, type DataSource, isFileOf, type Item, readText, type Source } from './source.js'

export const listSource = {
  format: 'list',
  describe: 'a text list .txt',
  recognises: (path) => isFileOf(path, '.txt', '.lst', '.csv'),
  open: readList,
} as const satisfies DataSource

/** A line holds a path and a label: more is no list of files. */
const mostCharacters = 2 ** 14

/** A path a line, relative to the list, then perhaps a label. Throws DATA where some lines have a label and others none. */
function readList(path: string): Omit<Source, 'format'> {
  const absolute = absoluteFrom(dirname(path))
  const items: Item[] = []
  /** The first line with a label and the first without one, by number and text. */
  const first: { with?: string; without?: string } = {}
  let number = 0
  for (const whole of untilInterrupted(linesOf(readText(path)))) {
    const line = whole.trim()
    number += 1
    if (line === '' || line.startsWith('#')) continue
    if (line.length > mostCharacters)
      fail(
        'DATA',
        `data: line ${number} of ${path} has ${line.length} characters: expected a path and perhaps a label, at most ${mostCharacters}`,
      )
    const { file, label } = row(line)
    first[label === undefined ? 'without' : 'with'] ??= `line ${number} (${file.slice(0, 100)})`
    items.push({ name: file, kind: 'file', path: absolute(file), ...(label === undefined ? {} : { label }) })
  }
  if (first.with === undefined) return { items }
  if (first.without !== undefined)
    fail('DATA', `data: ${path}: ${first.without} has no label but ${first.with} has one: expected one in every line, or in none`)
  return { items, classes: classNames(path, items) }
}

/** The lines of a text, however they end, one by one: all at once are millions of strings that the collection of garbage moves about. */
function* linesOf(text: string): Generator<string> {
  const end = /\r\n|\n|\r/g
  let from = 0
  for (let found = end.exec(text); found !== null; found = end.exec(text)) {
    yield text.slice(from, found.index)
    from = end.lastIndex
  }
  yield text.slice(from)
}

/**
 * resolve() of paths in a folder. Where there is nothing to resolve both are joined: a path then is no string of its own until it is used.
 */
function absoluteFrom(folder: string): (path: string) => string {
  const base = resolve(folder)
  const before = base.endsWith(sep) ? base : base + sep
  const odd = /(^|\/)\.{0,2}(\/|$)/
  return (path) => (sep !== '/' || odd.test(path) ? resolve(base, path) : before + path)
}

const isDigit = (character: string): boolean => character >= '0' && character <= '9'
const isSeparator = (character: string): boolean => character === ',' || character.trim() === ''

/** The digits at the end, where blanks or commas precede them, are the label. A regular expression would try every run of blanks. */
function row(line: string): { file: string; label?: number } {
  let digits = line.length
  while (digits > 0 && isDigit(line[digits - 1]!)) --digits
  let end = digits
  while (end > 0 && isSeparator(line[end - 1]!)) --end
  if (digits === line.length || end === digits || end === 0) return { file: line }
  return { file: line.slice(0, end), label: Number(line.slice(digits)) }
}
