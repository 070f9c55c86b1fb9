import { Option } from 'commander'

import { preset, presets } from '../run/presets.js'
import {
  camelCase,
  configKeys,
  defaults,
  kebabCase,
  nearest,
  options,
  parseValue,
  readConfigFile,
  resolveConfig,
  type Setting,
} from '../run/config.js'
import { pretrain } from '../train/pretrain.js'
import { fail } from '../tensor/errors.js'
import { examples, type Register } from './command.js'

interface Flags extends Record<string, unknown> {
  preset?: string
  config?: string
  out?: string
  resume?: boolean
  overwrite?: boolean
  json?: boolean
}

export const register: Register = (program, done) => {
  const command = program
    .command('pretrain')
    .description('pre-train a backbone on a folder of images')
    .argument('[settings...]', 'options as key=value')
    .option(
      '--preset <name>',
      `start from a named configuration:\n${Object.entries(presets)
        .map(([name, { describe }]) => `${name}: ${describe}`)
        .join('\n')}`,
    )
    .option('--config <file>', 'a YAML file of options')
    .option('--out <folder>', 'the run folder (default: runs/<preset>)')
    .option('--resume', 'continue the run of --out from its last checkpoint')
    .option('--overwrite', 'replace the run of --out')
    .option('--json', 'print only the result, as JSON')
  for (const key of configKeys)
    command.addOption(new Option(`--${kebabCase(key)} <value>`, `${options[key].description ?? ''} (${JSON.stringify(defaults[key])})`))
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
  command.action(async (settings: string[], flags: Flags) => done(await run(settings, flags)))
}

async function run(settings: string[], flags: Flags): Promise<number> {
  const out = flags.out ?? `runs/${flags.preset ?? 'densecl'}`
  const resumed = flags.resume === true ? readConfigFile(`${out}/config.yaml`) : []
  const fromPreset =
    flags.preset === undefined
      ? []
      : Object.entries(preset(flags.preset)).map(([key, value]): Setting => ({ key, value, from: `preset ${flags.preset}` }))
  const given = configKeys
    .filter((key) => flags[key] !== undefined)
    .map((key): Setting => ({ key, value: flagValue(key, flags[key] as string), from: `--${kebabCase(key)}` }))
  const config = resolveConfig([
    ...fromPreset,
    ...(flags.config === undefined ? [] : readConfigFile(flags.config)),
    ...resumed,
    ...settings.map(keyValue),
    ...given,
  ])

  let interrupts = 0
  const onSignal = (): void => {
    interrupts += 1
    if (interrupts > 1) process.exit(130)
    if (flags.json !== true) console.log('\nstopping after this step; once more leaves without saving')
  }
  process.on('SIGINT', onSignal)
  process.on('SIGTERM', onSignal)
  try {
    const result = await pretrain({
      config,
      out,
      resume: flags.resume === true,
      overwrite: flags.overwrite === true,
      quiet: flags.json === true,
      interrupted: () => interrupts > 0,
    })
    if (flags.json === true) console.log(JSON.stringify(result, undefined, 2))
    return result.interrupted ? 130 : 0
  } finally {
    process.off('SIGINT', onSignal)
    process.off('SIGTERM', onSignal)
  }
}

/** Text options keep their text: a folder named 2024 is no number. */
const textKeys = new Set(['data', 'knnData', 'backbone'])
const flagValue = (key: string, text: string): unknown => (textKeys.has(key) ? text : parseValue(text))

function keyValue(text: string): Setting {
  const at = text.indexOf('=')
  if (at < 1) fail('CONFIG', `${text}: expected key=value (did you mean ${nearest(text, configKeys)}=...?)`)
  const key = text.slice(0, at)
  return { key, value: flagValue(camelCase(key), text.slice(at + 1)), from: text }
}
