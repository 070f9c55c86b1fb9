import { existsSync } from 'node:fs'
import { createInterface } from 'node:readline/promises'
import { parseArgs } from 'node:util'

import { type Command, Option } from 'commander'
import { stringify } from 'yaml'

import { openSource } from '../data/sources.js'
import { identity } from '../distributed/launcher.js'
import { leaveTogether, openGroup } from '../distributed/open.js'
import { densecl } from '../methods/densecl/method.js'
import { configure, configuredMethod, findMethod, optionsOf, presetSettings, presetsOf } from '../methods/index.js'
import type { Method } from '../methods/method.js'
import { sectionTitles } from '../run/config.js'
import {
  choicesOf,
  defaultsOf,
  kebabCase,
  keyValue,
  optionOf,
  parseValue,
  readConfigFile,
  sectionOf,
  type Setting,
} from '../run/options.js'
import { files } from '../run/runFolder.js'
import { dryRun, pretrain } from '../train/pretrain.js'
import { begunConfig } from '../train/share.js'
import { fail } from '../tensor/errors.js'
import { unlessInterrupted } from '../tensor/interruption.js'
import { examples, heedingSignals, interruptedCode, isQuiet, type OutputFlags, type Register } from './command.js'

interface Flags extends OutputFlags, Record<string, unknown> {
  preset?: string
  config?: string
  set?: string[]
  out?: string
  resume?: boolean
  overwrite?: boolean
  force?: boolean
  dryRun?: boolean
}

export const register: Register = async (program, done, [name, ...args]) => {
  // Which options there are depends on the method, and that on the arguments.
  const method = name === 'pretrain' ? await methodOf(args) : densecl
  const command = program
    .command('pretrain')
    .description('pre-train a backbone on a folder of images')
    .argument('[settings...]', 'options as key=value; a key may name the section that it is in, as optimizer.lr')
    .option('--config <file>', 'a YAML file of options')
    .addOption(
      new Option('--set <key=value>', 'an option as key=value; may be given several times').argParser((text: string, before?: string[]) => [
        ...(before ?? []),
        text,
      ]),
    )
    .option('--out <folder>', 'the run folder (default: runs/<preset>)')
    .addOption(new Option('--resume', 'continue the run of --out from its last checkpoint, by its settings').conflicts('overwrite'))
    .option('--overwrite', 'replace the run of --out')
    .option('--force', 'start although the memory does not seem to suffice')
    .option('--dry-run', 'say what the run would be - configuration, steps, schedule, memory, time by a few steps - and write nothing')
    .option('--quiet', "print warnings and, at the end, the backbone's path alone")
    .option('--json', 'print only the result, as JSON')
  command.addHelpText(
    'after',
    examples([
      ['densecl pretrain --data photos --preset small --out runs/photos', 'some thousand photos on a CPU'],
      [
        'densecl pretrain --data imagenet/train --preset densecl_resnet50_8xb32-coslr-200e_in1k --out runs/r50',
        'the published configuration',
      ],
      [
        'densecl pretrain --config mine.yaml lr=0.06 --epochs 50 --out runs/mine',
        'flags and key=value win over the file, the file over the preset',
      ],
      ['densecl pretrain --out runs/photos --resume', 'continue after an interruption'],
      ['densecl pretrain', 'see it work: asks for a folder on a terminal, else trains on built-in pictures for some minutes'],
    ]),
  )
  addOptions(command, method)
  command.action(heedingSignals(done, async (settings: string[], flags: Flags) => done(await run(method, settings, flags))))
}

/** The method that the arguments ask for, before they are parsed in earnest: the last that any setting names, as in configure(). */
async function methodOf(args: string[]): Promise<Method> {
  const text = { type: 'string' } as const
  const set = { type: 'string', multiple: true } as const
  const options = { method: text, preset: text, config: text, set, out: text, resume: { type: 'boolean' } } as const
  const { values, positionals } = parseArgs({ args, options, allowPositionals: true, strict: false })
  const said = [
    ...[...positionals, ...(values.set ?? []).map(String)]
      .filter((setting) => setting.startsWith('method='))
      .map((setting) => setting.slice(7)),
    ...(values.method === undefined ? [] : [values.method]),
  ].at(-1)
  // The preset may be one of the method's own.
  if (typeof said === 'string') return (await findMethod(said)).method
  return (await configuredMethod(startingSettings(values as Flags))).method
}

/** Options of every run and of the method, in groups, and the presets that there are for it. */
function addOptions(command: Command, method: Method): void {
  const presets = Object.entries(presetsOf(method))
  const preset = new Option('--preset <name>', 'start from a named configuration, see below')
  preset.argChoices = presets.map(([name]) => name)
  command.addOption(preset)
  const options = optionsOf(method)
  const defaults: Record<string, unknown> = defaultsOf(options)
  for (const [key, row] of Object.entries(options)) {
    const [within, choices, usual] = [sectionOf(row), choicesOf(row), defaults[key]]
    command.optionsGroup(within === undefined ? '' : `${sectionTitles[within] ?? `Method ${method.name}, ${method.describe}`}:`)
    const option = new Option(`--${kebabCase(key)} <value>`, row.description)
    // Shown alone: values are checked with everything else, and what is not given has no value.
    if (choices.length > 0) option.argChoices = choices
    if (usual !== null) option.defaultValueDescription = typeof usual === 'string' ? usual : JSON.stringify(usual)
    command.addOption(option)
  }
  command.optionsGroup('')
  command.addHelpText('after', `\nPresets:\n${presets.map(([name, { describe }]) => `  ${name}\n      ${describe}`).join('\n')}\n`)
}

