/** The main job: from a configuration to a run folder with checkpoints, metrics, an exported backbone and pictures. */
import { readdirSync, rmSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { dirname, join } from 'node:path'

import { stringify } from 'yaml'

import { type Batch, Loader } from '../data/loader.js'
import { batchIndices, epochOrder, stepsPerEpoch } from '../data/sampler.js'
import type { Source } from '../data/source.js'
import { openSource } from '../data/sources.js'
import { chanceLoss } from '../methods/densecl/health.js'
import { DenseCL } from '../methods/densecl/model.js'
import type { StepResult } from '../methods/densecl/step.js'
import { knnAccuracy } from '../eval/knn.js'
import { Random } from '../tensor/random.js'
import type { BackboneKind } from '../nn/backbone.js'
import { learningRate } from '../optim/schedule.js'
import { Sgd } from '../optim/sgd.js'
import { writePicture } from '../report/svg.js'
import { convolution } from '../ops/conv2d.js'
import { DeviceClock } from '../ops/timing.js'
import { familyOf, type TuningChoice, untuned } from '../ops/tuning.js'
import { usesFamily } from '../tensor/families.js'
import { type DeviceIdentity, deviceIdentity } from '../files/cache.js'
import { DenseclError, fail } from '../tensor/errors.js'
import { native, resolveDevice } from '../tensor/native.js'
import { trustDevice } from '../selftest/trust.js'
import { type FloatDType, type Tensor, type TypedArray, withDevice } from '../tensor/tensor.js'
import { deviceTraits, fastestDType } from '../tensor/traits.js'
import { writeTextAtomic } from '../files/atomic.js'
import { writeBackbone } from '../weights/export.js'
import { type Checkpoint, type Position, readCheckpoint, restoreCheckpoint, saveCheckpoint } from './checkpoint.js'
import type { Config } from '../run/config.js'
import { knnSets, type LabelledSets } from './labels.js'
import { RunPictures } from './pictures.js'
import { backboneOf, loadBackboneKind } from '../run/backbone.js'
import { claimFolder, environment, files } from '../run/runFolder.js'
import { graphLine, lossPlot, metricsRow, type Progress, progressLine, tuningLines } from './progress.js'
import { readMetrics, RunLog } from '../run/runLog.js'
import { Trainer } from './trainer.js'
import { choiceOf, tune, type TunerOptions } from './tuner.js'
import { readTuning, saveTuning } from './tuningFile.js'

export interface PretrainOptions {
  config: Config
  out: string
  resume?: boolean
  overwrite?: boolean
  quiet?: boolean
  /** Asked before every step; true saves and leaves. */
  interrupted?: () => boolean
  /** @internal For tests: another clock and device for the tuning, which then happens on `simt` too. */
  tuner?: Partial<Pick<TunerOptions, 'time' | 'now' | 'budget' | 'identity' | 'hopper' | 'multiprocessors'>>
}

export interface PretrainResult {
  interrupted: boolean
  globalStep: number
  /** kNN accuracy before and after, where there are labels. */
  knnBefore?: number
  knnAfter?: number
  losses?: StepResult['losses']
  files: Record<string, string>
}

/** Keys whose change on resume would make another run of it. */
const freeOnResume = new Set([
  'device',
  'graph',
  'tune',
  'workers',
  'cacheMegabytes',
  'threads',
  'logEvery',
  'checkpointEvery',
  'checkpointSteps',
  'keepCheckpoints',
  'knnEvery',
  'knnImages',
  'knnData',
  'knnK',
  'stopOnCollapse',
  'maxBroken',
  'data',
  'format',
])

export async function pretrain(options: PretrainOptions): Promise<PretrainResult> {
  const { out, resume = false, quiet = false } = options
  const checkpoint = resume ? readCheckpoint(files(out).last) : undefined
  const config = checkpoint === undefined ? options.config : resumedConfig(checkpoint, options.config)
  native.setThreads(config.threads === 0 ? availableParallelism() : config.threads)
  const placement = resolvePlacement(config)
  const checked = await trustDevice(placement.device, options.interrupted === undefined ? {} : { interrupted: options.interrupted })
  if (!checked) return { interrupted: true, globalStep: checkpoint?.position.globalStep ?? 0, files: {} }
  const kind = await loadBackboneKind(config.backbone)
  const source = await openSource(config.data, { format: config.format })
  const labelled = await knnSets(config, source)
  checkSize(config, source.items.length, checkpoint)
  // Only now: a mistake above must not cost the run that is replaced.
  if (checkpoint === undefined) claimFolder(out, options.overwrite ?? false)
  const run = new Run(options, config, placement, kind, source, labelled, checkpoint)
  try {
    return await run.execute(quiet)
  } finally {
    await run.close()
  }
}

function resumedConfig({ config, position }: Checkpoint, wanted: Config): Config {
  const changed = (Object.keys(config) as (keyof Config)[]).filter(
    (key) => JSON.stringify(config[key]) !== JSON.stringify(wanted[key]) && !freeOnResume.has(key),
  )
  if (changed.length > 0)
    fail(
      'CONFIG',
      `resume: ${changed.map((key) => `${key} was ${JSON.stringify(config[key])} and is now ${JSON.stringify(wanted[key])}`).join('; ')}; start a new run for that`,
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

/** A step whose numbers are on their way to the host, and where the run was then. */
interface Due {
  result: StepResult
  foundInf: () => TypedArray
  lr: number
  /** How many steps it stands for. */
  steps: number
  logged: boolean
  at: Position
  /** Seconds that this thread waited for data since the last line. */
  waited: number
}

/** When the run and the current line began, in milliseconds and in steps, and the seconds waited for data since. */
interface Clock {
  start: number
  done: number
  since: number
  sinceStep: number
  waited: number
}

class Run {
  readonly #config: Config
  readonly #placement: Placement
  readonly #out: string
  readonly #model: DenseCL
  readonly #sgd: Sgd
  readonly #trainer: Trainer
  readonly #loader: Loader
  #batch: Batch | undefined
  readonly #log: RunLog
  readonly #steps: number
  readonly #position: Position
  readonly #resumed: boolean
  readonly #labelled: LabelledSets | undefined
  readonly #source: Source
  readonly #interrupted: () => boolean
  readonly #tuner: PretrainOptions['tuner']
  #knnBefore: number | undefined
  #pictures: RunPictures | undefined
  #collapsed = 0
  #announced = false

  constructor(
    options: PretrainOptions,
    config: Config,
    placement: Placement,
    kind: BackboneKind,
    source: Source,
    labelled: LabelledSets | undefined,
    checkpoint: Checkpoint | undefined,
  ) {
    const images = source.items.length
    this.#config = config
    this.#out = options.out
    this.#source = source
    this.#labelled = labelled
    this.#interrupted = options.interrupted ?? (() => false)
    this.#steps = stepsPerEpoch(images, config.batchSize)
    this.#position = checkpoint?.position ?? { epoch: 0, step: 0, globalStep: 0, images }
    this.#resumed = checkpoint !== undefined
    this.#placement = placement
    this.#tuner = options.tuner
    const { device, compute } = placement
    convolution.tf32 = config.precision === 'tf32'
    this.#model = buildModel(config, kind, placement)
    this.#sgd = withDevice(device, () => new Sgd(this.#model.parameters(), config, this.#model.query.state().copies))
    if (checkpoint !== undefined) restoreCheckpoint(checkpoint, this.#model, this.#sgd)
    this.#log = new RunLog(options.out, this.#position.globalStep, options.quiet ?? false)
    const { imageSize, batchSize, seed, workers, maxBroken, cacheMegabytes } = config
    this.#loader = new Loader({
      items: source.items,
      imageSize,
      batchSize,
      views: 'augmented',
      device,
      dtype: compute,
      augment: config,
      seed,
      workers,
      maxBroken,
      cacheMegabytes,
    })
    const views = (): { query: Tensor; key: Tensor } => {
      const [query, key] = this.#batch!.views() as [Tensor, Tensor]
      return { query, key }
    }
    const { temperature, keyMomentum, normGroups, graph } = config
    this.#trainer = new Trainer(this.#model, this.#sgd, { temperature, keyMomentum, normGroups, graph, views })
  }

  async close(): Promise<void> {
    await this.#loader.close()
    this.#trainer.dispose()
    this.#sgd.dispose()
    this.#model.dispose()
  }

  async execute(quiet: boolean): Promise<PretrainResult> {
    this.#introduce()
    this.#trainer.tuning = this.#tune()
    this.#pictures = await RunPictures.of(this.#out, this.#source, this.#config, (reason) =>
      this.#log.line(`warning no picture: ${reason}`),
    )
    if (!this.#resumed) {
      writeTextAtomic(files(this.#out).config, stringify(this.#config))
      this.#knnBefore = await this.#knn('before training')
      this.#save()
      await this.#pictures?.augmentation()
      await this.#pictures?.epoch(this.#model.query.backbone, 0)
    } else this.#knnBefore = readMetrics(files(this.#out).metrics).find((row) => row.knn !== undefined)?.knn
    writeTextAtomic(
      files(this.#out).environment,
      `${JSON.stringify({ backbone: this.#model.query.backbone.description, ...environment(this.#placement.device) }, undefined, 2)}\n`,
    )
    const losses = await this.#train()
    if (losses === 'interrupted') {
      this.#save()
      this.#log.line(`interrupted: saved at epoch ${this.#position.epoch}, step ${this.#position.step}; continue with --resume`)
      return { interrupted: true, globalStep: this.#position.globalStep, files: { checkpoint: files(this.#out).last } }
    }
    return this.#finish(losses, quiet)
  }

  #introduce(): void {
    const config = this.#config
    const source = this.#source
    const images = source.items.length
    const log = this.#log
    const { backbone } = this.#model.query
    const grid = config.numGrid ?? Math.ceil(config.imageSize / backbone.stride)
    log.line(
      `data    ${config.data}: ${images} images${source.classes === undefined ? '' : ` of ${source.classes.length} classes (labels serve kNN only)`}, ${this.#steps} steps of ${config.batchSize} an epoch`,
    )
    log.line(`model   ${backbone.description}, ${config.imageSize} px, dense grid ${grid}x${grid}`)
    log.line(
      `loss    queue ${config.queueLength}: guessing costs ln(K+1) = ${chanceLoss(config.queueLength).toFixed(3)}; below it at first (random queue), then a rise, then a fall`,
    )
    const { device, compute } = this.#placement
    log.line(
      `device  ${device}, ${native.describeDevice(device)}${deviceTraits(device).tf32 ? `; ${config.precision === 'tf32' ? 'tf32' : compute}` : ''}`,
    )
    if (config.queueLength > images) {
      const offer = 2 ** Math.floor(Math.log2(Math.max(1, images / 2)))
      log.line(
        `warning the queue of ${config.queueLength} is longer than the data set of ${images}: keys of the image itself are among its negatives; try --queue-length ${offer}`,
      )
    }
    if (this.#resumed) log.line(`resume  at epoch ${this.#position.epoch}, step ${this.#position.step}`)
  }

  /** What the steps compute their convolutions with: the choice that the run began with, one that is timed now, or the tables. */
  #tune(): TuningChoice {
    const { fusion, tune: wanted, batchSize, imageSize, temperature, keyMomentum, normGroups } = this.#config
    const { device } = this.#placement
    const path = files(this.#out).tuning
    const { tunable, simulated } = deviceTraits(device)
    const clocked = !simulated || this.#tuner !== undefined || process.env.DENSECL_TUNE_SIMT === '1'
    if (!tunable || !clocked) return untuned(fusion === 'auto' ? 'epilogue' : fusion)
    const identity = this.#tuner?.identity ?? deviceIdentity(device)
    const kept = this.#resumed ? readTuning(path) : undefined
    if (kept !== undefined) {
      const same = (Object.keys(identity) as (keyof DeviceIdentity)[]).every((key) => kept[key] === identity[key])
      this.#log.line(
        `tuning  as this run began: level ${kept.level}, ${kept.products.length} products of ${path}${same ? '' : `; made on ${machine(kept)}, while this is ${machine(identity)}: used all the same, so that the run is continued bit for bit`}`,
      )
      return choiceOf(kept)
    }
    if (!wanted) return untuned(fusion === 'auto' ? 'epilogue' : fusion)
    if (this.#resumed)
      this.#log.line(
        `tuning  the run has no ${path}: its convolutions are timed now, and from here on their sums may differ in the last bits`,
      )
    const clock = new DeviceClock(device)
    try {
      const found = tune({
        model: this.#model,
        batch: batchSize,
        imageSize,
        temperature,
        keyMomentum,
        normGroups,
        level: fusion,
        identity,
        time: clock.time,
        budget: 20,
        now: () => performance.now(),
        hopper: (direction) => usesFamily(device, familyOf('wgmma', direction)),
        multiprocessors: deviceTraits(device).multiprocessors,
        ...this.#tuner,
      })
      saveTuning(path, found, identity)
      for (const line of tuningLines(found)) this.#log.line(line)
      return choiceOf(found)
    } finally {
      clock.dispose()
      native.resetPeakMemory(device)
    }
  }

  /** Steps until the end; the last losses, or 'interrupted'. */
  async #train(): Promise<StepResult['losses'] | undefined | 'interrupted'> {
    const config = this.#config
    const position = this.#position
    const total = config.epochs * this.#steps
    const clock: Clock = {
      start: performance.now(),
      done: position.globalStep,
      since: performance.now(),
      sinceStep: position.globalStep,
      waited: 0,
    }
    // Reading waits for the device: it is read when a line is due, a GPU while it computes the next step. The CPU has finished anyway.
    const { device } = this.#placement
    const { hostMemory: everyStep, asynchronous: beside } = deviceTraits(device)
    let losses: StepResult['losses'] | undefined
    let unread = 0
    let due: Due | undefined
    const report = (): void => {
      if (due !== undefined) losses = this.#report(due, clock)
      due = undefined
    }
    for await (const batch of this.#loader.batches(this.#requests())) {
      if (this.#interrupted()) {
        report()
        return 'interrupted'
      }
      this.#batch = batch
      const lr = learningRate(config, position.globalStep, this.#steps)
      const result = this.#step(lr)
      // The step before is read now that this one keeps the device busy.
      report()
      clock.waited += batch.waited
      unread += 1

      const last = position.step === this.#steps
      const logged = position.globalStep % config.logEvery === 0 || position.globalStep === total
      if (everyStep || logged || last) {
        due = {
          result: result.startRead(),
          foundInf: this.#trainer.foundInf.startRead(),
          lr,
          steps: unread,
          logged,
          at: { ...position },
          waited: clock.waited,
        }
        unread = 0
      }
      if (!beside || last) report()
      if (last) {
        position.epoch += 1
        position.step = 0
        const paused = performance.now()
        await this.#endOfEpoch()
        // Evaluation and saving are no part of the training rate.
        clock.start += performance.now() - paused
        clock.since += performance.now() - paused
      } else if (config.checkpointSteps > 0 && position.globalStep % config.checkpointSteps === 0) this.#save()
    }
    return losses
  }

  /** Looks at a step that has been read, and prints and writes its line. */
  #report({ result, foundInf, lr, steps, logged, at, waited }: Due, clock: Clock): StepResult['losses'] {
    this.#checkHealth(result, foundInf()[0] !== 0, lr, steps, at)
    // The step has been read, so the device has finished it: this is the time of its steps, not of their launches.
    const seconds = (performance.now() - clock.since) / 1000
    const [rate, wait] = [((at.globalStep - clock.sinceStep) * this.#config.batchSize) / seconds, waited / seconds]
    const remaining =
      ((performance.now() - clock.start) / 1000 / (at.globalStep - clock.done)) * (this.#config.epochs * this.#steps - at.globalStep)
    const progress: Progress = {
      result,
      at,
      lr,
      rate,
      wait,
      remaining,
      spent: this.#loader.spent,
      device: this.#placement.device,
      steps: this.#steps,
      config: this.#config,
    }
    this.#log.progress(progressLine(progress), logged)
    if (logged) {
      this.#log.metrics(metricsRow(progress))
      Object.assign(clock, { since: performance.now(), sinceStep: at.globalStep, waited: clock.waited - waited })
    }
    return result.losses
  }

  /** The batches from here to the end of the run. */
  *#requests(): Generator<{ epoch: number; indices: Int32Array }> {
    const { seed, batchSize, epochs } = this.#config
    let { step } = this.#position
    for (let { epoch } = this.#position; epoch < epochs; ++epoch, step = 0) {
      const order = epochOrder(seed, epoch, this.#source.items.length)
      for (; step < this.#steps; ++step) yield { epoch, indices: batchIndices(order, batchSize, step) }
    }
  }

  #step(lr: number): StepResult {
    const { denseWarmup, denseWeight, normGroups, batchSize, shuffle, seed } = this.#config
    const { globalStep } = this.#position
    const result = this.#trainer.step({
      lr,
      denseWeight: globalStep < denseWarmup ? 0 : denseWeight,
      keyOrder: shuffle && normGroups > 1 ? new Random(seed, 19, globalStep).permutation(batchSize) : undefined,
    })
    this.#position.globalStep += 1
    this.#position.step += 1
    this.#announceGraph()
    return result
  }

  /** One line about the recorded step, once. */
  #announceGraph(): void {
    const { graph, savedBytes } = this.#trainer
    if (graph.plan === undefined || this.#announced) return
    this.#announced = true
    this.#log.line(graphLine(graph.plan, savedBytes))
  }

  /** Stops with a diagnosis; the last checkpoint is the one before the trouble. `steps` is how many the result stands for. */
  #checkHealth({ losses, health }: StepResult, foundInf: boolean, lr: number, steps: number, { globalStep }: Position): void {
    if (foundInf) {
      const which = Number.isFinite(losses.total)
        ? 'a gradient'
        : `the ${Number.isFinite(losses.single) ? 'dense' : Number.isFinite(losses.dense) ? 'global' : 'global and the dense'} loss`
      const when = steps === 1 ? `step ${globalStep}` : `steps ${globalStep - steps + 1} to ${globalStep}`
      fail(
        'NAN',
        `${when}: ${which} is not a number at learning rate ${lr.toPrecision(3)}; try a lower --lr (a tenth), --warmup-steps, or check the data. The last checkpoint, ${files(this.#out).last}, is from before`,
      )
    }
    this.#collapsed = health.spread < 0.02 ? this.#collapsed + steps : 0
    if (this.#config.stopOnCollapse && this.#collapsed >= 50) {
      fail(
        'COLLAPSE',
        `step ${globalStep}: all global embeddings have been the same vector for ${this.#collapsed} steps (spread ${health.spread.toFixed(4)} where about 1 is healthy); try a lower --lr, a higher --key-momentum or a longer queue. --stop-on-collapse false goes on`,
      )
    }
  }

  async #endOfEpoch(): Promise<void> {
    const { epochs, knnEvery, checkpointEvery, checkpointSteps } = this.#config
    const { epoch } = this.#position
    if (knnEvery > 0 && epoch % knnEvery === 0 && epoch < epochs) await this.#knn(`epoch ${epoch}`)
    if (checkpointSteps === 0 || epoch === epochs) this.#save()
    if (epoch % checkpointEvery === 0) this.#keep()
    if (epoch % checkpointEvery === 0 || epoch === epochs) await this.#pictures?.epoch(this.#model.query.backbone, epoch)
  }

  /** Writes the last checkpoint; a full disk is reported and training goes on with the one before. */
  #save(): void {
    // Steps that nobody has read yet may have gone wrong: what is on the disk is better.
    if (this.#trainer.foundInf.item() !== 0) return
    try {
      saveCheckpoint(files(this.#out).last, this.#model, this.#sgd, this.#config, this.#position)
    } catch (error) {
      if (!(error instanceof DenseclError) || error.code !== 'WRITE' || this.#position.epoch === this.#config.epochs) throw error
      this.#log.line(`warning ${error.message}`)
    }
  }

  #keep(): void {
    const folder = dirname(files(this.#out).last)
    const { epoch } = this.#position
    saveCheckpoint(
      join(folder, `epoch_${String(epoch).padStart(5, '0')}.safetensors`),
      this.#model,
      this.#sgd,
      this.#config,
      this.#position,
    )
    const kept = readdirSync(folder)
      .filter((name) => /^epoch_\d+\.safetensors$/.test(name))
      .sort()
    for (const name of kept.slice(0, -this.#config.keepCheckpoints)) rmSync(join(folder, name))
  }

  async #knn(when: string): Promise<number | undefined> {
    if (this.#labelled === undefined) return undefined
    const { imageSize, knnK, workers, maxBroken } = this.#config
    const { bank, queries, how } = this.#labelled
    const share = await knnAccuracy(this.#model.query.backbone, bank, queries, { imageSize, k: knnK, workers, maxBroken })
    this.#log.line(`knn     ${(100 * share).toFixed(1)} % ${when} (${how}, k ${knnK})`)
    this.#log.metrics({ globalStep: this.#position.globalStep, epoch: this.#position.epoch, knn: share })
    return share
  }

  async #finish(losses: StepResult['losses'] | undefined, quiet: boolean): Promise<PretrainResult> {
    const out = this.#out
    const knnAfter = await this.#knn('after training')
    writeBackbone(files(out).backbone, this.#model.query.backbone, 'torchvision')
    const made: Record<string, string> = { checkpoint: files(out).last, backbone: files(out).backbone, metrics: files(out).metrics }
    made.losses = await writePicture(join(out, 'losses'), lossPlot(readMetrics(files(out).metrics), this.#config))
    const matches = await this.#pictures?.matches(this.#model.query.backbone)
    if (matches !== undefined) made.matches = matches
    const result: PretrainResult = {
      interrupted: false,
      globalStep: this.#position.globalStep,
      ...(this.#knnBefore === undefined ? {} : { knnBefore: this.#knnBefore }),
      ...(knnAfter === undefined ? {} : { knnAfter }),
      ...(losses === undefined ? {} : { losses }),
      files: made,
    }
    const broken = Object.fromEntries(this.#loader.broken)
    writeTextAtomic(files(out).report, `${JSON.stringify({ ...result, broken }, undefined, 2)}\n`)
    if (!quiet) this.#conclude(result, Object.keys(broken).length)
    return result
  }

  #conclude({ knnBefore, knnAfter, files: made }: PretrainResult, broken: number): void {
    if (broken > 0) this.#log.line(`broken  ${broken} images could not be read; they are named in ${files(this.#out).report}`)
    if (knnBefore !== undefined && knnAfter !== undefined)
      this.#log.line(`knn     ${(100 * knnBefore).toFixed(1)} % before, ${(100 * knnAfter).toFixed(1)} % after`)
    for (const [name, path] of Object.entries(made)) this.#log.line(`${name.padEnd(10)} ${path}`)
  }
}

const machine = ({ device, driver, build }: DeviceIdentity): string =>
  `${device}${driver === '' ? '' : `, driver ${driver}`} (build ${build})`

/** Where a run computes, and in which dtype. */
export interface Placement {
  device: string
  compute: FloatDType
}

export function resolvePlacement({ device: wanted, precision }: Config): Placement {
  const device = resolveDevice(wanted)
  const { dtypes, tf32 } = deviceTraits(device)
  if ((precision === 'bf16' && !dtypes.includes('bf16')) || (precision === 'tf32' && !tf32))
    fail('CONFIG', `precision is ${precision}: expected f32 on ${device}`)
  return { device, compute: precision === 'auto' || precision === 'bf16' ? fastestDType(device) : 'f32' }
}

function buildModel(config: Config, kind: BackboneKind, { device, compute }: Placement): DenseCL {
  const { init, hidden, featDim, numGrid, queueLength, seed } = config
  const neck = { hidden: hidden ?? undefined, featDim, numGrid: numGrid ?? undefined }
  const model = withDevice(device, () => new DenseCL({ backbone: backboneOf(config, kind), neck, init, queueLength, seed, compute }))
  const { inputs, name } = model.query.backbone
  if (inputs !== 3) {
    model.dispose()
    fail('CONFIG', `backbone is ${config.backbone}: expected one of 3 input channels, as images are read, but ${name} takes ${inputs}`)
  }
  return model
}
