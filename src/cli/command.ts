import { existsSync, statSync } from 'node:fs'

import type { Command } from 'commander'

import { identity } from '../distributed/launcher.js'
import { ofAll, speaker } from '../distributed/speaker.js'
import { DenseclError, fail } from '../tensor/errors.js'
import { isInterruption, withInterruption } from '../tensor/interruption.js'
import { native } from '../tensor/native.js'

/** Each command's file adds itself to the program that runs `args`; `done` takes the exit code. */
export type Register = (program: Command, done: (code: number) => void, args: readonly string[]) => void | Promise<void>

/** Evaluations that several processes can share. */
export const sharedEvaluations: readonly string[] = ['linear', 'finetune', 'segmentation', 'detection']

/** Throws CONFIG where a launcher started this command several times, which would each do all of it and write to one place. */
export function expectOneProcess(command: string): void {
  const { size, launcher } = identity()
  if (size > 1)
    throw ofAll(
      new DenseclError('CONFIG', `${command} is work of one process: expected it without ${launcher}, which started ${size} of them`),
    )
}

/** What commands call settings that no flag of theirs has the name of. */
const otherNames = new WeakMap<Command, Readonly<Record<string, string>>>()

/** Says what a command calls settings that no flag has the name of, or one that means something else. */
export function nameSettings(command: Command, names: Readonly<Record<string, string>>): Command {
  otherNames.set(command, { ...otherNames.get(command), ...names })
  return command
}

/** What a command calls a setting: its flag, where there is one. */
export function nameIn(command: Command, setting: string): string | undefined {
  const names = otherNames.get(command) ?? {}
  if (Object.hasOwn(names, setting)) return names[setting]
  return command.options.find((option) => option.attributeName() === setting)?.long
}

/** Throws WRITE where --out is there and is not to be replaced, or is a folder where a command writes a file. */
export function refuseExisting(command: string, { out, overwrite }: { out: string; overwrite?: boolean }, writes: 'file' | 'folder'): void {
  if (!existsSync(out)) return
  if (writes === 'file' && statSync(out).isDirectory()) fail('WRITE', `${command}: ${out} is a folder: expected a file`)
  if (overwrite !== true) fail('WRITE', `${command}: ${out} exists already; --overwrite replaces it`)
}

/** Examples below a command's help. */
export const examples = (lines: [command: string, why: string][]): string =>
  `\nExamples:\n${lines.map(([command, why]) => `  $ ${command}\n      ${why}`).join('\n')}\n`

/** The result for people, or with --json for machines. */
export function print(json: boolean, value: unknown, text: string): void {
  console.log(json ? JSON.stringify(value, undefined, 2) : text)
}

/** What a command prints beside its result. */
export interface OutputFlags {
  json?: boolean
  quiet?: boolean
}

/** The flag of a command that shows how far it is. */
export const quietFlag = ['--quiet', 'print the result alone, and no progress'] as const

/** Whether nothing but the result is printed. */
export const isQuiet = ({ json, quiet }: OutputFlags): boolean => json === true || quiet === true

/** The number in a flag's text, or an error that names flag, text and expectation. */
export function numberFlag(name: string, text: string, { least = -Infinity, most = Infinity, whole = false } = {}): number {
  const value = Number(text)
  if (text.trim() !== '' && value >= least && value <= most && (!whole || Number.isSafeInteger(value))) return value
  const range = most < Infinity ? ` in ${least}..${most}` : least > -Infinity ? ` of at least ${least}` : ''
  return fail('CONFIG', `--${name} is ${text}: expected ${whole ? 'an integer' : 'a number'}${range}`)
}

const sigterm = 15

/**
 * The exit code of a command that a signal has ended: 130 after SIGINT, 143 after SIGTERM, and where another process of the same run heard
 * one.
 */
export const interruptedCode = (): number => 128 + (native.heardSignal() || sigterm)

/**
 * The action of a command that takes long. From SIGINT or SIGTERM on, what takes long in it ends where nothing is half done; a second one
 * ends the process at once.
 */
export const heedingSignals =
  <A extends unknown[]>(done: (code: number) => void, action: (...args: A) => Promise<void> | void) =>
  async (...args: A): Promise<void> => {
    // Of several processes one says so.
    native.listenForSignals(speaker(undefined) === '' ? '\ndensecl: stopping where nothing is lost; once more leaves at once\n' : '')
    try {
      await withInterruption(
        () => native.heardSignal() !== 0,
        () => action(...args),
      )
    } catch (error) {
      if (!isInterruption(error)) throw error
      if (speaker(error) !== undefined) console.error('densecl: interrupted')
      done(interruptedCode())
    }
  }
