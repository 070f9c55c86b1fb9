/** Classification with all of the backbone trained, on all labels or a share of them (docs/method.md, Classifiers). */
import { join } from 'node:path'

import { SharedGradients } from '../distributed/buckets.js'
import { Group } from '../distributed/group.js'
import { Loader } from '../data/loader.js'
import { cropAndFlip } from '../data/pipelines.js'
import { evenBatches, mostOfEvenBatch } from '../data/sampler.js'
import type { Item } from '../data/source.js'
import type { Backbone } from '../nn/backbone.js'
import { allTensors, refreshCopies } from '../nn/module.js'
import { percent } from '../run/results.js'
import { duration } from '../run/runLog.js'
import { type ComputeOptions, withCompute } from '../tensor/compute.js'
import { fail } from '../tensor/errors.js'
import { isInterruption } from '../tensor/interruption.js'
import { Random } from '../tensor/random.js'
import { scope, type Tensor, withDevice } from '../tensor/tensor.js'
import { restoreState, withOptimizer } from '../weights/state.js'
import { readTensorFile } from '../weights/import.js'
import type { ClassificationResult } from './classificationScores.js'
import { normalisation, saveClassifier } from './classifierFile.js'
import { evaluationCompute } from './compute.js'
import { labelsOf } from './features.js'
import type { FinetuneOptions, FinetuneResult, TriedSetting } from './finetuneOptions.js'
import { type FinetuneStage, finetuneStages, isBetter, keyOf } from './finetuneStages.js'
import { finetuneDecay, type FinetuneSetting } from './finetuneProtocols.js'
import { buildFinetuned, disposeFinetuned, type Finetuned, leastImages, testClassifier, updateClassifier } from './finetuneTraining.js'
import { completed, identityOf, Resumable } from './resumable.js'
import { sharesOf } from './shares.js'

/** The file of the classifier in the folder of the evaluation. */
export const classifierPath = (out: string): string => join(out, 'classifier.safetensors')

/** Trains a classifier on the backbone's weights and tests it. The backbone becomes part of it and belongs to the caller. */
export async function finetune(backbone: Backbone, options: FinetuneOptions): Promise<FinetuneResult> {
  return await completed(() => new FinetuneRun(backbone, options), options)
}

class FinetuneRun {
  readonly #backbone: Backbone
  readonly #options: FinetuneOptions
  readonly #stages: FinetuneStage[]
  readonly #least: number
  /** The backbone's tensors as they were given. */
  readonly #initial: Map<Tensor, ReturnType<Tensor['data']>>
  /** Counts iterations of all trainings. */
  readonly #run: Resumable
  readonly #group: Group
  readonly #shared: SharedGradients
  #trained: Finetuned

