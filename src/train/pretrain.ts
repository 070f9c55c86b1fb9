/** The main job: from a configuration to a run folder with checkpoints, metrics, an exported backbone and pictures. */
import { createHash } from 'node:crypto'
import { existsSync } from 'node:fs'

import { stringify } from 'yaml'

import { Group } from '../distributed/group.js'
import { deviceOfRank, identity } from '../distributed/launcher.js'
import { endTogether } from '../distributed/open.js'
import { withPace } from '../distributed/pace.js'
import { sharing } from '../distributed/sharing.js'
import { together } from '../distributed/together.js'
import { stepsPerEpoch } from '../data/sampler.js'
import type { Source } from '../data/source.js'
import { openSource, sourceKind } from '../data/sources.js'
import { writeTextAtomic } from '../files/atomic.js'
import { findMethod, optionsOf, resolveConfig } from '../methods/index.js'
import type { BuiltMethod, Method } from '../methods/method.js'
import type { BackboneKind } from '../nn/backbone.js'
import { optimizerOf } from '../optim/choose.js'
import { backboneOf, loadBackboneKind } from '../run/backbone.js'
import type { Config } from '../run/config.js'
import { hostLimits } from '../run/memory.js'
import { isFree, settingsOf } from '../run/options.js'
import { computeSettings, type Placement, resolvePlacement } from '../run/placement.js'
import { type FileLock, untilSure } from '../files/lock.js'
import { claimFolder, environment, files, lockRun } from '../run/runFolder.js'
import { type LogTo, openLogTo } from '../run/logTo.js'
import { RunLog } from '../run/runLog.js'
import { trustDevice } from '../selftest/trust.js'
import { fail } from '../tensor/errors.js'
import { changesOf } from '../run/results.js'
import { called } from '../tensor/settingNames.js'
import { packageVersion } from '../tensor/addon.js'
import { withCompute } from '../tensor/compute.js'
import { currentAsk, isInterruption } from '../tensor/interruption.js'
import { withDevice } from '../tensor/tensor.js'
import { Artifacts } from './artifacts.js'
import { type Checkpoint, type Position, readCheckpoint, restoreCheckpoint } from './checkpoint.js'
import { chooseTuning, type TunerOverrides } from './chooseTuning.js'
import { knnSets, type LabelledSets } from './labels.js'
import { knnOf } from './knn.js'
import { Loop } from './loop.js'
import { checkMemory } from './memory.js'
import { Monitor } from './monitor.js'
import { RunPictures } from './pictures.js'
import { introduction, planWarnings } from './progress.js'
import { type DryRun, rehearse } from './rehearse.js'
import { begunConfig, type BegunConfig, checkShare, shareOf } from './share.js'
import { begunBefore, type PlannedRun, type PretrainResult, type Run } from './run.js'

/** What pretrain() is given beside the configuration. */
export interface PretrainOptions {
  config: Config
  /** The method of the run; by default the one that the configuration names. */
  method?: Method
  out: string
  resume?: boolean
  overwrite?: boolean
  /** Prints nothing but warnings. */
  quiet?: boolean
  /** Starts a run although its memory does not seem to suffice (src/train/memory.ts). */
  force?: boolean
  /** Asked before every step; true saves and leaves. */
  interrupted?: () => boolean
  /** The processes that train together, each with these options: openGroup() gives them. Group.single when absent. */
  group?: Group
  /** @internal */
  tuner?: TunerOverrides
  /** @internal False for runs whose pictures, of 224 px, would take longer than all of the training. */
  pictures?: boolean
}

/**
 * Trains as `config` says, in a new run folder or, with `resume`, from the last checkpoint of the one that is there. Of several processes
 * each reads the folder and rank 0 alone writes to it.
 */
export async function pretrain(options: PretrainOptions): Promise<PretrainResult> {
  const { out, resume = false, group = Group.single } = options
  // Before the checkpoint is read: a run that is alive would write another.
  const locks: FileLock[] = []
  let checkpoint: Checkpoint | undefined
  const prepare = async (): Promise<Prepared | undefined> => {
    const method = options.method ?? (await findMethod(options.config.method)).method
    const wanted = resolveConfig(settingsOf(options.config, 'config'), method)
    // A job that is started again elsewhere may be there before the lock of what was killed counts as nobody's.
    if (group.rank === 0) await untilSure(files(out).lock)
    if (resume && group.rank === 0 && existsSync(out)) locks.push(lockRun(out))
    if (resume) checkpoint = readCheckpoint(files(out).last, method)
    return setUp(options, method, wanted, checkpoint)
  }
  try {
    const prepared = await withPace(currentAsk(), () =>
      together(group, 'the run', prepare, (run) => (run === undefined ? {} : identityOf(run))),
    )
    const start = (ready: Prepared): Run => {
      // Only now: a mistake above, of any process, must not cost the run that is replaced.
      if (!resume && group.rank === 0) locks.push(claimFolder(out, stringify(ready.config), options.overwrite ?? false))
      return begin(options, ready)
    }
    const train = async (ready: Prepared): Promise<PretrainResult> => {
      const run = await together(group, 'the start', () => start(ready))
      return execute(run, ready, options)
    }
    const nothing = { interrupted: true, globalStep: checkpoint?.position.globalStep ?? 0, files: {} }
    const result = prepared === undefined ? nothing : await train(prepared)
    endTogether(group)
    return result
  } finally {
    for (const lock of locks) lock.release()
  }
}

