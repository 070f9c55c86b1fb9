/** The flags of a program that is timed. */
import { parseArgs } from 'node:util'

import { fail } from '../../src/tensor/errors.js'

/** Whole numbers of at least 1 with their defaults, and words. Throws CONFIG for another number. */
export function flagsOf<Name extends string, Word extends string>(
  argv: readonly string[],
  numbers: Readonly<Record<Name, number>>,
  words: readonly Word[],
): { number: (name: Name) => number; values: Partial<Record<Name | Word, string>> } {
  const names = [...(Object.keys(numbers) as Name[]), ...words]
  const options = Object.fromEntries(names.map((name) => [name, { type: 'string' as const }]))
  const values = parseArgs({ args: [...argv], options }).values as Partial<Record<Name | Word, string>>
  const number = (name: Name): number => {
    const value = Number(values[name] ?? numbers[name])
    return Number.isInteger(value) && value > 0
      ? value
      : fail('CONFIG', `--${name} is ${values[name]}: expected a whole number of at least 1`)
  }
  return { number, values }
}
