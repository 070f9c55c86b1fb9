/** What the commands of `densecl eval` share: flags, opening weights, tables and notes. */
import { availableParallelism } from 'node:os'

import { type Command, Option } from 'commander'

import { mostWorkers, workersFor } from '../data/workerPool.js'
import { Group } from '../distributed/group.js'
import { deviceOfRank, identity } from '../distributed/launcher.js'
import { endTogether, leaveTogether, openGroup } from '../distributed/open.js'
import { sharing } from '../distributed/sharing.js'
import { together } from '../distributed/together.js'

import { type EvaluationTable, evaluationFolder, imageSizeOfRun, saveResult, tableText } from '../run/results.js'
import type { Backbone, BackboneKind } from '../nn/backbone.js'
import { countLine } from '../run/liveLine.js'
import { hostLimits, type MemoryLimits } from '../run/memory.js'
import { evaluationCompute } from '../eval/compute.js'
import { backboneHelp, kindOfFlag } from '../run/backbone.js'
import { namedDevice } from '../run/device.js'
import { resolvePlacement } from '../run/placement.js'
import { useDevice } from '../selftest/trust.js'
import type { ComputeOptions } from '../tensor/compute.js'
import { packageVersion } from '../tensor/addon.js'
import { fail } from '../tensor/errors.js'
import { Random } from '../tensor/random.js'
import { type FloatDType, withDevice } from '../tensor/tensor.js'
import { importBackbone, type ImportOptions } from '../weights/import.js'
import { isQuiet, nameSettings, numberFlag, type OutputFlags, quietFlag } from './command.js'

/** Adds the command of one evaluation; `done` takes the exit code. */
export type AddEvaluation = (parent: Command, done: (code: number) => void) => void

const evaluationPrecisions = ['auto', 'f32', 'tf32', 'bf16'] as const

/** Where a command computes, how, and on which kind of network: the flags of withComputing(). */
export interface ComputingFlags {
  device: string
  threads: string
  precision: (typeof evaluationPrecisions)[number]
  backbone?: string
}

/** The same, and how many threads read images: the flags of withPlacement(). */
export interface PlacementFlags extends ComputingFlags {
  workers: string
}

export interface SharedFlags extends PlacementFlags, OutputFlags {
  init?: string
  out?: string
}

/** Adds the flags of PlacementFlags. */
export const withPlacement = (command: Command): Command =>
  withComputing(command.optionsGroup('Computing:').option('--workers <count>', 'data worker threads; 0 chooses', '0'))

/** Adds the flags of ComputingFlags, for a command that reads its images itself. */
export const withComputing = (command: Command): Command =>
  command
    .optionsGroup('Computing:')
    .option('--threads <count>', 'compute threads; 0 takes all cores', '0')
    .option('--device <name>', 'cpu or cuda:N; auto takes a GPU where there is one', 'auto')
    .addOption(
      new Option('--precision <how>', 'of convolutions; auto is tf32 on a GPU, f32 on the CPU; bf16 halves activations')
        .choices(evaluationPrecisions)
        .default('auto'),
    )
    .option('--backbone <module>', backboneHelp)
    .optionsGroup('')

/** The whole number of a flag; `otherwise` where it was not given. */
export const wholeFlag = (flag: string, text: string | undefined, otherwise: number, least = 1, most = Infinity): number =>
  text === undefined ? otherwise : numberFlag(flag, text, { least, most, whole: true })

/** The flags of a training that goes on where it was cut off. */
interface ResumableFlags extends OutputFlags {
  resume?: boolean
  overwrite?: boolean
  logEvery?: string
  saveEvery?: string
  testEvery?: string
}

/** How such a training begins, and how often it speaks, saves and tests. */
export const resumableOptions = (flags: ResumableFlags, usual: { logEvery: number; saveEvery: number }) => ({
  resume: flags.resume ?? false,
  overwrite: flags.overwrite ?? false,
  quiet: isQuiet(flags),
  logEvery: wholeFlag('log-every', flags.logEvery, usual.logEvery),
  saveEvery: wholeFlag('save-every', flags.saveEvery, usual.saveEvery),
  testEvery: wholeFlag('test-every', flags.testEvery, 0, 0),
})

/** MiB of decoded images that an evaluation keeps, on each machine. */
const cacheMegabytes = 1024

/** What the processes of a command share an evaluation with. */
export interface SharedEvaluation {
  group: Group
  cacheMegabytes: number
  /** Asked between steps, by all processes alike. */
  interrupted: () => boolean
}

/**
 * An evaluation by the processes that were started with this one. `prepare` looks up what is evaluated, by the flags as they are for this
 * process: its device and its part of the machine, and rank 0 alone speaks; `identityOf` says what must be the same in all. `evaluate`
 * shares the work, and `conclude` writes what came of it, in rank 0.
 */
