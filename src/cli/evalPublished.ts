/** Published numbers beside the results of a run (src/eval/published.ts). */
import { publishedData, type PublishedRow, publishedResults } from '../eval/published.js'

/** Columns of a table with what is published by its protocol; none where nothing is. */
export interface PublishedColumns {
  columns: string[]
  /** The cells of a row by its published name; empty ones where that has none. */
  cells: (row?: string) => string[]
  notes: string[]
}

const methods: readonly [key: keyof PublishedRow, name: string][] = [
  ['densecl', 'DenseCL'],
  ['mocov2', 'MoCo v2'],
  ['random', 'random'],
]

/**
 * The published numbers of `protocol`. Where the run `deviates` from it they are in brackets, and a note says that they are no measure of
 * the run.
 */
export function publishedColumns(protocol: string, deviates: boolean): PublishedColumns {
  if (!Object.hasOwn(publishedResults, protocol)) return { columns: [], cells: () => [], notes: [] }
  const { source, rows } = publishedResults[protocol]!
  const there = methods.filter(([key]) => Object.values(rows).some((row) => row[key] !== undefined))
  const shown = (value: number | undefined): string => (value === undefined ? '' : deviates ? `(${value.toFixed(2)})` : value.toFixed(2))
  const names = there.map(([, name]) => name)
  const absent = names.includes('DenseCL') ? '' : '; nothing is published for DenseCL'
  return {
    columns: names.map((name) => `${name} published`),
    cells: (row) => there.map(([key]) => shown(row === undefined ? undefined : rows[row]?.[key])),
    notes: [
      `published: ${names.join(', ')} by this protocol with ResNet-50, 200 epochs of ImageNet (${source})${absent}` +
        (deviates ? '; in brackets as this run deviates from the protocol: no measure of it' : ''),
    ],
  }
}

/** What is published of rows of a protocol, of all or those that are named, in one sentence for a table without such columns. */
export function publishedLine(protocol: string, what: string, named?: readonly string[]): string[] {
  if (!Object.hasOwn(publishedResults, protocol)) return []
  const { source, rows: there } = publishedResults[protocol]!
  const rows = named ?? Object.keys(there)
  const numbers = rows.flatMap((row) => {
    const own = methods.flatMap(([key, name]) => (there[row]?.[key] === undefined ? [] : [`${name} ${there[row][key].toFixed(2)}`]))
    return own.length === 0 ? [] : [`${row}: ${own.join(', ')}`]
  })
  return [`published for ${what}, ResNet-50 of 200 epochs of ImageNet: ${numbers.join('; ')} (${source})`]
}

/** How a data set differs from the one that a protocol is published on: rows of deviations(). */
export function dataDeviations(protocol: string, train: number, val: number, classes: number): [string, number, number][] {
  const published = publishedData[protocol] ?? publishedData.imagenet!
  return [
    ['training images', train, published.train],
    ['validation images', val, published.val],
    ['classes', classes, published.classes],
  ]
}
