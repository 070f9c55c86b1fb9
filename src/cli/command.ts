import type { Command } from 'commander'

import { fail } from '../tensor/errors.js'

/** Each command's file adds itself to the program; `done` takes the exit code. */
export type Register = (program: Command, done: (code: number) => void) => void | Promise<void>

/** Examples below a command's help. */
export const examples = (lines: [command: string, why: string][]): string =>
  `\nExamples:\n${lines.map(([command, why]) => `  $ ${command}\n      ${why}`).join('\n')}\n`

/** The result for people, or with --json for machines. */
export function print(json: boolean, value: unknown, text: string): void {
  console.log(json ? JSON.stringify(value, undefined, 2) : text)
}

/** The number in a flag's text, or an error that names flag, text and expectation. */
export function numberFlag(name: string, text: string, { least = -Infinity, most = Infinity, whole = false } = {}): number {
  const value = Number(text)
  if (text.trim() !== '' && value >= least && value <= most && (!whole || Number.isSafeInteger(value))) return value
  const range = most < Infinity ? ` in ${least}..${most}` : least > -Infinity ? ` of at least ${least}` : ''
  return fail('CONFIG', `--${name} is ${text}: expected ${whole ? 'an integer' : 'a number'}${range}`)
}

/** Asks once whether Ctrl-C was pressed; a second one ends at once. */
export function interruption(): () => boolean {
  let pressed = false
  process.on('SIGINT', () => {
    if (pressed) process.exit(130)
    pressed = true
  })
  process.on('SIGTERM', () => (pressed = true))
  return () => pressed
}
