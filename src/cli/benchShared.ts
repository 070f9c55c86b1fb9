/** What the commands of `densecl bench` share. */
import type { Command } from 'commander'

import { fail } from '../tensor/errors.js'
import { numberFlag } from './command.js'

/** Adds the command of one kind of measurement; `done` takes the exit code. */
export type AddBench = (parent: Command, done: (code: number) => void) => void

export const deviceFlag = ['--device <name>', 'cpu or cuda:N; auto takes a GPU where there is one', 'auto'] as const

/** Throws CONFIG for a word of --layer that nothing's name holds; `what` has names. */
export const unknownLayer = (layer: string, what: string): never => fail('CONFIG', `--layer is ${layer}: no ${what} has that in its name`)

/** The images of a batch; undefined where nobody says. */
export const batchOf = (text: string | undefined, most = Infinity): number | undefined =>
  text === undefined ? undefined : numberFlag('batch', text, { least: 1, most, whole: true })
