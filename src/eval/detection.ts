/** Detection with Faster R-CNN on the backbone, all of it trained (docs/method.md, Detection). */
import { join } from 'node:path'

import type { BoxItem, BoxSource } from '../data/boxes.js'
import type { Pixels } from '../data/decode.js'
import { loadPixels } from '../data/source.js'
import { detect, testRules } from '../detection/detect.js'
import { saveDetector } from '../detection/detectorFile.js'
import { FasterRcnn } from '../detection/fasterRcnn.js'
import { proposalLimits } from '../detection/proposals.js'
import { type DetectionStyleName, detectionStyles } from '../detection/styles.js'
import type { TrainingImage } from '../detection/targets.js'
import type { Backbone } from '../nn/backbone.js'
import { allTensors } from '../nn/module.js'
import { Sgd } from '../optim/sgd.js'
import { duration } from '../run/runLog.js'
import { type ComputeOptions, withCompute } from '../tensor/compute.js'
import { fail } from '../tensor/errors.js'
import { isInterruption } from '../tensor/interruption.js'
import { Random } from '../tensor/random.js'
import { scope, type Tensor, withDevice } from '../tensor/tensor.js'
import { withOptimizer } from '../weights/state.js'
import { type CocoScores, cocoBoxScores } from './cocoBoxScores.js'
import { evaluationCompute } from './compute.js'
import { batchTensor, type DetectionBatch, type DetectionLoading, testBatches, trainingBatches } from './detectionBatches.js'
import { detectionRate, type DetectionProtocol, publishedAnchors } from './detectionProtocols.js'
import type { Detection } from './detections.js'
import { buildDetector, type Losses, parts, updateDetector } from './detectorTraining.js'
import { Resumable, type ResumableOptions } from './resumable.js'
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
  /** Images that are computed at a time; gradients of a batch are summed. Batch norm then sees these alone. All when absent. */
  imagesAtOnce?: number
  /** Iterations between two log lines, and two states; the last is always saved. */
  logEvery?: number
  saveEvery?: number
  /** Settings to compute with; evaluationCompute() says what holds without them. */
  compute?: ComputeOptions | undefined
  /** A function that is asked between steps whether to stop; the state is then kept. */
  interrupted?: () => boolean
}

/** What evaluateDetection found. */
export interface DetectionResult {
  interrupted: boolean
  iterations: number
  /** Absent when it was interrupted; `samples` are some images with the best of what was found in them. */
  detections?: Detection[]
  samples?: { name: string; pixels: Pixels; found: Detection[]; truth: BoxItem['objects'] }[]
  voc?: VocScores
  coco?: CocoScores
}

/** Images of the test that are shown. */
const sampleCount = 12

/** Trains a detector on the backbone's weights and tests it. The backbone becomes part of it and belongs to the caller. */
export async function evaluateDetection(backbone: Backbone, options: DetectionOptions): Promise<DetectionResult> {
  const run = new DetectionRun(backbone, options)
  try {
    return await run.execute()
  } catch (error) {
    if (!isInterruption(error)) throw error
    return run.cutOff()
  } finally {
    run.close()
  }
}

class DetectionRun {
  readonly #options: DetectionOptions
  readonly #model: FasterRcnn
  /** Of everything but norms, and of norms, whose weight decay may be another. */
  readonly #optimizers: Sgd[]
  /** Counts iterations. */
  readonly #run: Resumable

