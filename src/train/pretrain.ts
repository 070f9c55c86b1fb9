/** The main job: from a configuration to a run folder with checkpoints, metrics, an exported backbone and pictures. */
import { existsSync } from 'node:fs'

import { stringify } from 'yaml'

import { stepsPerEpoch } from '../data/sampler.js'
import type { Source } from '../data/source.js'
import { openSource } from '../data/sources.js'
import { writeTextAtomic } from '../files/atomic.js'
import { findMethod, optionsOf, resolveConfig } from '../methods/index.js'
import type { BuiltMethod, Method } from '../methods/method.js'
import type { BackboneKind } from '../nn/backbone.js'
import { optimizerOf } from '../optim/choose.js'
import { backboneOf, loadBackboneKind } from '../run/backbone.js'
import type { Config } from '../run/config.js'
import { isFree, settingsOf } from '../run/options.js'
import { computeSettings, type Placement, resolvePlacement } from '../run/placement.js'
import { claimFolder, environment, files, lockRun } from '../run/runFolder.js'
import { RunLog } from '../run/runLog.js'
import { trustDevice } from '../selftest/trust.js'
import { fail } from '../tensor/errors.js'
import { withCompute } from '../tensor/compute.js'
import { isInterruption } from '../tensor/interruption.js'
import { withDevice } from '../tensor/tensor.js'
import { Artifacts } from './artifacts.js'
import { type Checkpoint, type Position, readCheckpoint, restoreCheckpoint } from './checkpoint.js'
import { chooseTuning, type TunerOverrides } from './chooseTuning.js'
import { knnSets, type LabelledSets } from './labels.js'
import { Loop } from './loop.js'
import { checkMemory } from './memory.js'
import { Monitor } from './monitor.js'
import { RunPictures } from './pictures.js'
import { introduction, planWarnings } from './progress.js'
import { type DryRun, rehearse } from './rehearse.js'
import type { PlannedRun, PretrainResult, Run } from './run.js'

/** What pretrain() is given beside the configuration. */
export interface PretrainOptions {
  config: Config
  /** The method of the run; by default the one that the configuration names. */
  method?: Method
  out: string
  resume?: boolean
  overwrite?: boolean
  quiet?: boolean
  /** Starts a run although its memory does not seem to suffice (src/train/memory.ts). */
  force?: boolean
  /** Asked before every step; true saves and leaves. */
  interrupted?: () => boolean
  /** @internal */
  tuner?: TunerOverrides
}

/** Trains as `config` says, in a new run folder or, with `resume`, from the last checkpoint of the one that is there. */
export async function pretrain(options: PretrainOptions): Promise<PretrainResult> {
  const { out, resume = false } = options
  const method = options.method ?? (await findMethod(options.config.method)).method
  const wanted = resolveConfig(settingsOf(options.config, 'config'), method)
  if (!resume) return start(options, method, wanted, undefined)
  // Before the checkpoint is read: a run that is alive would write another.
  const lock = existsSync(out) ? lockRun(out) : undefined
  try {
    return await start(options, method, wanted, readCheckpoint(files(out).last, method))
  } finally {
    lock?.release()
  }
}

async function start(
  options: PretrainOptions,
  method: Method,
  wanted: Config,
  checkpoint: Checkpoint | undefined,
): Promise<PretrainResult> {
  const config = checkpoint === undefined ? wanted : resumedConfig(checkpoint, wanted, method)
  const placement = resolvePlacement(config)
  const checked = await trustDevice(placement.device, options.interrupted === undefined ? {} : { interrupted: options.interrupted })
  if (!checked) return { interrupted: true, globalStep: checkpoint?.position.globalStep ?? 0, files: {} }
  const kind = await loadBackboneKind(config.backbone)
  const parts = { method, kind, placement }
  // Before anything is read, and once more with what kNN looks at.
  if (options.force !== true) checkMemory(config, parts)
  const source = await openSource(config.data, { format: config.format })
  const labelled = await knnSets(config, source)
  const knn = labelled === undefined ? undefined : { bank: labelled.bank.length, queries: labelled.queries.length }
  const memory = options.force === true ? 'memory  not looked at (--force)' : checkMemory(config, { ...parts, knn })
  checkSize(config, source.items.length, checkpoint)
  // Only now: a mistake above must not cost the run that is replaced.
  const lock = checkpoint === undefined ? claimFolder(options.out, options.overwrite ?? false) : undefined
  try {
    return await execute(begin(options, { method, config, placement, kind, source }, checkpoint), labelled, options, memory)
  } finally {
    lock?.release()
  }
}

