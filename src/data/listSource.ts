/** A text file that lists images. */
import { dirname, resolve } from 'node:path'

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
  const folder = dirname(path)
  const items: Item[] = []
  /** The first line with a label and the first without one, by number and text. */
  const first: { with?: string; without?: string } = {}
  const lines = readText(path).split(/\r\n|\n|\r/)
  for (const [i, whole] of untilInterrupted(lines.entries())) {
    const line = whole.trim()
    if (line === '' || line.startsWith('#')) continue
    if (line.length > mostCharacters)
      fail(
        'DATA',
        `data: line ${i + 1} of ${path} has ${line.length} characters: expected a path and perhaps a label, at most ${mostCharacters}`,
      )
    const { file, label } = row(line)
    first[label === undefined ? 'without' : 'with'] ??= `line ${i + 1} (${file.slice(0, 100)})`
    items.push({ name: file, kind: 'file', path: resolve(folder, file), ...(label === undefined ? {} : { label }) })
  }
  if (first.with === undefined) return { items }
  if (first.without !== undefined)
    fail('DATA', `data: ${path}: ${first.without} has no label but ${first.with} has one: expected one in every line, or in none`)
  return { items, classes: classNames(path, items) }
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
