/** The program of all commands, and what it says and exits with when one fails. */
import { Command, CommanderError, Help, type Option } from 'commander'

import { DenseclError } from '../tensor/errors.js'
import { packageVersion } from '../tensor/addon.js'
import { speaker } from '../distributed/speaker.js'
import { nameIn, type Register } from './command.js'
import { loaded, LoadError } from './loading.js'
import { withoutSecrets } from '../data/addresses.js'
import { withSettingNames } from '../tensor/settingNames.js'

/** The files of the commands. That of the one that is asked for is all that is loaded: all of them take half a second. */
const commands: Readonly<Record<string, Readonly<Record<string, () => Promise<{ register: Register }>>>>> = {
  'Train:': { pretrain: () => import('./pretrain.js'), launch: () => import('./launch.js'), study: () => import('./study.js') },
  'See what was learnt:': {
    eval: () => import('./eval.js'),
    report: () => import('./report.js'),
    watch: () => import('./watch.js'),
    match: () => import('./match.js'),
  },
  'Use a backbone:': {
    embed: () => import('./embed.js'),
    search: () => import('./search.js'),
    predict: () => import('./predict.js'),
    detect: () => import('./detect.js'),
    export: () => import('./export.js'),
    import: () => import('./import.js'),
  },
  'Data:': { 'check-data': () => import('./checkData.js'), pack: () => import('./pack.js'), frames: () => import('./frames.js') },
  'This machine:': {
    doctor: () => import('./doctor.js'),
    build: () => import('./build.js'),
    bench: () => import('./bench.js'),
    completion: () => import('./completion.js'),
  },
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

/**
 * The program of the command that `args`, which are what follows `densecl`, ask for, or of all commands where they begin with none, as help
 * does; `done` is given its exit code.
 */
export async function buildProgram(args: readonly string[], done: (code: number) => void): Promise<Command> {
  const program = new Command('densecl')
    .description('self-supervised pre-training of image backbones: dense contrastive learning (DenseCL, CVPR 2021)')
    .version(packageVersion)
    .exitOverride()
    .configureHelp(help)
    .showHelpAfterError('(add --help for usage)')
  const [asked = ''] = args
  const alone = asked !== 'completion' && Object.values(commands).some((group) => Object.hasOwn(group, asked))
  for (const [heading, group] of Object.entries(commands)) {
    program.commandsGroup(heading)
    for (const [name, load] of Object.entries(group)) if (!alone || name === asked) await (await loaded(load)).register(program, done, args)
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
  let running: Command | undefined
  program.hook('preAction', (_, command) => void (running = command))
  await withSettingNames(
    (setting) => (running === undefined ? undefined : nameIn(running, setting)),
    () => program.parseAsync(args, { from: 'user' }),
  )
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
  if (error instanceof LoadError || (error instanceof Error && 'syscall' in error)) return { code: 1, text: error.message }
  return { code: 1, text: 'this is a mistake in densecl; please report it:', mistake: true }
}