function resumedConfig({ config, position }: Checkpoint, wanted: Config, method: Method): Config {
  const values = (of: Record<string, unknown>, key: string): string => JSON.stringify(of[key])
  const changed = Object.entries(optionsOf(method))
    // More epochs extend a run.
    .filter(([key, row]) => !isFree(row) && !(key === 'epochs' && wanted.epochs > config.epochs))
    .map(([key]) => ({ key, was: values(config, key), is: values(wanted, key) }))
    .filter(({ was, is }) => was !== is)
  if (changed.length > 0)
    fail(
      'CONFIG',
      `resume: ${changed.map(({ key, was, is }) => `${key} was ${was} and is now ${is}`).join('; ')}; start a new run for that`,
    )
  if (position.epoch > wanted.epochs) fail('CONFIG', `resume: the run is at epoch ${position.epoch} of ${wanted.epochs}`)
  return wanted
}

function checkSize(config: Config, images: number, checkpoint: Checkpoint | undefined): void {
  if (images < config.batchSize)
    fail('CONFIG', `batchSize is ${config.batchSize} but ${config.data} holds ${images} images: expected a batch of at most that`)
  if (checkpoint !== undefined && checkpoint.position.images !== images)
    fail('DATA', `resume: ${config.data} holds ${images} images but the run was started with ${checkpoint.position.images}`)
}

/** What a run is made of, as it has been looked up. */
interface Parts {
  method: Method
  config: Config
  placement: Placement
  kind: BackboneKind
  source: Source
}

/** The networks and the optimiser, as they are at the start or in the checkpoint. */
function begin({ out, quiet = false }: PretrainOptions, parts: Parts, checkpoint: Checkpoint | undefined): Run {
  const planned = plan(parts, checkpoint)
  return { ...planned, out, log: new RunLog(out, planned.position.globalStep, quiet) }
}

function plan({ method, config, placement, kind, source }: Parts, checkpoint?: Checkpoint): PlannedRun {
  const images = source.items.length
  const position: Position = checkpoint?.position ?? { epoch: 0, step: 0, globalStep: 0, images }
  const [built, optimizer] = withDevice(placement.device, () => {
    const network = method.build(config, { backbone: backboneOf(config, kind), compute: placement.compute })
    checkInputs(config, network)
    const { parameters, copies } = network.trained()
    return [network, optimizerOf(config, parameters, copies)]
  })
  if (checkpoint !== undefined) restoreCheckpoint(checkpoint, built, optimizer)
  const steps = stepsPerEpoch(images, config.batchSize)
  const before = checkpoint?.config.epochs ?? config.epochs
  const extended = before < config.epochs ? { extendedFrom: before } : {}
  return { config, method, built, optimizer, source, steps, position, resumed: checkpoint !== undefined, ...extended }
}

/**
 * What pretrain() would do with this configuration, in lines: networks, data, memory, schedule, and the time by a few steps that are taken
 * and forgotten. No folder is touched. Throws what pretrain() would throw before its first step.
 */