  constructor(backbone: Backbone, options: FinetuneOptions) {
    this.#backbone = backbone
    this.#options = options
    this.#group = options.group ?? Group.single
    this.#shared = new SharedGradients(this.#group)
    labelsOf(options.train, 'finetune')
    this.#least = leastImages(backbone, options)
    this.#stages = finetuneStages({ ...options, least: this.#least })
    for (const { items, stepsPerEpoch } of this.#stages)
      if (Math.floor(items.length / stepsPerEpoch) < this.#group.size)
        fail(
          'CONFIG',
          `finetune: ${items.length} images are batches of ${Math.floor(items.length / stepsPerEpoch)} but there are ${this.#group.size} ` +
            'processes: expected an image of each batch for every process',
        )
    this.#initial = new Map([...allTensors(backbone.state())].map(([, tensor]) => [tensor, tensor.data().slice()]))
    const kind = { key: 'finetune', what: 'a fine-tuning', unit: 'iteration' }
    this.#run = new Resumable(kind, options, this.#identity())
    this.#trained = this.#build()
    try {
      this.#run.restore(this.#tensors())
    } catch (error) {
      this.close()
      throw error
    }
  }

  share(): void {
    this.#run.share(this.#tensors())
    refreshCopies(this.#trained.model.state())
  }

  /** Frees the last layer and the optimisers; the backbone belongs to the caller. */
  close(): void {
    this.#run.release()
    disposeFinetuned(this.#trained)
  }

  async execute(): Promise<FinetuneResult> {
    let test: ClassificationResult | undefined
    for (const stage of this.#stages) {
      if (this.#run.position > stage.end) continue
      if (this.#run.position === stage.begin) this.#reset()
      const setting = stage.setting ?? this.#best(this.#stages)
      test = undefined
      const { testEvery = 0 } = this.#options
      const every = stage.final ? testEvery * stage.stepsPerEpoch : 0
      while (this.#run.position < stage.end) {
        const done = this.#run.position - stage.begin
        // At the head of a round, so that what was cut off between a state and the test of it is tested too.
        if (every > 0 && done > 0 && done % every === 0) await this.#test(stage)
        const until = every === 0 ? stage.end : Math.min(stage.end, stage.begin + (Math.floor(done / every) + 1) * every)
        if (!(await this.#train(stage, setting, until))) return this.cutOff()
      }
      if (!this.#run.isLogged(keyOf(stage).top1)) test = await this.#finish(stage, setting)
    }
    return this.#conclude(test)
  }

  cutOff(): FinetuneResult {
    return { interrupted: true, iterations: this.#run.saved, tried: [] }
  }

  /** The result of the classifier that is kept. */
  async #conclude(fresh: ClassificationResult | undefined): Promise<FinetuneResult> {
    const { out } = this.#options
    const choices = this.#stages.filter(({ choice }) => choice)
    const tried = choices.length === 0 ? [] : this.#tried(choices)
    const setting = choices.length === 0 ? this.#stages[0]!.setting! : this.#best(choices)
    let test = fresh
    // The kept one need not be the last.
    if (test === undefined || this.#stages.at(-1)!.choice) {
      const tensors = [...allTensors(this.#trained.model.state())]
      if (this.#group.rank === 0) restoreState(classifierPath(out), readTensorFile(classifierPath(out)), tensors)
      this.#group.broadcast(tensors.map(([, tensor]) => tensor))
      refreshCopies(this.#trained.model.state())
      test = await this.#testOn(this.#options.val)
    }
    return { interrupted: false, iterations: this.#run.position, tried, setting, test }
  }

  #identity(): Record<string, unknown> {
    const { protocol, chooseBy, classes, train, val, imageSize, seed = 0 } = this.#options
    const { describe: _, ...numbers } = protocol
    const iterations = this.#stages.at(-1)!.end
    return {
      ...numbers,
      chooseBy,
      ...identityOf(this.#backbone),
      imageSize,
      classes,
      train: train.length,
      val: val.length,
      seed,
      iterations,
    }
  }

  #tensors(): Iterable<[string, Tensor]> {
    const { model, optimizers } = this.#trained
    return withOptimizer(withOptimizer(allTensors(model.state()), optimizers.backbone), optimizers.head)
  }

  #build(): Finetuned {
    const { protocol, classes, seed = 0 } = this.#options
    return buildFinetuned(this.#backbone, { classes: classes.length, weightDecay: protocol.weightDecay, random: new Random(seed, 83) })
  }

  /** Everything as it was before any training. */
  #reset(): void {
    disposeFinetuned(this.#trained)
    for (const [tensor, values] of this.#initial) tensor.write(values)
    refreshCopies(this.#backbone.state())
    this.#trained = this.#build()
  }

  get #compute(): ComputeOptions {
    return evaluationCompute(this.#backbone.device, this.#options.compute)
  }

  /** Trains to an iteration; false when it was interrupted. A setting that is tried and diverges ends at once. */
  async #train(stage: FinetuneStage, setting: FinetuneSetting, until: number): Promise<boolean> {
    const { protocol, seed = 0, workers = 0, maxBroken = 0.01, cacheMegabytes = 1024, imageSize, broken } = this.#options
    const { logEvery = 20, saveEvery = 500, interrupted = () => false } = this.#options
    const { items, begin } = stage
    const { device } = this.#backbone
    const batchSize = Math.ceil(mostOfEvenBatch(items.length, protocol.batchSize, this.#least) / this.#group.size)
    const shared = { imageSize, batchSize, views: 'crop', augment: cropAndFlip, device, seed, workers } as const
    const loader = new Loader({ items, ...shared, maxBroken, cacheMegabytes })
    const requests = evenBatches({
      seed,
      count: items.length,
      batchSize: protocol.batchSize,
      from: this.#run.position - begin,
      until: until - begin,
      least: this.#least,
    })
    let since = { time: performance.now(), images: 0, waited: 0 }
    try {
      for await (const batch of loader.batches(sharesOf(requests, this.#group))) {
        if (interrupted()) {
          this.#run.save(this.#tensors())
          return false
        }
        const { images } = batch.request
        const loss = this.#step(stage, setting, batch.views() as [Tensor], batch.labels, images)
        since.waited += batch.waited
        since.images += images
        this.#run.position += 1
        if (!Number.isFinite(loss)) {
          this.#diverged(stage, setting)
          this.#run.position = stage.end
        }
        const { position } = this.#run
        if ((position - begin) % logEvery === 0 || position === until) {
          this.#report(stage, setting, loss, since)
          since = { time: performance.now(), images: 0, waited: 0 }
        }
        if (position % saveEvery === 0 || position >= until) this.#run.save(this.#tensors())
        if (position >= until) break
      }
      return true
    } catch (error) {
      if (!isInterruption(error)) throw error
      this.#run.save(this.#tensors())
      return false
    } finally {
      for (const [name, reason] of loader.broken) broken?.set(name, reason)
      await loader.close()
    }
  }

  /** One update by the own images of a batch of `images`. */
  #step({ begin, stepsPerEpoch }: FinetuneStage, setting: FinetuneSetting, [x]: [Tensor], labels: Int32Array, images: number): number {
    const backbone = setting.lr * finetuneDecay(this.#options.protocol, Math.floor((this.#run.position - begin) / stepsPerEpoch))
    const rates = { backbone, head: backbone * setting.headMultiplier }
    const weight = (labels.length * this.#group.size) / images
    const loss = withDevice(this.#backbone.device, () =>
      withCompute(this.#compute, () => scope(() => updateClassifier(this.#trained, x, labels, rates, { shared: this.#shared, weight }))),
    )
    x.dispose()
    return loss
  }

  #diverged(stage: FinetuneStage, { lr, headMultiplier }: FinetuneSetting): void {
    const what = `the loss at learning rate ${lr}, ${headMultiplier} times that for the last layer, is not a number`
    if (!stage.choice) fail('NAN', `finetune: ${what}; try a lower --lr`)
    this.#run.log.line(`${what}: it is not tried further`)
  }

  #report(
    { name, begin, end, choice, final, stepsPerEpoch }: FinetuneStage,
    { lr }: FinetuneSetting,
    loss: number,
    since: { time: number; images: number; waited: number },
  ): void {
    const { protocol } = this.#options
    const { position } = this.#run
    const seconds = (performance.now() - since.time) / 1000
    const epoch = Math.ceil((position - begin) / stepsPerEpoch)
    const rate = lr * finetuneDecay(protocol, Math.max(0, epoch - 1))
    const [imagesPerSecond, waitShare] = [since.images / seconds, since.waited / seconds]
    this.#run.log.metrics({ globalStep: position, [final || !choice ? 'loss' : 'choiceLoss']: loss, lr: rate, imagesPerSecond, waitShare })
    const left = ((end - position) * protocol.batchSize) / imagesPerSecond
    this.#run.log.progress(
      [
        `eta ${duration(left)}`,
        name,
        `epoch ${epoch}/${protocol.epochs}`,
        `loss ${loss.toFixed(3)}`,
        `${imagesPerSecond.toFixed(1)} images/s`,
        `wait ${(100 * waitShare).toFixed(0)}%`,
        `lr ${rate.toPrecision(3)}`,
      ],
      position === end,
    )
  }

  /** Tests what a training ended with, and keeps it where it is the best that was tested on the validation images. */
  async #finish(stage: FinetuneStage, setting: FinetuneSetting): Promise<ClassificationResult> {
    const { out, classes, imageSize, describe = 'fine-tuning' } = this.#options
    const test = await this.#testOn(stage.test)
    const before = this.#tried(this.#stages.filter(({ choice, end }) => choice && end < stage.end))
    if (this.#group.rank === 0 && stage.final && (!stage.choice || before.every((other) => isBetter(test, other)))) {
      const protocol = `${describe}, learning rate ${setting.lr}, ${setting.headMultiplier} times that for the last layer`
      saveClassifier(classifierPath(out), this.#trained.model, { classes, imageSize, ...normalisation, protocol })
    }
    this.#log(stage, test)
    return test
  }

  async #test(stage: FinetuneStage): Promise<void> {
    if (!this.#run.isLogged(keyOf(stage).top1)) this.#log(stage, await this.#testOn(stage.test))
  }

  #log(stage: FinetuneStage, { top1, top5, loss }: ClassificationResult): void {
    const keys = keyOf(stage)
    this.#run.log.metrics({
      globalStep: this.#run.position,
      [keys.top1]: top1,
      ...(this.#options.classes.length > 5 ? { [keys.top5]: top5 } : {}),
      [keys.loss]: loss,
    })
    this.#run.log.line(
      `${stage.name}  tested on ${stage.test.length} ${stage.final ? 'validation' : 'held-out'} images: ${percent(top1)} %`,
    )
  }

  #testOn(items: Item[]): Promise<ClassificationResult> {
    const { imageSize, workers = 0, maxBroken = 0.01, broken } = this.#options
    const options = { imageSize, workers, maxBroken, ...(broken === undefined ? {} : { broken }) }
    return testClassifier(this.#trained.model, items, labelsOf(items, 'finetune'), this.#compute, options, this.#group)
  }

  /** What the stages reached, by the log. */
  #tried(stages: readonly FinetuneStage[]): TriedSetting[] {
    const rows = this.#run.rows()
    return stages.map((stage) => {
      const keys = keyOf(stage)
      const row = rows.find(({ globalStep, [keys.top1]: top1 }) => globalStep === stage.end && top1 !== undefined)!
      const loss = row[keys.loss]!
      return { ...stage.setting!, top1: row[keys.top1]!, loss: Number.isNaN(loss) ? Infinity : loss }
    })
  }

  #best(stages: readonly FinetuneStage[]): FinetuneSetting {
    const tried = this.#tried(stages.filter(({ choice }) => choice))
    const { lr, headMultiplier } = tried.reduce((best, other) => (isBetter(other, best) ? other : best))
    return { lr, headMultiplier }
  }
}
