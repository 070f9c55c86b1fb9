/** Detection with a two-stage detector on the backbone, all of it trained (docs/method.md, Detection). */
import { join } from 'node:path'

import type { BoxItem, BoxSource } from '../data/boxes.js'
import type { Pixels } from '../data/decode.js'
import { SharedGradients } from '../distributed/buckets.js'
import { Group } from '../distributed/group.js'
import { loadPixels } from '../data/source.js'
import { noGrad } from '../autograd/tape.js'
import { publishedAnchors } from '../detection/anchors.js'
import { detect, testRules } from '../detection/detect.js'
import { saveDetector } from '../detection/detectorFile.js'
import { maskedObjects } from '../detection/foundMasks.js'
import type { Detector } from '../detection/detector.js'
import { proposalLimits } from '../detection/proposals.js'
import { type DetectionStyle, type DetectionStyleName, styleOf } from '../detection/styles.js'
import type { TrainingImage } from '../detection/targets.js'
import type { Backbone } from '../nn/backbone.js'
import { allTensors, refreshCopies } from '../nn/module.js'
import { PreciseNorms } from '../nn/preciseNorms.js'
import { Sgd } from '../optim/sgd.js'
import { percent } from '../run/results.js'
import { duration } from '../run/runLog.js'
import { type ComputeOptions, withCompute } from '../tensor/compute.js'
import { fail } from '../tensor/errors.js'
import { interruption, isInterruption } from '../tensor/interruption.js'
import { Random } from '../tensor/random.js'
import { scope, type Tensor, withDevice } from '../tensor/tensor.js'
import { withOptimizer } from '../weights/state.js'
import { type CocoScores, cocoBoxScores, shareOf } from './cocoBoxScores.js'
import { cocoMaskScores } from './cocoMaskScores.js'
import { evaluationCompute } from './compute.js'
import {
  batchTensor,
  type DetectionBatch,
  type DetectionLoading,
  type LoadedBatch,
  testBatches,
  trainingBatches,
} from './detectionBatches.js'
import { introduction } from './detectionIntroduction.js'
import { detectionRate, type DetectionProtocol, preciseBatchesOf } from './detectionProtocols.js'
import { type Detection, gatheredDetections } from './detections.js'
import { buildDetector, type DetectorPass, type Losses, partsOfBatch, shapeOf, updateDetector } from './detectorTraining.js'
import { checkEvenBatch, partOf, placesOf } from './shares.js'
import { completed, identityOf, Resumable, type ResumableOptions } from './resumable.js'
import { vocBoxScores, vocRules, type VocScores } from './vocBoxScores.js'

/** What evaluateDetection trains on and where it keeps its state. */
export interface DetectionOptions extends ResumableOptions, DetectionLoading {
  protocol: DetectionProtocol
  style: DetectionStyleName
  train: BoxSource
  val: BoxSource
  seed?: number
  /** Square roots of the anchors' areas in pixels; those of the protocol when absent. */
  anchors?: readonly number[]
  /**
   * Images that are computed at a time, by all processes together; gradients of a batch are summed. Batch norm then sees these alone. All
   * when absent.
   */
  imagesAtOnce?: number
  /** What the log calls the data, and what the backbone's weights are from. */
  dataName?: string
  weightsName?: string
  /** Iterations between two log lines, two states, and two tests, which do not change the training; the last is always saved and tested. */
  logEvery?: number
  saveEvery?: number
  testEvery?: number
  /** A function that is given the result of every test, the last one included. */
  onTest?: (test: DetectionTest) => void | Promise<void>
  /** Settings to compute with; evaluationCompute() says what holds without them. */
  compute?: ComputeOptions | undefined
  /** A function that is asked between steps whether to stop; the state is then kept. */
  interrupted?: () => boolean
}

/** What a detector finds in the validation images after some iterations. */
export interface DetectionTest {
  iteration: number
  detections: Detection[]
  /** Some images, the same ones in every test, with the best of what was found in them. */
  samples: { name: string; pixels: Pixels; found: Detection[]; truth: BoxItem['objects'] }[]
  voc: VocScores
  coco: CocoScores
  /** COCO's scores of masks, of a detector and validation images that have them. */
  masks?: CocoScores
}

