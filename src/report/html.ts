/** Parts that pages are made of: text as markup, tables, figures. */
import { tableCells, type EvaluationTable } from '../run/results.js'
import { escapeXml } from './svg.js'

/** A value of a file as it is written, where String() fails of some objects. */
export const written = (value: unknown): string => (typeof value === 'string' ? value : (JSON.stringify(value) ?? ''))
/** The same as markup that shows it. */
export const text = (value: unknown): string => escapeXml(written(value))
export const grid = (...parts: string[]): string => `<div class="grid">${parts.join('')}</div>`
export const cells = (values: readonly unknown[], tag: 'td' | 'th'): string =>
  values.map((value) => `<${tag}>${text(value)}</${tag}>`).join('')
export const row = (values: readonly unknown[], tag: 'td' | 'th' = 'td'): string => `<tr>${cells(values, tag)}</tr>`

/** A picture of a run as a part of the page. */
export type EmbedPicture = (path: string) => string

export const figure = (caption: string, path: string, embed: EmbedPicture, style = 'card'): string =>
  `<figure class="${style}"><figcaption>${text(caption)}</figcaption><img alt="${text(caption)}" src="${embed(path)}"></figure>`

/** A number of a row, which may lack it. */
export const fixed = (value: number | undefined, digits: number): string => (Number.isFinite(value) ? value!.toFixed(digits) : '-')

/** Names and values, the values large. */
export const factList = (items: readonly (readonly [string, string])[]): string =>
  `<div class="facts">${items.map(([name, value]) => `<div><b>${text(value)}</b><span>${text(name)}</span></div>`).join('')}</div>`

/** The table of an evaluation with its notes. */
export function tableCard({ table, date }: { table: EvaluationTable; date: string }): string {
  const [head, ...rows] = tableCells(table)
  const lines = [row(head!, 'th'), ...rows.map((values) => row(values))]
  const notes = [...table.notes, `${date.slice(0, 16).replace('T', ' ')} UTC`].map((note) => `<li>${text(note)}</li>`)
  return `<div class="card"><h3>${text(table.title)}</h3><table>${lines.join('')}</table><ul>${notes.join('')}</ul></div>`
}

/** A map as JSON; other values as they are. */
export const plain = (value: unknown): unknown =>
  typeof value === 'object' && value !== null && !Array.isArray(value) ? JSON.stringify(value) : value