  constructor(backbone: Backbone, options: DetectionOptions) {
    this.#options = options
    const { train, style, seed = 0, anchors = publishedAnchors.sizes } = options
    this.#run = new Resumable({ key: 'detection', what: 'a detection', unit: 'iteration' }, options, this.#identity(backbone))
    const random = new Random(seed, 61)
    ;({ model: this.#model, optimizers: this.#optimizers } = buildDetector(backbone, {
      classes: train.classes.length,
      style,
      anchors,
      random,
    }))
    try {
      this.#run.restore(this.#tensors())
    } catch (error) {
      this.close()
      throw error
    }
  }

  /** Frees the heads and the optimisers; the backbone belongs to the caller. */
  close(): void {
    this.#run.release()
    this.#model.dispose()
    for (const optimizer of this.#optimizers) optimizer.dispose()
  }

  async execute(): Promise<DetectionResult> {
    const { iterations } = this.#options.protocol
    if (!(await this.#run.until(iterations, () => this.#train(iterations)))) return this.cutOff()
    return { interrupted: false, iterations, ...(await this.#test()) }
  }

  cutOff(): DetectionResult {
    return { interrupted: true, iterations: this.#run.saved }
  }

  #identity({ description }: Backbone): Record<string, unknown> {
    const { protocol, style, train, seed = 0, imagesAtOnce = protocol.batchSize, anchors = publishedAnchors.sizes } = this.#options
    const { describe: _, ...numbers } = protocol
    return { ...numbers, style, anchors, imagesAtOnce, backbone: description, classes: train.classes, train: train.items.length, seed }
  }

  #tensors(): Iterable<[string, Tensor]> {
    return this.#optimizers.reduce<Iterable<[string, Tensor]>>(withOptimizer, allTensors(this.#model.state()))
  }

  /** Trains to an iteration; false when it was interrupted. */
  async #train(until: number): Promise<boolean> {
    const { protocol, train, style, seed = 0, workers = 0, cacheMegabytes = 1024 } = this.#options
    const { logEvery = 20, saveEvery = 500, interrupted = () => false } = this.#options
    const iterations = { protocol, style: detectionStyles[style], seed, from: this.#run.position, until }
    let since = { time: performance.now(), iteration: this.#run.position }
    try {
      for await (const batch of trainingBatches(train, iterations, { workers, cacheMegabytes })) {
        if (interrupted()) {
          this.#run.save(this.#tensors())
          return false
        }
        const losses = this.#step(batch)
        this.#run.position += 1
        if (this.#run.position % logEvery === 0 || this.#run.position === until) {
          this.#report(losses, since)
          since = { time: performance.now(), iteration: this.#run.position }
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

  #step(batch: DetectionBatch<TrainingImage>): Losses {
    const { protocol, style, seed = 0, imagesAtOnce = protocol.batchSize } = this.#options
    const iteration = this.#run.position
    const { regions } = protocol
    const rate = detectionRate(protocol, iteration)
    const random = (part: number): Random => new Random(seed, 67, iteration, part)
    const losses = this.#computing(() =>
      updateDetector(this.#model, this.#optimizers, batch, { style: detectionStyles[style], regions, imagesAtOnce, rate, random }),
    )
    if (!parts.every((key) => Number.isFinite(losses[key])))
      fail('NAN', `detection: the loss of iteration ${iteration + 1} is not a number; try a lower --lr`)
    return losses
  }

  #report(losses: Losses, since: { time: number; iteration: number }): void {
    const { protocol } = this.#options
    const each = (performance.now() - since.time) / 1000 / (this.#run.position - since.iteration)
    const lr = detectionRate(protocol, this.#run.position - 1)
    const loss = parts.reduce((sum, key) => sum + losses[key], 0)
    this.#run.log.metrics({ globalStep: this.#run.position, loss, ...losses, lr, imagesPerSecond: protocol.batchSize / each })
    this.#run.log.progress(
      `iteration ${this.#run.position}/${protocol.iterations}  loss ${loss.toFixed(3)} (anchors ${losses.anchorClass.toFixed(3)} + ` +
        `${losses.anchorBox.toFixed(3)}, regions ${losses.regionClass.toFixed(3)} + ${losses.regionBox.toFixed(3)})  ` +
        `lr ${lr.toPrecision(3)}  ` +
        `${(protocol.batchSize / each).toFixed(2)} images/s  eta ${duration(each * (protocol.iterations - this.#run.position))}`,
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

  async #test(): Promise<Required<Pick<DetectionResult, 'detections' | 'samples' | 'voc' | 'coco'>>> {
    const { val, protocol, style: name, workers = 0 } = this.#options
    const style = detectionStyles[name]
    const limits = { ...proposalLimits.test, after: protocol.testRegions }
    const detections: Detection[] = []
    const samples: NonNullable<DetectionResult['samples']> = []
    const every = Math.ceil(val.items.length / sampleCount)
    for await (const batch of testBatches(val.items, protocol, style, { workers })) {
      const image = batch.indices[0]!
      const [found] = this.#computing(() =>
        detect(this.#model, batchTensor(batch, this.#model.backbone.device), batch.images, style, limits, testRules),
      )
      for (const object of found!) detections.push({ image, ...object })
      if (image % every !== 0) continue
      const item = val.items[image]!
      samples.push({
        name: item.name,
        pixels: await loadPixels(item),
        found: found!.filter(({ score }) => score >= 0.5).map((object) => ({ image, ...object })),
        truth: item.objects,
      })
    }
    const [voc, coco] = [vocBoxScores(val, detections, vocRules[name]), cocoBoxScores(val, detections)]
    this.#run.log.metrics({ globalStep: this.#run.position, ap50: voc.mean[0]!, cocoAp: coco.ap, cocoAp50: coco.ap50 })
    this.#run.log.line(`tested  AP50 ${(100 * voc.mean[0]!).toFixed(2)} %  iteration ${this.#run.position}`)
    this.#save()
    return { detections, samples, voc, coco }
  }
}
