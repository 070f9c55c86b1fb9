import type { Command } from 'commander'

/** Each command's file adds itself to the program; `done` takes the exit code. */
export type Register = (program: Command, done: (code: number) => void) => void

/** Examples below a command's help. */
export const examples = (lines: [command: string, why: string][]): string => `\nExamples:\n${lines.map(([command, why]) => `  $ ${command}\n      ${why}`).join('\n')}\n`

/** The result for people, or with --json for machines. */
export function print(json: boolean, value: unknown, text: string): void {
  console.log(json ? JSON.stringify(value, undefined, 2) : text)
}