export async function amongProcesses<F extends SharedFlags, P, R extends { interrupted: boolean }>(
  given: F,
  steps: {
    prepare: (flags: F) => Promise<P>
    identityOf: (prepared: P) => unknown
    evaluate: (prepared: P, shared: SharedEvaluation, flags: F) => Promise<R>
    conclude: (result: R, prepared: P, flags: F) => void | Promise<void>
    dispose: (prepared: P) => void
  },
): Promise<R> {
  const here = identity()
  const group = openGroup(given.device)
  leaveTogether(group)
  const part = (text: string, all: number): string => (text === '0' ? String(Math.max(1, Math.floor(all / here.localSize))) : text)
  const flags =
    group.size === 1
      ? given
      : {
          ...given,
          device: deviceOfRank(given.device, here),
          threads: part(given.threads, availableParallelism()),
          workers: part(given.workers, workersFor(0)),
          ...(group.rank === 0 ? {} : { quiet: true }),
        }
  const prepared = await together(
    group,
    'the evaluation',
    () => steps.prepare(flags),
    (made) => ({ version: packageVersion, 'what is evaluated': steps.identityOf(made) }),
  )
  try {
    const shared = { group, cacheMegabytes: cacheMegabytes / (group.size === 1 ? 1 : here.localSize) }
    const result = await sharing(
      group,
      () => false,
      (interrupted) => steps.evaluate(prepared, { ...shared, interrupted }, flags),
    )
    endTogether(group)
    if (group.rank === 0) await steps.conclude(result, prepared, flags)
    return result
  } finally {
    steps.dispose(prepared)
  }
}

/** The argument and the flags of every evaluation. */
export function evaluation(parent: Command, name: string, description: string): Command {
  const command = parent
    .command(name)
    .description(description)
    .argument('<weights>', 'a checkpoint or backbone, ours or foreign (.safetensors, .pth)')
    .optionsGroup('Result:')
    .option('--out <folder>', 'where it goes; default: eval/ of the run that the weights belong to')
    .option(...quietFlag)
    .option('--json', 'print JSON')
  return nameSettings(withPlacement(command), {
    compute: '--precision',
    backbone: 'the network of <weights>',
    weights: 'the values of <weights>',
  })
}

/** What the flags of withComputing() say of a network: its device, its kind where they name one, the dtype of activations, and settings. */
export async function placementOf({
  device: wanted,
  threads,
  backbone: module,
  precision,
}: ComputingFlags): Promise<{ device: string; kind: BackboneKind | undefined; dtype: FloatDType; compute: ComputeOptions }> {
  const count = numberFlag('threads', threads, { least: 0, whole: true })
  const device = await useDevice(namedDevice(wanted))
  const kind = await kindOfFlag(module)
  // What an evaluation takes without being told is tf32, not the bf16 of a pre-training.
  const dtype = precision === 'auto' ? 'f32' : resolvePlacement({ device, precision }).compute
  const products = precision === 'auto' ? {} : ({ precision: precision === 'tf32' ? precision : 'f32' } as const)
  return { device, kind, dtype, compute: evaluationCompute(device, { threads: count === 0 ? undefined : count, ...products }) }
}

/**
 * The backbone of a file on the device of the flags, and the settings to evaluate it with; what kind it is goes into the notes of
 * every table.
 */
export async function openBackbone(
  weights: string,
  flags: ComputingFlags,
  layout: Pick<ImportOptions, 'outputStride'> = {},
): Promise<{ backbone: Backbone; compute: ComputeOptions; note: string }> {
  const { device, kind, dtype, compute } = await placementOf(flags)
  const { backbone, report } = withDevice(device, () => importBackbone(weights, { kind, compute: dtype, ...layout }))
  const names = report.prefix === '' ? 'plain names' : `names after the prefix ${report.prefix}`
  return {
    backbone,
    compute,
    note: `${weights}: ${backbone.description}, read from ${names}${dtype === 'f32' ? '' : `, activations in ${dtype}`}`,
  }
}

/** The flag of an evaluation whose memory is looked at before it starts. */
export const forceFlag = ['--force', 'start although the memory does not seem to suffice'] as const

/**
 * Throws where `check` says that the memory of this machine and of a device does not suffice for each of the processes that share the
 * evaluation here, unless --force was given; prints what it says otherwise.
 */
export async function checkMemory(
  { force, ...flags }: SharedFlags & { force?: boolean },
  { device }: { device: string },
  check: (limits: MemoryLimits) => string | Promise<string>,
): Promise<void> {
  const { localSize } = identity()
  const among = localSize === 1 ? '' : `, of each of the ${localSize} processes here`
  const line = force === true ? 'memory  not looked at (--force)' : `${await check(hostLimits(device, localSize))}${among}`
  if (!isQuiet(flags)) console.log(line)
}

