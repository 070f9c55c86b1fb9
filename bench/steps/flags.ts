/** The flags of a program that is timed. */
import { parseArgs } from 'node:util'

import { fail } from '../../src/tensor/errors.js'

/** The whole number of at least 1 that a flag says. Throws CONFIG for another. */
export function wholeNumber(name: string, text: string): number {
  const value = Number(text)
  return Number.isInteger(value) && value > 0 ? value : fail('CONFIG', `--${name} is ${text}: expected a whole number of at least 1`)
}

/** Whole numbers with their defaults, and words. Throws CONFIG. */
export function flagsOf<Name extends string, Word extends string>(
  argv: readonly string[],
  numbers: Readonly<Record<Name, number>>,
  words: readonly Word[],
): { number: (name: Name) => number; values: Partial<Record<Name | Word, string>> } {
  const names = [...(Object.keys(numbers) as Name[]), ...words]
  const options = Object.fromEntries(names.map((name) => [name, { type: 'string' as const }]))
  const values = parseArgs({ args: [...argv], options }).values as Partial<Record<Name | Word, string>>
  return { number: (name) => wholeNumber(name, values[name] ?? String(numbers[name])), values }
}
