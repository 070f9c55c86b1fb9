/** What a run leaves in its folder: checkpoints, kNN, pictures, the exported backbone and the report. */
import { readdirSync, rmSync } from 'node:fs'
import { dirname, join } from 'node:path'

import { type Correspondence, correspondence } from '../eval/correspondence.js'
import { writeTextAtomic } from '../files/atomic.js'
import { lossPlot } from '../report/charts.js'
import { writePicture } from '../report/svg.js'
import { computeSettings } from '../run/placement.js'
import { files } from '../run/runFolder.js'
import { type Metrics, readMetrics } from '../run/runLog.js'
import { DenseclError } from '../tensor/errors.js'
import { writeBackbone } from '../weights/export.js'
import { type Position, saveCheckpoint } from './checkpoint.js'
import { knnOf } from './knn.js'
import type { RunPictures } from './pictures.js'
import { begunBefore, type PretrainResult, type Run } from './run.js'

/** Images that correspondence is looked at on while a run trains: enough for a curve, a second or two of a CPU. */
const mostDense = 200

export class Artifacts {
  #knnBefore: number | undefined
  #saved: Position | undefined

  constructor(
    readonly run: Run,
    readonly pictures: RunPictures | undefined,
  ) {}

  /** What there is before the first step; a run that is continued finds it in its folder. */
  async begin(): Promise<void> {
    const { out, resumed, position } = this.run
    if (resumed) this.#saved = { ...position }
    if (begunBefore(this.run)) {
      this.#knnBefore = readMetrics(files(out).metrics).find((row) => row.knn !== undefined)?.knn
      return
    }
    // Before kNN, so that a run that ends in it is there to be resumed, and does it again.
    this.save()
    this.#knnBefore = await this.knn('before training')
    if (this.run.config.denseEvery > 0) await this.dense('before training')
    await this.pictures?.augmentation()
    await this.picture()
  }

  /** Writes the last checkpoint; a full disk is reported and training goes on with the one before. */
  save(): void {
    const { out, config, position } = this.run
    if (this.#orWarn(position.epoch < config.epochs, () => this.#saveAs(files(out).last))) this.#saved = { ...position }
  }

  /** Where the last checkpoint is in the run; undefined where there is none. */
  get saved(): Readonly<Position> | undefined {
    return this.#saved
  }

  /** Writes the checkpoint of an epoch and removes those that are no longer kept; on a full disk those from before stay. */
  keep(): void {
    const { out, config, position } = this.run
    const folder = dirname(files(out).last)
    const path = join(folder, `epoch_${String(position.epoch).padStart(5, '0')}.safetensors`)
    if (!this.#orWarn(true, () => this.#saveAs(path))) return
    const kept = readdirSync(folder)
      .filter((name) => /^epoch_\d+\.safetensors$/.test(name))
      .sort()
    for (const name of kept.slice(0, -config.keepCheckpoints)) rmSync(join(folder, name))
  }

  /** Whether `write` could write; a failure is a warning where the run can go on without. */
  #orWarn(goesOn: boolean, write: () => void): boolean {
    try {
      write()
      return true
    } catch (error) {
      if (!goesOn) throw error
      this.#warnOfWrite(error)
      return false
    }
  }

  #warnOfWrite(error: unknown): void {
    if (!(error instanceof DenseclError) || error.code !== 'WRITE') throw error
    this.run.log.warn(error.message)
  }