/** What evaluateDetection found. */
export interface DetectionResult {
  interrupted: boolean
  iterations: number
  /** Absent when it was interrupted. */
  test?: DetectionTest
}

/** Images of the test that are shown. */
const sampleCount = 12

/** Trains a detector on the backbone's weights and tests it. The backbone becomes part of it and belongs to the caller. */
export async function evaluateDetection(backbone: Backbone, options: DetectionOptions): Promise<DetectionResult> {
  return await completed(() => new DetectionRun(backbone, options), options)
}

class DetectionRun {
  readonly #options: DetectionOptions
  readonly #style: DetectionStyle
  readonly #model: Detector
  /** Of everything but norms, and of norms, whose weight decay may be another. */
  readonly #optimizers: Sgd[]
  /** Counts iterations. */
  readonly #run: Resumable
  readonly #group: Group
  readonly #shared: SharedGradients

  constructor(backbone: Backbone, options: DetectionOptions) {
    this.#options = options
    this.#group = options.group ?? Group.single
    this.#shared = new SharedGradients(this.#group)
    const { protocol, train, style, seed = 0, anchors = publishedAnchors.sizes } = options
    this.#style = styleOf(style, protocol.form)
    checkEvenBatch(protocol.batchSize, this.#group, this.#style.groupOf)
    checkEvenBatch(this.#atOnce, this.#group, this.#style.groupOf, '--images-at-once')
    this.#run = new Resumable({ key: 'detection', what: 'a detection', unit: 'iteration' }, options, this.#identity(backbone))
    const random = new Random(seed, 61)
    ;({ model: this.#model, optimizers: this.#optimizers } = buildDetector(backbone, {
      ...shapeOf(protocol, style, { classes: train.classes.length, anchors }),
      random,
    }))
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

  /** Frees the heads and the optimisers; the backbone belongs to the caller. */
  close(): void {
    this.#run.release()
    this.#model.dispose()
    for (const optimizer of this.#optimizers) optimizer.dispose()
  }

  async execute(): Promise<DetectionResult> {
    const { protocol, testEvery = 0 } = this.#options
    const { iterations } = protocol
    const lines = this.#computing(() => introduction(this.#model.backbone, this.#options, this.#run.position))
    for (const line of lines) this.#run.log.line(line)
    const test = await this.#run.trainAndTest(
      { end: iterations, every: testEvery, result: 'ap50' },
      (until) => this.#train(until),
      async () => {
        if (this.#run.position === iterations) await this.#takeStatistics()
        return this.#test()
      },
    )
    return test === undefined ? this.cutOff() : { interrupted: false, iterations, test }
  }

  cutOff(): DetectionResult {
    return { interrupted: true, iterations: this.#run.saved }
  }

  #identity(backbone: Backbone): Record<string, unknown> {
    const { protocol, style, train, seed = 0, anchors = publishedAnchors.sizes } = this.#options
    const imagesAtOnce = this.#atOnce
    const { describe: _, ...numbers } = protocol
    const data = { classes: train.classes, train: train.items.length }
    return { ...numbers, style, anchors, imagesAtOnce, ...identityOf(backbone), ...data, seed }
  }

  get #atOnce(): number {
    const { protocol, imagesAtOnce = protocol.batchSize } = this.#options
    return Math.min(imagesAtOnce, protocol.batchSize)
  }

  #tensors(): Iterable<[string, Tensor]> {
    return this.#optimizers.reduce<Iterable<[string, Tensor]>>(withOptimizer, allTensors(this.#model.state()))
  }

  /** The batches of iterations `from` to `until`; those beyond the last iteration are as good as any. */
  #batches(from: number, until: number): AsyncGenerator<LoadedBatch<TrainingImage>> {
    const { protocol, train, seed = 0, workers = 0, cacheMegabytes = 1024 } = this.#options
    const iterations = { protocol, style: this.#style, seed, from, until, group: this.#group, imagesAtOnce: this.#atOnce }
    return trainingBatches(train, iterations, { workers, cacheMegabytes })
  }

  /** Trains to an iteration; false when it was interrupted. */
  async #train(until: number): Promise<boolean> {
    const { logEvery = 20, saveEvery = 500, interrupted = () => false } = this.#options
    let since = { time: performance.now(), iteration: this.#run.position, waited: 0 }
    try {
      for await (const batch of this.#batches(this.#run.position, until)) {
        if (interrupted()) {
          this.#run.save(this.#tensors())
          return false
        }
        const losses = this.#step(batch)
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
    }
  }

  /** A piece of work with the evaluation's settings, which are not held over an await. */
  #computing<R>(body: () => R): R {
    const { device } = this.#model.backbone
    return withDevice(device, () => withCompute(evaluationCompute(device, this.#options.compute), () => scope(body)))
  }

  /** How the batch of an iteration is gone through. */
  #pass(iteration: number): DetectorPass {
    const { protocol, seed = 0 } = this.#options
    const places = placesOf(protocol.batchSize, this.#atOnce, this.#group)
    const random = (image: number): Random => new Random(seed, 67, iteration, places[image]!)
    return { style: this.#style, regions: protocol.regions, imagesAtOnce: this.#atOnce / this.#group.size, random }
  }

  #step(batch: DetectionBatch<TrainingImage>): Losses {
    const iteration = this.#run.position
    const rate = detectionRate(this.#options.protocol, iteration)
    const pass = { ...this.#pass(iteration), rate }
    const losses = this.#computing(() => updateDetector(this.#model, this.#optimizers, batch, pass, this.#shared))
    if (!Object.values(losses).every(Number.isFinite))
      fail('NAN', `detection: the loss of iteration ${iteration + 1} is not a number; try a lower --lr`)
    return losses
  }

  /**
   * Gives batch norms the statistics of the training images where the style does so. Cut off, all of it is done again; the state has the
   * result.
   */
  async #takeStatistics(): Promise<void> {
    const { protocol, interrupted = () => false } = this.#options
    const { iterations } = protocol
    const count = preciseBatchesOf(this.#style.preciseBatches, iterations)
    if (count === 0 || this.#run.finished.has('statistics')) return
    const norms = new PreciseNorms(this.#model.state(), this.#group)
    const began = performance.now()
    let iteration = iterations
    for await (const batch of this.#batches(iterations, iterations + count)) {
      if (interrupted()) throw interruption()
      this.#computing(() => {
        for (const lossesIn of partsOfBatch(this.#model, batch, this.#pass(iteration)))
          norms.add((mode) => noGrad(() => scope(() => void lossesIn(mode))))
      })
      iteration += 1
      const seconds = (performance.now() - began) / 1000
      const left = (seconds / (iteration - iterations)) * (iterations + count - iteration)
      this.#run.log.progress([`eta ${duration(left)}`, `statistics of batch norms: batch ${iteration - iterations}/${count}`], false)
    }
    norms.write()
    this.#run.finished.add('statistics')
    this.#run.save(this.#tensors())
    const took = duration((performance.now() - began) / 1000)
    this.#run.log.line(`statistics of batch norms are those of ${count} batches of training images now, the weights fixed (${took})`)
  }

  #report(losses: Losses, since: { time: number; iteration: number; waited: number }): void {
    const { protocol } = this.#options
    const seconds = (performance.now() - since.time) / 1000
    const each = seconds / (this.#run.position - since.iteration)
    const [lr, waitShare] = [detectionRate(protocol, this.#run.position - 1), since.waited / seconds]
    const loss = Object.values(losses).reduce((sum, part) => sum + part, 0)
    const shown = (part: number | undefined): string => (part ?? 0).toFixed(3)
    this.#run.log.metrics({ globalStep: this.#run.position, loss, ...losses, lr, imagesPerSecond: protocol.batchSize / each, waitShare })
    this.#run.log.progress(
      [
        `eta ${duration(each * (protocol.iterations - this.#run.position))}`,
        `iteration ${this.#run.position}/${protocol.iterations}`,
        `loss ${loss.toFixed(3)}`,
        `${(protocol.batchSize / each).toFixed(2)} images/s`,
        `wait ${(100 * waitShare).toFixed(0)}%`,
        `anchors ${shown(losses.anchorClass)} + ${shown(losses.anchorBox)}`,
        `regions ${shown(losses.regionClass)} + ${shown(losses.regionBox)}`,
        ...(losses.mask === undefined ? [] : [`masks ${shown(losses.mask)}`]),
        `lr ${lr.toPrecision(3)}`,
      ],
      true,
    )
  }

  /** Writes the detector as other commands use it. */
  #save(): void {
    const { out, style, train, anchors = publishedAnchors.sizes, protocol } = this.#options
    const { testScale, longest, testRegions } = protocol
    const cells = { anchors: [...anchors], ratios: [...publishedAnchors.ratios] }
    const record = { style, classes: [...train.classes], ...cells, testScale, longest, testRegions }
    saveDetector(join(out, 'detector.safetensors'), this.#model, record)
  }

  async #test(): Promise<DetectionTest> {
    const { val, protocol, style: name, workers = 0, onTest } = this.#options
    const limits = { ...proposalLimits[protocol.form].test, after: protocol.testRegions }
    const own: Detection[] = []
    const items = partOf(val.items, this.#group)
    const first = items.length === 0 ? 0 : val.items.indexOf(items[0]!)
    const began = performance.now()
    const batches = items.length === 0 ? [] : testBatches(items, protocol, this.#style, { workers })
    for await (const batch of batches) {
      const done = batch.indices[0]! + 1
      const image = first + batch.indices[0]!
      const [found] = this.#computing(() =>
        detect(this.#model, batchTensor(batch, this.#model.backbone.device), batch.images, this.#style, limits, testRules),
      )
      const objects = this.#computing(() => maskedObjects(found!, val.items[image]!))
      for (const object of objects) own.push({ image, ...object })
      const left = ((performance.now() - began) / 1000 / done) * (items.length - done)
      this.#run.log.progress([`eta ${duration(left)}`, `test: image ${done}/${items.length}`], false)
    }
    const detections = gatheredDetections(own, this.#group)
    const samples = this.#group.rank === 0 ? await this.#samples(detections) : []
    const { position: iteration } = this.#run
    const [voc, coco] = [vocBoxScores(val, detections, vocRules[name]), cocoBoxScores(val, detections)]
    const masked = val.items.some(({ objects }) => objects.some(({ mask }) => mask !== undefined))
    const masks = masked && this.#model.masks !== undefined ? cocoMaskScores(val, detections) : undefined
    const test = { iteration, detections, samples, voc, coco, ...(masks === undefined ? {} : { masks }) }
    if (!this.#run.isLogged('ap50'))
      this.#run.log.metrics({
        globalStep: iteration,
        ap50: voc.mean[0]!,
        cocoAp: shareOf(coco.ap),
        cocoAp50: shareOf(coco.ap50),
        ...(masks === undefined ? {} : { maskAp: shareOf(masks.ap) }),
      })
    const ofMasks = masks === undefined ? '' : `, of masks ${percent(shareOf(masks.ap))} %`
    this.#run.log.line(
      `tested  AP50 ${percent(voc.mean[0]!)} %  COCO AP ${percent(shareOf(coco.ap))} %${ofMasks}  ` +
        `${detections.length} objects found  iteration ${iteration}`,
    )
    if (this.#group.rank > 0) return test
    await onTest?.(test)
    if (iteration === protocol.iterations) this.#save()
    return test
  }

  async #samples(detections: readonly Detection[]): Promise<DetectionTest['samples']> {
    const { items } = this.#options.val
    const every = Math.ceil(items.length / sampleCount)
    const some = [...items.keys()].filter((image) => image % every === 0)
    const sampleOf = async (image: number): Promise<DetectionTest['samples'][number]> => {
      const item = items[image]!
      return { name: item.name, pixels: await loadPixels(item), found: shown(detections, image), truth: item.objects }
    }
    return Promise.all(some.map(sampleOf))
  }
}

/** Most objects that a picture shows of an image. */
const mostShown = 10

/** What a picture shows of an image: what is more likely there than not, or else the best. */
function shown(detections: readonly Detection[], image: number): Detection[] {
  const own = detections.filter((each) => each.image === image)
  const likely = own.filter(({ score }) => score >= 0.5)
  return likely.length > 0 ? likely.slice(0, mostShown) : own.slice(0, 1)
}
