import { spawnSync } from 'node:child_process'
import { availableParallelism, cpus, totalmem } from 'node:os'

import { decoders } from '../data/decode.js'
import { addonPath, native, packageVersion } from '../tensor/native.js'
import { DenseclError } from '../tensor/errors.js'
import { print, type Register } from './command.js'

export const register: Register = (program, done) => {
  program
    .command('doctor')
    .description('say which addon, devices and decoders are in use, and how to get what is missing')
    .option('--json', 'print JSON')
    .action((flags: { json?: boolean }) => {
      const facts = {
        densecl: packageVersion,
        node: process.version,
        platform: `${process.platform} ${process.arch}`,
        addon: addonPath,
        cpu: cpus()[0]?.model.trim() ?? 'unknown',
        cores: availableParallelism(),
        memory: `${(totalmem() / 2 ** 30).toFixed(1)} GiB`,
        instructionSet: native.instructionSet() === 'portable' ? 'portable (slow: AVX2 needs an x86-64 processor of 2013 or later, on Linux)' : native.instructionSet(),
        ...devices(),
        jpeg: decoders().jpeg,
        otherImages: decoders().others,
      }
      print(flags.json === true, facts, Object.entries(facts).map(([name, value]) => `${name.padEnd(15)} ${value}`).join('\n'))
      done(0)
    })
}

/** Each device with what it is, what the CUDA backend was built for and could be built with, and what a GPU lacks. */
function devices(): Record<string, string> {
  const names = native.deviceNames()
  const facts: Record<string, string> = Object.fromEntries(names.map((name) => [name, native.describeDevice(name)]))
  facts.cudaBuild = native.cudaBuild() || 'none: npm run build:cuda makes it'
  const { stdout, error } = spawnSync('nvcc', ['--version'], { encoding: 'utf8' })
  facts.nvcc = error === undefined ? (/release ([\d.]+)/.exec(stdout)?.[1] ?? 'unknown') : 'not found (building for CUDA needs it; running does not)'
  if (names.some((name) => name.startsWith('cuda'))) return facts
  try {
    native.describeDevice('cuda')
  } catch (problem) {
    if (!(problem instanceof DenseclError)) throw problem
    facts.cuda = problem.message
  }
  return facts
}