/** What must be the same in all processes of a run, by names. */
const identityOf = ({ config, source, checkpoint }: Prepared): Record<string, unknown> => ({
  version: packageVersion,
  ...Object.fromEntries(Object.entries(config).map(([key, value]) => [called(key), value])),
  'the list of images': namesOf(source),
  'the checkpoint': checkpoint?.position,
})

/** A digest of the names of all images, in their order. */
function namesOf({ items }: Source): string {
  const hash = createHash('sha256')
  for (const { name } of items) hash.update(`${name}\0`)
  return hash.digest('hex')
}

/** A run that has been looked up, and is neither begun nor on the disk. */
interface Prepared extends Parts {
  checkpoint: Checkpoint | undefined
  /** A line about the memory. */
  memory: string
  logTo: LogTo | undefined
}

/** Undefined where the run is to end before it begins. */
async function setUp(
  options: PretrainOptions,
  method: Method,
  wanted: Config,
  checkpoint: Checkpoint | undefined,
): Promise<Prepared | undefined> {
  const { force = false, group = Group.single } = options
  const begun = begunConfig(wanted, group.size, checkpoint?.config)
  const config = checkpoint === undefined ? begun : resumedConfig(checkpoint, begun, method)
  // A path that is not there is said before anything that takes long, or is about the size of a run.
  sourceKind(config.data, config.format, 'data')
  const here = identity()
  const placement = resolvePlacement(group.size === 1 ? config : { ...config, device: deviceOfRank(config.device, here) })
  checkShare(config, method, group, placement.device)
  const checked = await trustDevice(placement.device, options.interrupted === undefined ? {} : { interrupted: options.interrupted })
  if (!checked) return undefined
  const logTo = await openLogTo(config.logTo)
  const kind = await loadBackboneKind(config.backbone)
  const processes = group.size === 1 ? 1 : here.localSize
  const share = shareOf(config, group, processes)
  const look = (knn?: { bank: number; queries: number }): string => {
    const line = checkMemory(share, { method, kind, placement, knn, processes: group.size }, hostLimits(placement.device, processes))
    return processes === 1 ? line : `${line}, of each of the ${processes} processes here`
  }
  // Before anything is read, and once more with what kNN looks at.
  if (!force) look()
  const source = await openSource(config.data, { format: config.format, cache: config, setting: 'data' })
  const labelled = await knnSets(config, source)
  const memory = force ? 'memory  not looked at (--force)' : look(sizeOf(labelled))
  checkSize(config, source.items.length, checkpoint)
  return { method, config, share, group, placement, kind, source, checkpoint, labelled, memory, logTo }
}

/** How many images kNN looks at. */
const sizeOf = (labelled: LabelledSets | undefined): { bank: number; queries: number } | undefined =>
  labelled === undefined ? undefined : { bank: labelled.bank.length, queries: labelled.queries.length }

function resumedConfig({ config, position }: Checkpoint, wanted: BegunConfig, method: Method): BegunConfig {
  const fixed = Object.entries(optionsOf(method))
    // More epochs extend a run.
    .filter(([key, row]) => !isFree(row) && !(key === 'epochs' && wanted.epochs > config.epochs))
    .map(([key]) => key)
  const fixedOf = (of: Record<string, unknown>) => Object.fromEntries(fixed.map((key) => [key, of[key]]))
  const changes = changesOf(fixedOf(config), fixedOf(wanted))
  if (changes.length > 0) fail('CONFIG', `resume: ${changes.join('; ')}; start a new run for that`)
  if (position.epoch > wanted.epochs) fail('CONFIG', `resume: the run is at epoch ${position.epoch} of ${wanted.epochs}`)
  return wanted
}

function checkSize(config: Config, images: number, checkpoint: Checkpoint | undefined): void {
  if (images < config.batchSize)
    fail(
      'CONFIG',
      `${called('batchSize')} is ${config.batchSize} but ${config.data} holds ${images} images: expected a batch of at most that`,
    )
  if (checkpoint !== undefined && checkpoint.position.images !== images)
    fail('DATA', `resume: ${config.data} holds ${images} images but the run was started with ${checkpoint.position.images}`)
}

/** What a run is made of, as it has been looked up. */
interface Parts {
  method: Method
  config: BegunConfig
  group: Group
  share: BegunConfig
  placement: Placement
  kind: BackboneKind
  source: Source
  labelled: LabelledSets | undefined
}

/** The networks and the optimiser, as they are at the start or in the checkpoint. */
function begin({ out, quiet = false }: PretrainOptions, prepared: Prepared): Run {
  const planned = plan(prepared, prepared.checkpoint)
  const speaks = prepared.group.rank === 0
  return {
    ...planned,
    out,
    log: new RunLog(speaks ? out : undefined, planned.position.globalStep, quiet || !speaks, 'warn', prepared.logTo),
  }
}

