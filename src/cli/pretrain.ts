import { parseArgs } from 'node:util'

import { type Command, Option } from 'commander'
import { stringify } from 'yaml'

import { identity } from '../distributed/launcher.js'
import { leaveTogether, openGroup } from '../distributed/open.js'
import { densecl } from '../methods/densecl/method.js'
import { configure, configuredMethod, findMethod, optionsOf, presetSettings, presetsOf } from '../methods/index.js'
import type { Method } from '../methods/method.js'
import { defaultsOf, kebabCase, keyValue, parseValue, readConfigFile, type Setting } from '../run/options.js'
import { dryRun, pretrain } from '../train/pretrain.js'
import { fail } from '../tensor/errors.js'
import { examples, heedingSignals, interruptedCode, type Register } from './command.js'

interface Flags extends Record<string, unknown> {
  preset?: string
  config?: string
  out?: string
  resume?: boolean
  overwrite?: boolean
  force?: boolean
  dryRun?: boolean
  json?: boolean
}

export const register: Register = async (program, done, [name, ...args]) => {
  // Which options there are depends on the method, and that on the arguments.
  const method = name === 'pretrain' ? await methodOf(args) : densecl
  const command = program
    .command('pretrain')
    .description('pre-train a backbone on a folder of images')
    .argument('[settings...]', 'options as key=value')
    .option('--config <file>', 'a YAML file of options')
    .option('--out <folder>', 'the run folder (default: runs/<preset>)')
    .option('--resume', 'continue the run of --out from its last checkpoint')
    .option('--overwrite', 'replace the run of --out')
    .option('--force', 'start although the memory does not seem to suffice')
    .option('--dry-run', 'say what the run would be - configuration, steps, schedule, memory, time by a few steps - and write nothing')
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
    ]),
  )
  addOptions(command, method)
  command.action(heedingSignals(done, async (settings: string[], flags: Flags) => done(await run(method, settings, flags))))
}

/** The method that the arguments ask for, before they are parsed in earnest: the last that any setting names, as in configure(). */
async function methodOf(args: string[]): Promise<Method> {
  const text = { type: 'string' } as const
  const options = { method: text, preset: text, config: text, out: text, resume: { type: 'boolean' } } as const
  const { values, positionals } = parseArgs({ args, options, allowPositionals: true, strict: false })
  const said = [
    ...positionals.filter((setting) => setting.startsWith('method=')).map((setting) => setting.slice(7)),
    ...(values.method === undefined ? [] : [values.method]),
  ].at(-1)
  // The preset may be one of the method's own.
  if (typeof said === 'string') return (await findMethod(said)).method
  return (await configuredMethod(startingSettings(values as Flags))).method
}

/** Options of every run and of the method, and the presets that there are for it. */
function addOptions(command: Command, method: Method): void {
  const presets = Object.entries(presetsOf(method)).map(([name, { describe }]) => `${name}: ${describe}`)
  command.option('--preset <name>', `start from a named configuration:\n${presets.join('\n')}`)
  const options = optionsOf(method)
  const defaults: Record<string, unknown> = defaultsOf(options)
  for (const [key, row] of Object.entries(options)) {
    const own = key in method.options
    if (own && key === Object.keys(method.options)[0]) command.optionsGroup(`Options of ${method.name} (${method.describe}):`)
    command.addOption(new Option(`--${kebabCase(key)} <value>`, `${row.description ?? ''} (${JSON.stringify(defaults[key])})`))
  }
}

/** What there is before the settings of this command: a preset, a file, and what a run that is resumed was started with. */
function startingSettings({ preset, config, resume, out = outOf(preset) }: Flags, method?: Method): Setting[] {
  return [
    ...(preset === undefined ? [] : presetSettings(preset, method)),
    ...(config === undefined ? [] : readConfigFile(config)),
    ...(resume === true ? readConfigFile(`${out}/config.yaml`) : []),
  ]
}

const outOf = (preset: string | undefined): string => `runs/${preset ?? 'densecl'}`

async function run(method: Method, settings: string[], flags: Flags): Promise<number> {
  const out = flags.out ?? outOf(flags.preset)
  const table = optionsOf(method)
  const given = Object.entries(table)
    .filter(([key]) => flags[key] !== undefined)
    .map(([key, row]): Setting => ({ key, value: parseValue(flags[key] as string, row), from: `--${kebabCase(key)}` }))
  const { config } = await configure([...startingSettings(flags, method), ...settings.map((text) => keyValue(table, text)), ...given])

  const preset = flags.preset === undefined ? undefined : presetsOf(method)[flags.preset]
  const named = preset === undefined ? [] : [`preset  ${flags.preset}: ${preset.describe}`]
  if (flags.dryRun === true) {
    const { size, launcher } = identity()
    if (size > 1) fail('CONFIG', `--dry-run tells of one process: expected it without ${launcher}, which started ${size}`)
    if (flags.resume === true) fail('CONFIG', '--dry-run says what a new run would be: expected it without --resume')
    const { lines, ...known } = await dryRun({ config, method, force: flags.force === true })
    if (flags.json === true) console.log(JSON.stringify({ config, ...known, lines }, undefined, 2))
    else console.log([stringify(config).trimEnd(), '', ...named, ...lines].join('\n'))
    return 0
  }
  const group = openGroup(config.device)
  leaveTogether(group)
  if (group.rank === 0 && flags.json !== true && flags.resume !== true) for (const line of named) console.log(line)
  const result = await pretrain({
    config,
    method,
    out,
    group,
    resume: flags.resume === true,
    overwrite: flags.overwrite === true,
    force: flags.force === true,
    quiet: flags.json === true,
  })
  if (flags.json === true && group.rank === 0) console.log(JSON.stringify(result, undefined, 2))
  return result.interrupted ? interruptedCode() : 0
}
