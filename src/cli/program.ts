/** The program of all commands, and what it says and exits with when one fails. */
import { Command, CommanderError, Help, type Option } from 'commander'

import { DenseclError } from '../tensor/errors.js'
import { packageVersion } from '../tensor/addon.js'
import { speaker } from '../distributed/speaker.js'
import { register as bench } from './bench.js'
import { register as build } from './build.js'
import { register as checkData } from './checkData.js'
import type { Register } from './command.js'
import { register as completion } from './completion.js'
import { register as detect } from './detect.js'
import { register as doctor } from './doctor.js'
import { register as embed } from './embed.js'
import { register as evaluations } from './eval.js'
import { register as exportWeights } from './export.js'
import { register as frames } from './frames.js'
import { register as importWeights } from './import.js'
import { register as launch } from './launch.js'
import { register as match } from './match.js'
import { register as pack } from './pack.js'
import { register as predict } from './predict.js'
import { register as pretrain } from './pretrain.js'
import { register as report } from './report.js'
import { register as search } from './search.js'
import { register as study } from './study.js'
import { register as watch } from './watch.js'
import { withoutSecrets } from '../data/addresses.js'

const commands: Readonly<Record<string, readonly Register[]>> = {
  'Train:': [pretrain, launch, study],
  'See what was learnt:': [evaluations, report, watch, match],
  'Use a backbone:': [embed, search, predict, detect, exportWeights, importWeights],
  'Data:': [checkData, pack, frames],
  'This machine:': [doctor, build, bench, completion],
}

/** Help of every command: options of its own before those in groups, choices and defaults as they are written. */
const help = {
  groupItems<T extends Command | Option>(unsorted: T[], visible: T[], groupOf: (item: T) => string): Map<string, T[]> {
    const groups = Help.prototype.groupItems<T>(unsorted, visible, groupOf)
    const own = groups.get('Options:')
    return own === undefined ? groups : new Map([['Options:', own], ...groups])
  },
  optionDescription({ description, argChoices, defaultValue, defaultValueDescription, required, optional }: Option): string {
    const usual = defaultValueDescription ?? (defaultValue === undefined || !(required || optional) ? undefined : String(defaultValue))
    const notes = [...(argChoices === undefined ? [] : [`choices: ${argChoices.join(', ')}`]), ...(usual ? [`default: ${usual}`] : [])]
    return notes.length === 0 ? description : `${description} (${notes.join('; ')})`
  },
}

/** The program of the command that `args`, which are what follows `densecl`, ask for; `done` is given its exit code. */
export async function buildProgram(args: readonly string[], done: (code: number) => void): Promise<Command> {
  const program = new Command('densecl')
    .description('self-supervised pre-training of image backbones: dense contrastive learning (DenseCL, CVPR 2021)')
    .version(packageVersion)
    .exitOverride()
    .configureHelp(help)
    .showHelpAfterError('(add --help for usage)')
  for (const [heading, registers] of Object.entries(commands)) {
    program.commandsGroup(heading)
    for (const register of registers) await register(program, done, args)
  }
  // In the last group.
  return program.helpCommand(true)
}

/** Runs the command of `args` and gives its exit code. Throws what explain() explains. */
export async function runProgram(given: readonly string[]): Promise<number> {
  // Whatever is said of an argument or written down, secrets of addresses are not in it.
  const args = given.map(withoutSecrets)
  let code = 0
  const program = await buildProgram(args, (result) => (code = result))
  await program.parseAsync(args, { from: 'user' })
  return code
}

/**
 * What is said of an error, and the exit code: 2 for wrong usage. A `mistake` is one of densecl itself. Of what all processes of a run say
 * rank 0's is heard.
 */
export function explain(error: unknown): { code: number; text?: string; mistake?: true } {
  const { code, text, mistake } = explainHere(error)
  const before = speaker(error)
  if (text === undefined || before === undefined) return { code }
  return { code, text: `${before}${text}`, ...(mistake === undefined ? {} : { mistake }) }
}

function explainHere(error: unknown): { code: number; text?: string; mistake?: true } {
  // Commander has said it.
  if (error instanceof CommanderError) return { code: error.exitCode === 0 ? 0 : 2 }
  if (error instanceof DenseclError) return { code: error.code === 'CONFIG' ? 2 : 1, text: error.message }
  // The system refuses something, and says what and where.
  if (error instanceof Error && 'syscall' in error) return { code: 1, text: error.message }
  return { code: 1, text: 'this is a mistake in densecl; please report it:', mistake: true }
}
