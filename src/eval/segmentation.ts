/** Semantic segmentation with a fully convolutional network on the backbone, all of it trained (docs/method.md, Segmentation). */
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'

import { Loader } from '../data/loader.js'
import { decodeMask, ignoredLabel, type Mask } from '../data/masks.js'
import { iterationBatches } from '../data/sampler.js'
import type { SegmentationSource, SegmentedItem } from '../data/segmentationSources.js'
import type { SegmentationAugment } from '../data/segmentationView.js'
import { SharedGradients } from '../distributed/buckets.js'
import { Group } from '../distributed/group.js'
import { loadPixels } from '../data/source.js'
import type { Pixels } from '../data/decode.js'
import type { Fcn } from '../nn/fcn.js'
import { allTensors, refreshCopies } from '../nn/module.js'
import { Random } from '../tensor/random.js'
import type { Backbone } from '../nn/backbone.js'
import { type ComputeOptions, withCompute } from '../tensor/compute.js'
import { fail } from '../tensor/errors.js'
import { isInterruption, stopIfInterrupted } from '../tensor/interruption.js'
import { scope, type Tensor } from '../tensor/tensor.js'
import { duration } from '../run/runLog.js'
import { evaluationCompute } from './compute.js'
import { ConfusionMatrix, type SegmentationScores } from './meanIou.js'
import { withOptimizer } from '../weights/state.js'
import { completed, identityOf, Resumable, type ResumableOptions } from './resumable.js'
import { checkEvenBatch, partOf, sharesOf } from './shares.js'
import { polyRate, type SegmentationProtocol, segmentationTraining } from './segmentationProtocols.js'
import { segmentImage } from './segmentImage.js'
import { saveSegmenter } from './segmenterFile.js'
import { buildSegmenter, disposeSegmenter, type Segmenter, updateSegmenter } from './segmenterTraining.js'

/** What evaluateSegmentation trains on and where it keeps its state. */
export interface SegmentationOptions extends ResumableOptions {
  protocol: SegmentationProtocol
  train: SegmentationSource
  val: SegmentationSource
  seed?: number
  workers?: number
  maxBroken?: number
  cacheMegabytes?: number
  /** Iterations between two log lines, two states, and two tests; the last is always saved and tested. */
  logEvery?: number
  saveEvery?: number
  testEvery?: number
  /** Settings to compute with; evaluationCompute() says what holds without them. */
  compute?: ComputeOptions | undefined
  /** A function that is asked between steps whether to stop; the state is then kept. */
  interrupted?: () => boolean
}

/** What evaluateSegmentation found. */
export interface SegmentationResult {
  interrupted: boolean
  iterations: number
  /** Absent when it was interrupted. */
  scores?: SegmentationScores
  /** Some validation images as they were predicted. */
  samples: Segmented[]
}

const sampleCount = 4

/** A test image and the classes that were predicted for it. */
export interface Segmented {
  name: string
  pixels: Pixels
  truth: Mask
  predicted: Uint8Array
}

/** Trains the whole network on the backbone's weights and tests it. The backbone becomes part of the network and ends with it. */
export async function evaluateSegmentation(backbone: Backbone, options: SegmentationOptions): Promise<SegmentationResult> {
  return await completed(() => new SegmentationRun(backbone, options), options)
}

class SegmentationRun {
  readonly #options: SegmentationOptions
  readonly #segmenter: Segmenter
  /** Counts iterations. */
  readonly #run: Resumable
  readonly #group: Group
  readonly #shared: SharedGradients

  constructor(backbone: Backbone, options: SegmentationOptions) {
    this.#options = options
    const {
      protocol: { alignCorners, batchSize },
      train,
      val,
      seed = 0,
      group = Group.single,
    } = options
    this.#group = group
    this.#shared = new SharedGradients(group)
    checkEvenBatch(batchSize, group)
    if (train.classes.join() !== val.classes.join())
      fail('DATA', `segmentation: the classes differ: ${train.classes.join(', ')} for training and ${val.classes.join(', ')} for testing`)
    const kind = { key: 'segmentation', what: 'a segmentation', unit: 'iteration' }
    this.#run = new Resumable(kind, options, this.#identity(backbone))
    this.#segmenter = buildSegmenter(backbone, { classes: train.classes.length, alignCorners, random: new Random(seed, 47) })
    try {
      this.#run.restore(this.#tensors())
    } catch (error) {
      this.close()
      throw error
    }
  }

