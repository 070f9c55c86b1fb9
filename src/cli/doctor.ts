import { spawnSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { availableParallelism, cpus, totalmem } from 'node:os'

import type { Command } from 'commander'

import { broken, checkDevice, describeReport, type PartReport } from '../selftest/check.js'
import { namedDevice } from '../run/device.js'
import { secondsPerPart, trustOf } from '../selftest/trust.js'
import { keepVerdict } from '../selftest/verdict.js'
import { otherDecoder } from '../data/decode.js'
import { identity } from '../distributed/launcher.js'
import { findMpirun } from '../distributed/mpirun.js'
import { loadNccl } from '../distributed/nccl.js'
import { openNvjpeg } from '../data/nvjpeg.js'
import { buildCommand, cudaPackage, isClone, mpiAddonPath, mpiBuildCommand, packageVersion } from '../tensor/addon.js'
import { addonPath, native, refusedAddons } from '../tensor/native.js'
import { DenseclError, fail } from '../tensor/errors.js'
import { kernelFamilies } from '../tensor/families.js'
import { deviceTraits } from '../tensor/traits.js'
import { examples, heedingSignals, interruptedCode, print, type Register } from './command.js'

export const register: Register = (program, done) => {
  program
    .command('doctor')
    .description('say which addon, devices and decoders are in use, and how to get what is missing')
    .option(
      '--check',
      'compare the kernels of a GPU with independent paths to the same values, in seconds; ' +
        'what is found is kept and obeyed by every command',
    )
    .option('--device <name>', 'with --check: cuda:N; auto takes the first GPU', 'auto')
    .option('--json', 'print JSON')
    .addHelpText('after', examples([['densecl doctor --check', 'whether this GPU computes what it should, kernel by kernel']]))
    .action(async (flags: Flags, command: Command) => {
      if (flags.check !== true && command.getOptionValueSource('device') === 'cli')
        fail('CONFIG', `--device is ${flags.device}: expected --check with it, which compares the kernels of a device`)
      if (flags.check === true) return heedingSignals(done, async () => done(await check(flags)))()
      const { addon, problem } = addonFacts()
      const facts: Record<string, string | number> = {
        densecl: packageVersion,
        node: process.version,
        platform: `${process.platform} ${process.arch}`,
        processor: cpus()[0]?.model.trim() ?? 'unknown',
        cores: availableParallelism(),
        memory: `${(totalmem() / 2 ** 30).toFixed(1)} GiB`,
        ...addon,
        jpeg: problem === undefined ? 'libjpeg-turbo 2.1.5, in the addon' : 'none: it is in the addon',
        otherImages: await otherDecoder(),
      }
      print(
        flags.json === true,
        facts,
        Object.entries(facts)
          .map(([name, value]) => `${name.padEnd(15)} ${value}`)
          .join('\n'),
      )
      if (problem !== undefined) console.error(`densecl: ${problem}`)
      done(problem === undefined ? 0 : 1)
    })
}

/** What is known through the addon, or why there is none. */
function addonFacts(): { addon: Record<string, string>; problem?: string } {
  try {
    const path = addonPath()
    const refused = refusedAddons().map(({ path: other, why }, i) => [`refused${i === 0 ? '' : i + 1}`, `${other}: ${why}`])
    const set = native.instructionSet()
    return {
      addon: {
        addon: path,
        ...(Object.fromEntries(refused) as Record<string, string>),
        instructionSet:
          set === 'portable' && process.arch === 'x64'
            ? 'portable (slow: AVX2 needs a processor of 2013 or later, and Linux or Windows)'
            : set,
        ...devices(),
        ...gpuDecoder(),
        ...processes(),
      },
    }
  } catch (error) {
    if (!(error instanceof DenseclError && error.code === 'ADDON')) throw error
    return { addon: { addon: 'none' }, problem: error.message }
  }
}

interface Flags {
  check?: boolean
  device: string
  json?: boolean
}

/** The exit code: 1 where any part does not agree. */
async function check(flags: Flags): Promise<number> {
  const device = namedDevice(flags.device)
  if (deviceTraits(device).families.length === 0)
    fail(
      'CONFIG',
      flags.device === 'auto'
        ? '--check: expected a GPU but this machine has none that can be used'
        : '--check: expected a GPU but --device is cpu, which the others are compared with',
    )
  const started = performance.now()
  if (flags.json !== true) console.log(`${device}, ${native.describeDevice(device)}`)
  const line = (report: PartReport): void =>
    flags.json === true
      ? undefined
      : console.log(`${report.verdict === 'agrees' ? 'ok  ' : 'FAIL'} ${describeReport(report)} (${report.seconds.toFixed(1)} s)`)
  const reports = await checkDevice(device, { secondsPerPart: secondsPerPart(), onReport: line })
  if (reports === undefined) return interruptedCode()
  const problem = keepVerdict(device, reports)
  const bad = reports.filter(({ verdict }) => verdict !== 'agrees')
  if (flags.json === true)
    console.log(JSON.stringify({ device: `${device}, ${native.describeDevice(device)}`, reports, kept: problem ?? true }, undefined, 2))
  else {
    const what =
      bad.length === 0
        ? 'all parts agree'
        : broken(reports).length > 0
          ? 'this device computes wrong results that nothing can stand in for: commands refuse it'
          : `${bad.length === 1 ? '1 family is' : `${bad.length} families are`} not used; others stand in`
    console.log(`${what} (${((performance.now() - started) / 1000).toFixed(1)} s)`)
  }
  if (problem !== undefined) console.error(`densecl: the verdict is not kept: ${problem}`)
  return bad.length === 0 ? 0 : 1
}

/** The kernels that a device uses, and what is known of them. */
function kernels(device: string): string {
  const used = kernelFamilies(device)
  const hopper = used.some((name) => name.startsWith('wgmma'))
  const lacks = !hopper && deviceTraits(device).capability === 90
  const hint = lacks ? ' (the faster ones of Hopper are not in this build: DENSECL_ARCHITECTURES must name 90a)' : ''
  return `${hopper ? 'wgmma and mma.sync' : 'mma.sync'}${hint}; ${trustOf(device)}`
}

/** What several processes of a run would find: by what they exchange tensors, what starts them, and whether something has. */
function processes(): Record<string, string> {
  const library = native.commLibrary()
  const mpi = library !== '' ? library : existsSync(mpiAddonPath) ? mpiOf(mpiAddonPath) : `none: ${mpiBuildCommand} makes it`
  const { launcher, rank, size } = identity()
  return {
    mpi,
    nccl: native.loadNccl === undefined ? 'not in this addon, which has no GPUs' : orWhyNot(loadNccl),
    mpirun: findMpirun()?.version ?? 'not found (densecl launch needs it on CPUs)',
    launcher: launcher === 'none' ? 'none: this is the only process' : `${launcher}: rank ${rank} of ${size}`,
  }
}

/** The MPI of an addon, which a process of its own loads as those of a run would. */
function mpiOf(addon: string): string {
  const ask = 'process.stdout.write(require(process.argv[1]).commLibrary())'
  const { status, stdout, stderr } = spawnSync(process.execPath, ['-e', ask, addon], { encoding: 'utf8' })
  if (status === 0) return `${stdout}, in ${addon}`
  const why = /^(?:\w*Error): (.*)$/m.exec(stderr)?.[1] ?? `status ${status}`
  return `none: ${addon} cannot be loaded (${why}); ${mpiBuildCommand} makes it`
}

/** What the first GPU decodes JPEGs with, where it is told to. */
function gpuDecoder(): Record<string, string> {
  const gpu = native.deviceNames().find((name) => deviceTraits(name).rendersViews)
  return gpu === undefined ? {} : { nvjpeg: orWhyNot(() => openNvjpeg(gpu)) }
}

/** What a library says of itself, or why it cannot be used. */
function orWhyNot(load: () => string): string {
  try {
    return load()
  } catch (problem) {
    if (!(problem instanceof DenseclError)) throw problem
    return problem.message
  }
}

/** Each device with what it is, what the CUDA backend was built for and could be built with, and what a GPU lacks. */
function devices(): Record<string, string> {
  const names = native.deviceNames()
  const facts: Record<string, string> = Object.fromEntries(names.map((name) => [name, native.describeDevice(name)]))
  for (const name of names.filter((each) => deviceTraits(each).families.length > 0)) facts[`${name} kernels`] = kernels(name)
  facts.cudaBuild =
    native.cudaBuild() ||
    `none: ${isClone ? '' : `npm install ${cudaPackage}@${packageVersion} brings it, or `}${buildCommand(true)} makes it`
  const { stdout, error } = spawnSync('nvcc', ['--version'], { encoding: 'utf8' })
  facts.nvcc =
    error === undefined ? (/release ([\d.]+)/.exec(stdout)?.[1] ?? 'unknown') : 'not found (building for CUDA needs it; running does not)'
  if (native.cudaBuild() === '' || names.some((name) => deviceTraits(name).model !== '')) return facts
  try {
    native.describeDevice('cuda')
  } catch (problem) {
    if (!(problem instanceof DenseclError)) throw problem
    facts.cuda = problem.message
  }
  return facts
}