export async function dryRun({ config: given, method: known, force }: Omit<PretrainOptions, 'out'>): Promise<DryRun> {
  const method = known ?? (await findMethod(given.method)).method
  const config = resolveConfig(settingsOf(given, 'config'), method)
  const placement = resolvePlacement(config)
  const kind = await loadBackboneKind(config.backbone)
  const source = await openSource(config.data, { format: config.format })
  const labelled = await knnSets(config, source)
  const knn = labelled === undefined ? undefined : { bank: labelled.bank.length, queries: labelled.queries.length }
  const memory = force === true ? 'memory  not looked at (--force)' : checkMemory(config, { method, kind, placement, knn })
  checkSize(config, source.items.length, undefined)
  const run = plan({ method, config, placement, kind, source })
  try {
    return await rehearse(run, memory)
  } finally {
    run.optimizer.dispose()
    run.built.dispose()
  }
}

function checkInputs({ backbone: wanted }: Config, built: BuiltMethod): void {
  const { inputs, name } = built.backbone
  if (inputs === 3) return
  built.dispose()
  fail('CONFIG', `backbone is ${wanted}: expected one of 3 input channels, as images are read, but ${name} takes ${inputs}`)
}

async function execute(run: Run, labelled: LabelledSets | undefined, options: PretrainOptions, memory: string): Promise<PretrainResult> {
  try {
    return await trained(run, labelled, options, memory)
  } finally {
    run.optimizer.dispose()
    run.built.dispose()
  }
}

async function trained(run: Run, labelled: LabelledSets | undefined, options: PretrainOptions, memory: string): Promise<PretrainResult> {
  const { out, log, config, source } = run
  const { backbone } = run.built
  for (const line of introduction(run)) log.line(line)
  for (const warning of planWarnings(run)) log.line(`warning ${warning}`)
  log.line(memory)
  const compute = computeSettings(config)
  const tuning = withCompute(compute, () => chooseTuning(run, options.tuner))
  const loop = new Loop(run, { ...compute, ...tuning })
  try {
    const pictures = await RunPictures.of(out, source, config, (reason) => log.warn(`no picture: ${reason}`))
    const artifacts = new Artifacts(run, labelled, pictures)
    if (!run.resumed || run.extendedFrom !== undefined) writeTextAtomic(files(out).config, stringify(config))
    // A run that is to end here has begun: its checkpoint is of step 0.
    if (!(await unlessEnded(() => artifacts.begin()))) return interruptedResult(run, artifacts)
    writeTextAtomic(
      files(out).environment,
      `${JSON.stringify({ backbone: backbone.description, ...withCompute(compute, () => environment(backbone.device)) }, undefined, 2)}\n`,
    )
    const monitor = new Monitor(run, () => loop.loader.spent)
    if ((await loop.train(monitor, artifacts, options.interrupted ?? (() => false))) === 'interrupted')
      return interruptedResult(run, artifacts)
    let result: PretrainResult | undefined
    const finish = async (): Promise<void> => {
      result = await artifacts.finish(monitor.numbers, loop.loader.broken, options.quiet ?? false)
    }
    return (await unlessEnded(finish)) ? result! : interruptedResult(run, artifacts)
  } finally {
    await loop.close()
  }
}

/** False where `body` was left because the run is to end. */
async function unlessEnded(body: () => Promise<void>): Promise<boolean> {
  try {
    await body()
    return true
  } catch (error) {
    if (!isInterruption(error)) throw error
    return false
  }
}

/** Says what of a run that ends early is on the disk. */
function interruptedResult({ out, log, position }: Run, { saved }: Artifacts): PretrainResult {
  const place = ({ epoch, step }: Readonly<Position>): string => `epoch ${epoch}, step ${step}`
  const result = { interrupted: true, globalStep: position.globalStep }
  if (saved === undefined) {
    log.warn(`interrupted at ${place(position)}: nothing is saved; start anew with --overwrite`)
    return { ...result, files: {} }
  }
  if (saved.globalStep === position.globalStep) log.line(`interrupted: saved at ${place(saved)}; continue with --resume`)
  else
    log.warn(
      `interrupted at ${place(position)}, which is not saved; --resume continues at ${place(saved)}, the last checkpoint, and does ` +
        `${position.globalStep - saved.globalStep} steps again`,
    )
  return { ...result, savedStep: saved.globalStep, files: { checkpoint: files(out).last } }
}
