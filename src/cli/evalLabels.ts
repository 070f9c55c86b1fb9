import { identity } from '../distributed/launcher.js'
import { type Item, skippedLines, type Source } from '../data/source.js'
import { openSource } from '../data/sources.js'
import { fail } from '../tensor/errors.js'

/** What settings are called that say what two labelled sets hold. */
export const namesOfLabelled = { train: 'images of --train', val: 'images of --val', classes: 'classes of --train' } as const

/** Two labelled sets with the same classes. */
export async function openLabelled(
  command: string,
  train: string,
  val: string,
): Promise<{ bank: Item[]; queries: Item[]; classes: string[] }> {
  const bank = await openSource(train, { split: 'train', setting: '--train' })
  const queries = await openSource(val, { split: 'val', setting: '--val' })
  for (const [path, source] of [
    [train, bank],
    [val, queries],
  ] as const)
    for (const line of identity().rank === 0 ? skippedLines(source) : []) console.error(`${command}: ${path}: ${line}`)
  const classesOf = (source: Source, flag: string, path: string): string[] =>
    source.classes ??
    fail(
      'DATA',
      `${command}: ${path} (${flag}) has no labels: expected two class folders or more, a list with labels, iNaturalist ` +
        'annotations, or shards with .cls',
    )
  const [known, asked] = [classesOf(bank, '--train', train), classesOf(queries, '--val', val)]
  // Numbers of a list or of shards may end early: not every class need be tested.
  const numbered = [known, asked].every((names) => names.every((name, i) => name === String(i)))
  if (!numbered && known.join() !== asked.join())
    return fail(
      'DATA',
      `${command}: the classes differ: ${difference(known, asked)} only in --train and ${difference(asked, known)} only in --val`,
    )
  return { bank: bank.items, queries: queries.items, classes: known.length >= asked.length ? known : asked }
}

function difference(names: string[], others: string[]): string {
  const own = names.filter((name) => !others.includes(name))
  return own.length === 0 ? 'none' : `${own.slice(0, 5).join(', ')}${own.length > 5 ? ` and ${own.length - 5} more` : ''}`
}