  share(): void {
    this.#run.share(this.#tensors())
    refreshCopies(this.#model.state())
  }

  /** Frees the heads and the optimiser; the backbone belongs to the caller. */
  close(): void {
    this.#run.release()
    disposeSegmenter(this.#segmenter)
  }

  get #model(): Fcn {
    return this.#segmenter.model
  }

  async execute(): Promise<SegmentationResult> {
    const {
      protocol: { iterations },
      testEvery = 0,
    } = this.#options
    const tested = await this.#run.trainAndTest(
      { end: iterations, every: testEvery, result: 'meanIou' },
      (until) => this.#train(until),
      () => this.#test(),
    )
    if (tested === undefined) return this.cutOff()
    if (this.#group.rank === 0) this.#save()
    return { interrupted: false, iterations, ...tested }
  }

  /** Writes the network as other commands use it. */
  #save(): void {
    const {
      out,
      train: { classes },
      protocol: { scale, crop, slide },
    } = this.#options
    const record = { classes: [...classes], scale: [...scale] as [number, number], crop, slide, outputStride: this.#model.backbone.stride }
    saveSegmenter(join(out, 'segmenter.safetensors'), this.#model, record)
  }

  cutOff(): SegmentationResult {
    return { interrupted: true, iterations: this.#run.saved, samples: [] }
  }

  #identity(backbone: Backbone): Record<string, unknown> {
    const {
      protocol: { describe: _, ...numbers },
      train,
      seed = 0,
    } = this.#options
    return { ...numbers, ...identityOf(backbone), classes: train.classes, train: train.items.length, seed }
  }

  #tensors(): Iterable<[string, Tensor]> {
    return withOptimizer(allTensors(this.#model.state()), this.#segmenter.sgd)
  }

  /** Trains to an iteration; false when it was interrupted. */
  async #train(until: number): Promise<boolean> {
    const {
      protocol: { crop, scale, batchSize },
      train,
      seed = 0,
      workers = 0,
      maxBroken = 0.01,
      cacheMegabytes = 1024,
      logEvery = 50,
      saveEvery = 1000,
      interrupted = () => false,
    } = this.#options
    const { ratio, mostOfAClass, flip } = segmentationTraining
    const augment: SegmentationAugment = { crop, scale, ratio, mostOfAClass, flip, distort: true }
    const segmentation = { augment, classes: train.classes.length, ...(train.map === undefined ? {} : { map: train.map }) }
    const loader = new Loader({
      items: train.items,
      imageSize: crop,
      batchSize: batchSize / this.#group.size,
      views: 'segmentation',
      segmentation,
      device: this.#model.backbone.device,
      seed,
      workers,
      maxBroken,
      cacheMegabytes,
    })
    let since = { time: performance.now(), iteration: this.#run.position, waited: 0 }
    try {
      const requests = iterationBatches({ seed, count: train.items.length, batchSize, from: this.#run.position, until })
      for await (const batch of loader.batches(sharesOf(requests, this.#group))) {
        if (interrupted()) {
          this.#run.save(this.#tensors())
          return false
        }
        const losses = this.#step(batch.views() as [Tensor, Tensor])
        since.waited += batch.waited
        this.#run.position += 1
        if (this.#run.position % logEvery === 0 || this.#run.position === until) {
          this.#report(losses, since)
          since = { time: performance.now(), iteration: this.#run.position, waited: 0 }
        }
        if (this.#run.position % saveEvery === 0 || this.#run.position === until) this.#run.save(this.#tensors())
      }
      return true
    } catch (error) {
      if (!isInterruption(error)) throw error
      this.#run.save(this.#tensors())
      return false
    } finally {
      await loader.close()
    }
  }

  /** A piece of work with the evaluation's settings, which are not held over an await. */
  #computing<R>(body: () => R): R {
    return withCompute(evaluationCompute(this.#model.backbone.device, this.#options.compute), () => scope(body))
  }

  #step([x, labels]: [Tensor, Tensor]): { main: number; auxiliary: number } {
    const labelled = (labels.data() as Int32Array).reduce((sum, label) => sum + Number(label !== ignoredLabel), 0) / labels.size
    // A batch without a labelled pixel teaches nothing.
    const result =
      this.#group.sum([labelled])[0] === 0
        ? { main: 0, auxiliary: 0 }
        : this.#computing(() => {
            const draw = this.#run.position + 2 ** 20 * (this.#options.seed ?? 0)
            const rate = polyRate(this.#options.protocol, this.#run.position)
            return updateSegmenter(this.#segmenter, { x, labels, labelled, draw, rate }, this.#shared)
          })
    x.dispose()
    labels.dispose()
    if (!Number.isFinite(result.main + result.auxiliary))
      fail('NAN', `segmentation: the loss of iteration ${this.#run.position + 1} is not a number; try a lower --lr`)
    return result
  }

  #report({ main, auxiliary }: { main: number; auxiliary: number }, since: { time: number; iteration: number; waited: number }): void {
    const { protocol } = this.#options
    const seconds = (performance.now() - since.time) / 1000
    const each = seconds / (this.#run.position - since.iteration)
    const lr = polyRate(protocol, this.#run.position - 1)
    this.#run.log.metrics({
      globalStep: this.#run.position,
      loss: main + auxiliary,
      lossMain: main,
      lossAuxiliary: auxiliary,
      lr,
      imagesPerSecond: protocol.batchSize / each,
      waitShare: since.waited / seconds,
    })
    this.#run.log.progress(
      [
        `eta ${duration(each * (protocol.iterations - this.#run.position))}`,
        `iteration ${this.#run.position}/${protocol.iterations}`,
        `loss ${(main + auxiliary).toFixed(3)}`,
        `${(protocol.batchSize / each).toFixed(1)} images/s`,
        `wait ${((100 * since.waited) / seconds).toFixed(0)}%`,
        `head ${main.toFixed(3)} auxiliary ${auxiliary.toFixed(3)}`,
        `lr ${lr.toPrecision(3)}`,
      ],
      true,
    )
  }

  async #test(): Promise<{ scores: SegmentationScores; samples: Segmented[] }> {
    const { val, protocol } = this.#options
    const counts = new ConfusionMatrix(val.classes.length)
    const samples: Segmented[] = []
    const every = Math.ceil(val.items.length / sampleCount)
    const own = new Set(partOf(val.items, this.#group))
    const shown = new Set(this.#group.rank === 0 ? val.items.filter((_, i) => i % every === 0) : [])
    const items = val.items.filter((item) => own.has(item) || shown.has(item))
    for await (const { item, pixels, truth } of decoded({ ...val, items })) {
      stopIfInterrupted()
      const predicted = this.#computing(() => segmentImage(this.#model, pixels, protocol))
      if (own.has(item)) counts.add(truth.labels, predicted)
      if (shown.has(item)) samples.push({ name: item.name, pixels, truth, predicted })
    }
    const scores = new ConfusionMatrix(val.classes.length, this.#group.sum([...counts.counts])).scores()
    if (!this.#run.isLogged('meanIou'))
      this.#run.log.metrics({
        globalStep: this.#run.position,
        meanIou: scores.meanIou,
        meanAccuracy: scores.meanAccuracy,
        pixelAccuracy: scores.pixelAccuracy,
      })
    this.#run.log.line(
      `tested  mIoU ${(100 * scores.meanIou).toFixed(2)} %  pixel accuracy ${(100 * scores.pixelAccuracy).toFixed(2)} %  ` +
        `iteration ${this.#run.position}`,
    )
    return { scores, samples }
  }
}

/** Images with their masks, the next one decoded while one is used. */
async function* decoded({ items, classes, map }: SegmentationSource): AsyncGenerator<{ item: SegmentedItem; pixels: Pixels; truth: Mask }> {
  const read = async (item: SegmentedItem | undefined): Promise<{ item: SegmentedItem; pixels: Pixels; truth: Mask } | undefined> => {
    if (item === undefined) return undefined
    const [pixels, bytes] = await Promise.all([loadPixels(item), readFile(item.mask)])
    const truth = decodeMask(bytes, item.mask, classes.length, map)
    if (truth.width !== pixels.width || truth.height !== pixels.height)
      fail('DATA', `${item.mask}: the mask has ${truth.width}x${truth.height} pixels but ${item.name} has ${pixels.width}x${pixels.height}`)
    return { item, pixels, truth }
  }
  let next = read(items[0])
  for (let i = 0; i < items.length; ++i) {
    const current = (await next)!
    next = read(items[i + 1])
    // Reported where it is awaited.
    next.catch(() => undefined)
    yield current
  }
}