  #saveAs(path: string): void {
    const { method, built, optimizer, config, position } = this.run
    saveCheckpoint(path, method, built, optimizer, config, position)
  }

  /** Matches and features of the epoch that has ended. */
  async picture(): Promise<void> {
    await this.pictures?.epoch(this.run.built.backbone, this.run.position.epoch)
  }

  /** The share that kNN classifies right, where there are labels; the other processes of the run call knnOf() meanwhile. */
  async knn(when: string): Promise<number | undefined> {
    const { config, labelled, log } = this.run
    const share = await knnOf(this.run)
    if (share === undefined) return undefined
    log.line(`knn     ${(100 * share).toFixed(1)} % ${when} (${labelled!.how}, k ${config.knnK})`)
    this.#logOnce({ knn: share })
    return share
  }

  /** A row of results here. A run that was killed after its last ones makes them again, and has their row already. */
  #logOnce(results: Record<string, number>): void {
    const { out, log, position, steps, resumed } = this.run
    const row: Metrics = { globalStep: position.globalStep, epoch: position.epoch + position.step / steps, ...results }
    const isRow = (old: Metrics): boolean => Object.entries(row).every(([key, value]) => old[key] === value)
    if (!resumed || !readMetrics(files(out).metrics).some(isRow)) log.metrics(row)
  }

  /** The share of positions whose features find their place in another view of the image. */
  async dense(when: string): Promise<void> {
    const { share: config, built, labelled, log, source } = this.run
    const { imageSize, workers, maxBroken } = config
    const held = labelled?.queries
    const all = held ?? source.items
    // From all of them: class folders follow each other.
    const every = Math.ceil(all.length / mostDense)
    const items = all.filter((_, i) => i % every === 0)
    const options = { imageSize, workers, maxBroken, compute: computeSettings(config) }
    const [{ grid, found, samePlace }] = (await correspondence(built.backbone, items, options)) as [Correspondence]
    const percent = (share: number): string => (100 * share).toFixed(1)
    const of = held === undefined ? `${items.length} training images` : `${items.length} images`
    const share = `${percent(found.exact)} % of places found again on ${grid}x${grid}`
    log.line(`dense   ${share} ${when} (${of}; the same place: ${percent(samePlace.exact)} %)`)
    this.#logOnce({ correspondence: found.exact, correspondenceNear: found.near, correspondenceSamePlace: samePlace.exact })
  }

  /** What there is after the last step, whose `numbers` these are. */
  async finish(numbers: Record<string, number> | undefined, broken: ReadonlyMap<string, string>): Promise<PretrainResult> {
    const { out, config, method, built, position } = this.run
    const knnAfter = await this.knn('after training')
    if (config.denseEvery > 0) await this.dense('after training')
    const variant = built.variant?.() ?? []
    const note = `${method.name}, not as published: ${variant.join(', ')}`
    writeBackbone(files(out).backbone, built.backbone, 'torchvision', variant.length === 0 ? {} : { method: note })
    const made: Record<string, string> = { checkpoint: files(out).last, backbone: files(out).backbone, metrics: files(out).metrics }
    const plot = lossPlot(readMetrics(files(out).metrics), method.charts[0], config)
    try {
      made.losses = await writePicture(join(out, 'losses'), plot)
    } catch (error) {
      this.#warnOfWrite(error)
    }
    const matches = await this.pictures?.matches(built.backbone, position.epoch)
    if (matches !== undefined) made.matches = matches
    const result: PretrainResult = {
      interrupted: false,
      globalStep: position.globalStep,
      ...(this.#knnBefore === undefined ? {} : { knnBefore: this.#knnBefore }),
      ...(knnAfter === undefined ? {} : { knnAfter }),
      ...(numbers === undefined ? {} : { losses: this.#losses(numbers) }),
      files: made,
    }
    writeTextAtomic(files(out).report, `${JSON.stringify({ ...result, broken: Object.fromEntries(broken) }, undefined, 2)}\n`)
    this.#conclude(result, broken.size)
    return result
  }

  /** The loss by its terms' names. */
  #losses(numbers: Record<string, number>): Record<string, number> {
    const terms = Object.entries(this.run.method.terms ?? {}).map(([name, key]) => [name, numbers[key]!] as const)
    return { total: numbers.loss!, ...Object.fromEntries(terms) }
  }

  #conclude({ knnBefore, knnAfter, files: made }: PretrainResult, broken: number): void {
    const { out, log } = this.run
    if (broken > 0) log.line(`broken  ${broken} images could not be read; they are named in ${files(out).report}`)
    if (knnBefore !== undefined && knnAfter !== undefined)
      log.line(`knn     ${(100 * knnBefore).toFixed(1)} % before, ${(100 * knnAfter).toFixed(1)} % after`)
    if (knnBefore !== undefined && knnAfter !== undefined && knnAfter < knnBefore)
      log.line(
        'warning kNN is below that of the untrained network: what was learnt does not tell these classes apart; try more epochs, a lower ' +
          'learning rate or more images (docs/learning.md)',
      )
    for (const [name, path] of Object.entries(made)) log.line(`${name.padEnd(10)} ${path}`)
  }
}