function plan({ method, config, group, share, placement, kind, source, labelled }: Parts, checkpoint?: Checkpoint): PlannedRun {
  const images = source.items.length
  const position: Position = checkpoint?.position ?? { epoch: 0, step: 0, globalStep: 0, images }
  const [built, optimizer] = withDevice(placement.device, () => {
    const shared = group.size === 1 ? {} : { group }
    const network = method.build(share, { backbone: backboneOf(config, kind), compute: placement.compute, ...shared })
    checkInputs(config, network)
    const { parameters, copies } = network.trained()
    return [network, optimizerOf(config, parameters, copies)]
  })
  if (checkpoint !== undefined) restoreCheckpoint(checkpoint, built, optimizer)
  const steps = stepsPerEpoch(images, config.batchSize)
  const before = checkpoint?.config.epochs ?? config.epochs
  const extended = before < config.epochs ? { extendedFrom: before } : {}
  return {
    config,
    group,
    share,
    method,
    built,
    optimizer,
    source,
    labelled,
    steps,
    position,
    resumed: checkpoint !== undefined,
    ...extended,
  }
}

/**
 * What pretrain() would do with this configuration, in lines: networks, data, memory, schedule, and the time by a few steps that are taken
 * and forgotten. No folder is touched. Throws what pretrain() would throw before its first step.
 */
export async function dryRun({ config: given, method: known, force }: Omit<PretrainOptions, 'out'>): Promise<DryRun> {
  const method = known ?? (await findMethod(given.method)).method
  const config = begunConfig(resolveConfig(settingsOf(given, 'config'), method), 1)
  const placement = resolvePlacement(config)
  const kind = await loadBackboneKind(config.backbone)
  const source = await openSource(config.data, { format: config.format, cache: config, setting: 'data' })
  const labelled = await knnSets(config, source)
  const memory =
    force === true ? 'memory  not looked at (--force)' : checkMemory(config, { method, kind, placement, knn: sizeOf(labelled) })
  checkSize(config, source.items.length, undefined)
  const run = plan({ method, config, group: Group.single, share: config, placement, kind, source, labelled })
  try {
    return await rehearse(run, memory)
  } finally {
    run.optimizer.dispose()
    run.built.dispose()
  }
}

function checkInputs({ backbone: wanted, channels }: Config, built: BuiltMethod): void {
  const { inputs, name } = built.backbone
  if (inputs === channels) return
  built.dispose()
  fail(
    'CONFIG',
    `${called('backbone')} is ${wanted}: expected one of ${channels} input channels, as images are read (${called('channels')}), but ` +
      `${name} takes ${inputs}`,
  )
}

async function execute(run: Run, prepared: Prepared, { interrupted = () => false, ...options }: PretrainOptions): Promise<PretrainResult> {
  try {
    return await sharing(run.group, interrupted, (any) => trained(run, prepared, { ...options, interrupted: any }))
  } finally {
    run.optimizer.dispose()
    run.built.dispose()
  }
}

async function trained(run: Run, { memory }: Prepared, options: PretrainOptions): Promise<PretrainResult> {
  const { out, log, config, source, group } = run
  const { backbone } = run.built
  // All processes would warn alike.
  if (group.rank === 0)
    for (const line of [...introduction(run), ...planWarnings(run).map((warning) => `warning ${warning}`), memory]) log.line(line)
  const compute = computeSettings(run.share)
  const tuning = withCompute(compute, () => chooseTuning(run, options.tuner))
  const loop = new Loop(run, { ...compute, ...tuning })
  const { interrupted = () => false } = options
  try {
    if (group.rank > 0) {
      if (!begunBefore(run)) await knnOf(run)
      const ended = await loop.train(undefined, interrupted)
      if (ended === 'done') await knnOf(run)
      return { interrupted: ended === 'interrupted', globalStep: run.position.globalStep, files: {} }
    }
    const warn = (reason: string): void => log.warn(`no picture: ${reason}`)
    const pictures = options.pictures === false ? undefined : await RunPictures.of(out, source, config, warn)
    const artifacts = new Artifacts(run, pictures)
    if (!run.resumed || run.extendedFrom !== undefined) writeTextAtomic(files(out).config, stringify(config))
    // A run that is to end here has begun: its checkpoint is of step 0.
    if (!(await unlessEnded(() => artifacts.begin()))) return interruptedResult(run, artifacts)
    writeTextAtomic(
      files(out).environment,
      `${JSON.stringify({ backbone: backbone.description, ...withCompute(compute, () => environment(backbone.device)) }, undefined, 2)}\n`,
    )
    const monitor = new Monitor(run, () => loop.loader.spent)
    if ((await loop.train({ monitor, artifacts }, interrupted)) === 'interrupted') return interruptedResult(run, artifacts)
    let result: PretrainResult | undefined
    const finish = async (): Promise<void> => {
      result = await artifacts.finish(monitor.numbers, loop.loader.broken)
    }
    return (await unlessEnded(finish)) ? result! : interruptedResult(run, artifacts)
  } finally {
    log.close()
    await loop.close()
    await log.finished()
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