/** What there is before the settings of this command: a preset, a file, and what a run that is resumed was started with. */
function startingSettings({ preset, config, resume, out = outOf(preset) }: Flags, method?: Method): Setting[] {
  return [
    ...(preset === undefined ? [] : presetSettings(preset, method)),
    ...(config === undefined ? [] : readConfigFile(config)),
    ...(resume === true ? settingsOfRun(out) : []),
  ]
}

/** What the run in a folder was started with. Throws RUN where there is none. */
function settingsOfRun(out: string): Setting[] {
  const { config } = files(out)
  if (!existsSync(config)) fail('RUN', `${out} holds no run to resume: expected config.yaml there; without --resume one is started`)
  return readConfigFile(config)
}

const outOf = (preset: string | undefined): string => `runs/${preset ?? 'densecl'}`

/** The exit code after Ctrl-C. */
const leftQuestion = 130

/** Images from which on preset small is better than few. */
const manyImages = 1500

/**
 * The flags, with what is trained where neither data nor a preset, a file or a run says so: what a person at a terminal answers, else
 * preset quick on the built-in pictures. Undefined where the question was left by Ctrl-C or Ctrl-D.
 */
async function withStart(method: Method, settings: string[], flags: Flags): Promise<Flags | undefined> {
  const table = optionsOf(method)
  const said = [...settings, ...(flags.set ?? [])].map((text) => optionOf(table, text.split('=')[0]!))
  if (method !== densecl || flags.resume === true || [flags.preset, flags.config, flags.data].some((given) => given !== undefined))
    return flags
  if (said.includes('data')) return flags
  const { stdin, stdout } = process
  const asks = stdin.isTTY && stdout.isTTY && !isQuiet(flags) && identity().size === 1
  const data = asks ? await askForData() : ''
  if (data === undefined) return
  const say = (text: string): unknown => identity().rank === 0 && !isQuiet(flags) && console.log(`start   ${text}`)
  if (data === '') {
    say('no --data and no --preset: preset quick, on pictures that are made here; --data FOLDER trains on yours')
    return { ...flags, preset: 'quick' }
  }
  const { items } = await openSource(data, { setting: 'data' })
  const preset = items.length < manyImages ? 'few' : 'small'
  say(`${items.length} images: preset ${preset}, as densecl pretrain --data ${data} --preset ${preset}`)
  return { ...flags, data, preset }
}

/** The answer; undefined after Ctrl-C, which at a question is a key and no signal, and at the end of the input. */
async function askForData(): Promise<string | undefined> {
  const prompt = createInterface({ input: process.stdin, output: process.stdout })
  try {
    const left = new Promise<undefined>((resolve) => prompt.once('close', () => resolve(undefined)))
    const answer = prompt.question('a folder of images, or Enter for built-in pictures (some minutes): ')
    return (await unlessInterrupted(Promise.race([answer, left])))?.trim()
  } finally {
    prompt.close()
  }
}

async function run(method: Method, settings: string[], asked: Flags): Promise<number> {
  const flags = await withStart(method, settings, asked)
  if (flags === undefined) {
    console.error('\ndensecl: the question was left without an answer: nothing was trained; --data FOLDER or --preset quick asks none')
    return leftQuestion
  }
  const out = flags.out ?? outOf(flags.preset)
  const table = optionsOf(method)
  const given = Object.entries(table)
    .filter(([key]) => flags[key] !== undefined)
    .map(([key, row]): Setting => {
      const [flag, text] = [`--${kebabCase(key)}`, flags[key] as string]
      return { key, value: parseValue(text, row), from: flag, typed: `${flag} is ${text}` }
    })
  const { config: wanted } = await configure([
    ...startingSettings(flags, method),
    ...[...settings, ...(flags.set ?? [])].map((text) => keyValue(table, text)),
    ...given,
  ])

  const preset = flags.preset === undefined ? undefined : presetsOf(method)[flags.preset]
  const named = preset === undefined ? [] : [`preset  ${flags.preset}: ${preset.describe}`]
  if (flags.dryRun === true) {
    const { size, launcher } = identity()
    if (size > 1) fail('CONFIG', `--dry-run tells of one process: expected it without ${launcher}, which started ${size}`)
    if (flags.resume === true) fail('CONFIG', '--dry-run says what a new run would be: expected it without --resume')
    const config = begunConfig(wanted, 1)
    const { lines, ...known } = await dryRun({ config, method, force: flags.force === true })
    if (flags.json === true) console.log(JSON.stringify({ config, ...known, lines }, undefined, 2))
    else console.log([stringify(config).trimEnd(), '', ...named, ...lines].join('\n'))
    return 0
  }
  const group = openGroup(wanted.device)
  leaveTogether(group)
  if (group.rank === 0 && !isQuiet(flags) && flags.resume !== true) for (const line of named) console.log(line)
  const result = await pretrain({
    config: wanted,
    method,
    out,
    group,
    resume: flags.resume === true,
    overwrite: flags.overwrite === true,
    force: flags.force === true,
    quiet: isQuiet(flags),
  })
  if (group.rank === 0) {
    if (flags.json === true) console.log(JSON.stringify(result, undefined, 2))
    else if (flags.quiet === true && result.files.backbone !== undefined) console.log(result.files.backbone)
  }
  return result.interrupted ? interruptedCode() : 0
}