/** What `body` gives; `owned` is freed where it fails. */
export async function keepingUnlessFailed<R>(owned: { dispose(): void }, body: () => R | Promise<R>): Promise<R> {
  try {
    return await body()
  } catch (error) {
    owned.dispose()
    throw error
  }
}

/** Adds --init and --seed to an evaluation of which random weights are the baseline. */
export const withInit = (command: Command, seed?: string): Command =>
  command
    .option('--init <how>', 'weights, or random: the same network from random weights, the baseline', 'weights')
    .option('--seed <number>', seed === undefined ? 'of random weights' : `of ${seed}, and of random weights`, '0')

/**
 * openBackbone(), or for --init random a network of the same form with weights that `seed` draws. `suffix` goes behind the name of the
 * result, so that both are kept.
 */
export async function openInitial(
  weights: string,
  flags: SharedFlags & { seed: string },
  layout: Pick<ImportOptions, 'outputStride'> = {},
): Promise<{ backbone: Backbone; compute: ComputeOptions; note: string; suffix: string; seed: number }> {
  const { init = 'weights' } = flags
  if (init !== 'weights' && init !== 'random') fail('CONFIG', `--init is ${init}: expected weights or random`)
  const seed = numberFlag('seed', flags.seed, { least: 0, whole: true })
  const opened = await openBackbone(weights, flags, layout)
  if (init === 'weights') return { ...opened, suffix: '', seed }
  const backbone = randomLike(opened.backbone, seed, layout)
  opened.backbone.dispose()
  return { ...opened, backbone, note: `from random weights, shaped as ${opened.note}`, suffix: '-random', seed }
}

/** A network of the same form on the same device, with weights that `seed` draws. */
export const randomLike = (
  { kind, options, device, compute }: Backbone,
  seed: number,
  layout: Pick<ImportOptions, 'outputStride'> = {},
): Backbone =>
  withDevice(device, () => kind.build({ random: new Random(seed, 53), dtype: 'f32', compute }, options, { init: 'mmselfsup', ...layout }))

/** What --image-size says where it is not given. */
export const imageSizeHelp = 'that of the run which made the weights, else that of the protocol'

/**
 * The image size of a flag, or else of the run that made the weights, or else the protocol's; and what a table says of the images: their
 * size, where that is from, and how they are normalised.
 */
export function imageSizeOf(text: string | undefined, weights: string, otherwise: number, least = 1): { imageSize: number; note: string } {
  const ofRun = text === undefined ? imageSizeOfRun(weights) : undefined
  const imageSize = text === undefined ? (ofRun ?? otherwise) : numberFlag('image-size', text, { least, whole: true })
  const from = text !== undefined ? 'as asked for' : ofRun === undefined ? "the protocol's" : 'as the run that made the weights'
  return { imageSize, note: `images of ${imageSize} px (${from}), normalised as its file says, else as ImageNet's` }
}

export const workersOf = ({ workers }: Pick<SharedFlags, 'workers'>): number =>
  numberFlag('workers', workers, { least: 0, most: mostWorkers, whole: true })

/** The folder of results. */
export const resultFolder = (weights: string, { out }: SharedFlags): string => out ?? evaluationFolder(weights)

/** Prints a table, or as JSON everything, and keeps both. */
export function conclude(flags: SharedFlags, folder: string, name: string, table: EvaluationTable, result: Record<string, unknown>): void {
  const path = saveResult(folder, name, table, result)
  console.log(flags.json === true ? JSON.stringify({ ...result, table, file: path }, undefined, 2) : `${tableText(table)}\n${path}`)
}

const counts = countLine(process.stdout, false)

/** A line that is rewritten on a terminal, for work that takes minutes; silent elsewhere and where the result alone is wanted. */
export function progressOf(flags: OutputFlags, what: string): (done: number, of?: number) => void {
  if (isQuiet(flags)) return () => undefined
  return (done, of) => (done === of ? counts.clear() : counts.show([`${what} ${done}${of === undefined ? '' : ` of ${of}`}`]))
}

/** What differs from a protocol, in words; empty when nothing does. */
export function deviations(differences: [name: string, value: string | number, published: string | number][]): string[] {
  const changed = differences.filter(([, value, published]) => String(value) !== String(published))
  return changed.length === 0
    ? []
    : [`deviates from the protocol: ${changed.map(([name, value, published]) => `${name} ${value} (published ${published})`).join(', ')}`]
}

/** What a table must say of images that could not be read. */
export function unreadable(broken: ReadonlyMap<string, string>, consequence = 'and count as black ones'): string[] {
  return broken.size === 0
    ? []
    : [
        `${broken.size} images could not be ` +
          `read ${consequence}: ${[...broken.values()].slice(0, 3).join('; ')}${broken.size > 3 ? ' ...' : ''}`,
      ]
}
