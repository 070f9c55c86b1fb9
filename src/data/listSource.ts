/** A text file that lists images. */
import { readFileSync } from 'node:fs'
import { dirname, resolve } from 'node:path'

import { classNames, type DataSource, isFileOf, type Item, type Source } from './source.js'

export const listSource = {
  format: 'list',
  describe: 'a text list .txt',
  recognises: (path) => isFileOf(path, '.txt', '.lst', '.csv'),
  open: readList,
} as const satisfies DataSource

/** A path a line, relative to the list, then perhaps a label; labels count where every line has one. */
function readList(path: string): Omit<Source, 'format'> {
  const rows = readFileSync(path, 'utf8')
    .split('\n')
    .map((line) => line.trim())
    .filter((line) => line !== '' && !line.startsWith('#'))
  const parsed = rows.map((row) => {
    const [, file, label] = /^(.*?)(?:[\s,]+(\d+))?$/.exec(row)!
    return { file: file!, label: label === undefined ? undefined : Number(label) }
  })
  const labelled = parsed.every(({ label }) => label !== undefined)
  const items = parsed.map(({ file, label }): Item => ({
    name: file,
    kind: 'file',
    path: resolve(dirname(path), file),
    ...(labelled ? { label: label! } : {}),
  }))
  if (!labelled || items.length === 0) return { items }
  return { items, classes: classNames(path, items) }
}
