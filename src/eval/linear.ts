/** Linear classification of frozen features by the published protocols (docs/method.md, Linear protocols). */
import { imagesOf } from '../run/backbone.js'

import { Group } from '../distributed/group.js'
import { Loader } from '../data/loader.js'
import { epochOrder } from '../data/sampler.js'
import type { Item } from '../data/source.js'
import { evaluation } from '../nn/layers.js'
import { Random } from '../tensor/random.js'
import type { Backbone } from '../nn/backbone.js'
import type { Sgd } from '../optim/sgd.js'
import { type ComputeOptions, withCompute } from '../tensor/compute.js'
import { fail } from '../tensor/errors.js'
import { stopIfInterrupted } from '../tensor/interruption.js'
import { largest } from '../tensor/numbers.js'
import { scope, Tensor, withDevice } from '../tensor/tensor.js'
import { rankOf } from './classificationScores.js'
import { evaluationCompute } from './compute.js'
import { FeatureFile, type FeatureShape } from './featureFile.js'
import { type FeatureName, labelsOf, pooledFeatures } from './features.js'
import { LinearHeads, linearOptimizer, singleCells, updateHeads } from './linearHeads.js'
import { type LinearProtocol, stepRate } from './linearProtocols.js'
import { withOptimizer } from '../weights/state.js'
import { gatheredRows, gatheredValues, shareBroken, shareOf } from './shares.js'
import { completed, identityOf, Resumable, type ResumableOptions } from './resumable.js'

/** What evaluateLinear trains on and where it keeps its state. */
export interface LinearOptions extends ResumableOptions {
  protocol: LinearProtocol
  train: Item[]
  val: Item[]
  classes: number
  imageSize: number
  seed?: number
  workers?: number
  /** Most bytes of features kept on the disk; validation features beyond it are computed every epoch. */
  cacheBytes?: number
  maxBroken?: number
  /** A map that is filled with the images that could not be read: in training others take their places, in the test they are black. */
  broken?: Map<string, string>
  /** Settings to compute with; evaluationCompute() says what holds without them. */
  compute?: ComputeOptions | undefined
  /** A function that is asked between steps whether to stop; the state is then kept. */
  interrupted?: () => boolean
}

/** The accuracy of one linear classifier. */
export interface HeadResult {
  head: FeatureName
  top1: number
  top5: number
  /** The best of all epochs, which the protocols report from their logs. */
  best: number
  bestEpoch: number
}

/** What evaluateLinear found. */
export interface LinearResult {
  interrupted: boolean
  epochs: number
  heads: HeadResult[]
}

interface Batch {
  /** Pooled features, one a head; owned by the receiver. */
  pooled: Tensor[]
  /** Places of the images in the source, and the classes of what was read in their places. */
  indices: ArrayLike<number>
  labels: Int32Array
}

/**
 * Trains and tests the classifiers; an evaluation that was cut off continues at the epoch it was at. Where it ends early, epochs are those
 * that are saved.
 */
export async function evaluateLinear(backbone: Backbone, options: LinearOptions): Promise<LinearResult> {
  return await completed(() => new LinearRun(backbone, options), options)
}

class LinearRun {
  readonly #backbone: Backbone
  readonly #options: LinearOptions
  readonly #shapes: FeatureShape[]
  /** The images that a batch has at least. */
  readonly #leastImages: number
  readonly #heads: LinearHeads
  readonly #sgd: Sgd
  readonly #labels: { train: Int32Array; val: Int32Array }
  /** Counts epochs. */
  readonly #run: Resumable
  readonly #files: FeatureFile[] = []
  readonly #group: Group

  constructor(backbone: Backbone, options: LinearOptions) {
    this.#backbone = backbone
    this.#options = options
    this.#group = options.group ?? Group.single
    const { protocol, train, val, imageSize, classes, seed = 0 } = options
    this.#labels = { train: labelsOf(train, 'linear'), val: labelsOf(val, 'linear') }
    this.#shapes = this.#computing(() => shapesOf(backbone, protocol.heads, imageSize))
    const single = singleCells(this.#shapes)
    this.#leastImages = single.length > 0 ? 2 : 1
    if (train.length < this.#leastImages)
      fail(
        'DATA',
        `linear: ${single.join(' and ')} of an image of ${imageSize} px is one cell, and there is ${train.length} training image: ` +
          'expected two images or more, as batch norm has no variance of one value',
      )
    this.#run = new Resumable({ key: 'linear', what: 'a linear evaluation', unit: 'epoch' }, options, this.#identity())
    this.#heads = withDevice(backbone.device, () => new LinearHeads(this.#shapes, classes, new Random(seed, 43)))
    this.#sgd = withDevice(backbone.device, () => linearOptimizer(this.#heads, protocol))
    try {
      this.#run.restore(this.#tensors())
    } catch (error) {
      this.close()
      throw error
    }
  }

  share(): void {
    this.#run.share(this.#tensors())
  }

  close(): void {
    this.#run.release()
    for (const file of this.#files) file.close()
    this.#sgd.dispose()
    this.#heads.dispose()
  }

  async execute(): Promise<LinearResult> {
    const { protocol, interrupted = () => false } = this.#options
    const trainFile = protocol.pipeline === 'centre' ? await this.#keep(this.#options.train) : undefined
    const { val, cacheBytes } = this.#options
    const valFile = FeatureFile.fits(val.length, this.#shapes, cacheBytes) ? await this.#keep(val) : undefined
    const finished = await this.#run.until(protocol.epochs, async () => {
      const loss = await this.#train(trainFile, interrupted)
      if (loss === undefined) return false
      this.#run.position += 1
      this.#report(loss, await this.#test(valFile))
      this.#run.save(this.#tensors())
      return true
    })
    shareBroken(this.#options.broken, this.#group)
    return finished ? { interrupted: false, epochs: this.#run.position, heads: this.#results() } : this.cutOff()
  }

  cutOff(): LinearResult {
    return { interrupted: true, epochs: this.#run.saved, heads: [] }
  }

  /** What may not change when the evaluation is continued. */
  #identity(): Record<string, unknown> {
    const { protocol, imageSize, classes, train, val, seed = 0 } = this.#options
    const { describe: _, augment, ...numbers } = protocol
    return { ...numbers, augment, ...identityOf(this.#backbone), imageSize, classes, train: train.length, val: val.length, seed }
  }

  #tensors(): Iterable<[string, Tensor]> {
    return withOptimizer(this.#heads.tensors(), this.#sgd)
  }

  /** A piece of work with the evaluation's settings, which are not held over an await. */
  #computing<R>(body: () => R): R {
    return withCompute(evaluationCompute(this.#backbone.device, this.#options.compute), () => scope(body))
  }

  async #keep(items: Item[]): Promise<FeatureFile> {
    const { out, imageSize, workers, maxBroken, broken, compute } = this.#options
    const file = await FeatureFile.open(out, this.#backbone, items, this.#shapes, {
      imageSize,
      pipeline: 'centre',
      compute,
      ...(workers === undefined ? {} : { workers }),
      ...(maxBroken === undefined ? {} : { maxBroken }),
      ...(broken === undefined ? {} : { broken }),
      group: this.#group,
    })
    this.#files.push(file)
    return file
  }

  /**
   * Batches of features: from the file where they are kept, else of views that are made and passed through the network. Of several
   * processes each makes those of its share, and all have all of them: features are less than gradients of what is trained on them, and
   * classifiers cost nothing beside the network.
   */
  async *#batches(
    items: Item[],
    labels: Int32Array,
    order: Int32Array,
    file: FeatureFile | undefined,
    pipeline: LinearProtocol['pipeline'],
  ): AsyncGenerator<Batch> {
    const {
      protocol: { batchSize, augment, lighting },
      imageSize,
      seed = 0,
      workers = 0,
      maxBroken = 0.01,
    } = this.#options
    const requests = batchesOf(order, batchSize, this.#leastImages).map((indices) => ({ epoch: this.#run.position, indices }))
    if (file !== undefined) {
      for (const { indices } of requests) {
        stopIfInterrupted()
        const rows = file.rows(indices)
        yield {
          pooled: this.#shapes.map(({ shape }, i) =>
            Tensor.from(rows[i]!, [indices.length, ...shape], 'f32', this.#backbone.device).keep(),
          ),
          indices,
          labels: indices.map((i) => labels[i]!),
        }
      }
      return
    }
    const shares = requests.map(({ epoch, indices }) => ({ epoch, indices: shareOf(indices, this.#group), all: indices }))
    const loader = new Loader({
      items,
      imageSize,
      batchSize: Math.ceil(largest([batchSize, ...requests.map(({ indices }) => indices.length)]) / this.#group.size),
      views: pipeline,
      augment,
      images: imagesOf(this.#backbone),
      lighting,
      seed,
      workers,
      maxBroken,
    })
    try {
      for await (const batch of loader.batches(shares)) {
        const [x] = batch.views() as [Tensor]
        const { all } = batch.request
        const pooled = this.#computing(() => {
          const none = (): Tensor[] => this.#shapes.map(({ shape }) => Tensor.zeros([0, ...shape], 'f32', this.#backbone.device))
          const own = batch.indices.length === 0 ? none() : pooledFeatures(this.#backbone, x, this.#options.protocol.heads)
          return gatheredRows(own, all.length, this.#group)
        })
        x.dispose()
        const taught = gatheredValues(batch.labels, all.length, this.#group)
        yield { pooled: pooled.map((tensor) => tensor.keep()), indices: all, labels: taught }
      }
    } finally {
      for (const [name, reason] of loader.broken) this.#options.broken?.set(name, reason)
      await loader.close()
    }
  }

  /** One epoch; the mean loss of all heads, or undefined when it was interrupted. */
  async #train(file: FeatureFile | undefined, interrupted: () => boolean): Promise<number | undefined> {
    const { protocol, train, seed = 0 } = this.#options
    const lr = stepRate(protocol, this.#run.position)
    let [sum, count] = [0, 0]
    for await (const { pooled, indices, labels } of this.#batches(
      train,
      this.#labels.train,
      epochOrder(seed, this.#run.position, train.length),
      file,
      protocol.pipeline,
    )) {
      if (interrupted()) {
        for (const tensor of pooled) tensor.dispose()
        return undefined
      }
      const loss = this.#computing(() => {
        const target = Tensor.from(labels, [labels.length], 'i32', this.#backbone.device)
        return updateHeads(this.#heads, this.#sgd, pooled, target, lr)
      })
      for (const tensor of pooled) tensor.dispose()
      if (!Number.isFinite(loss))
        fail('NAN', `linear: the loss of epoch ${this.#run.position + 1} is not a number at learning rate ${lr}; try a lower --lr`)
      sum += loss * indices.length
      count += indices.length
    }
    return sum / count / this.#shapes.length
  }

  async #test(file: FeatureFile | undefined): Promise<{ top1: number; top5: number }[]> {
    const { val } = this.#options
    const right = this.#shapes.map(() => ({ top1: 0, top5: 0 }))
    const order = Int32Array.from(val.keys())
    for await (const { pooled, indices } of this.#batches(val, this.#labels.val, order, file, 'centre')) {
      this.#computing(() => {
        this.#heads.logits(pooled, evaluation).forEach((logits, h) => {
          const values = logits.data()
          Array.from(indices).forEach((image, i) => {
            const place = rankOf(values.subarray(i * this.#heads.classes, (i + 1) * this.#heads.classes), this.#labels.val[image]!)
            right[h]!.top1 += Number(place < 1)
            right[h]!.top5 += Number(place < 5)
          })
        })
      })
      for (const tensor of pooled) tensor.dispose()
    }
    return right.map(({ top1, top5 }) => ({ top1: top1 / val.length, top5: top5 / val.length }))
  }

  #report(loss: number, tested: { top1: number; top5: number }[]): void {
    const { protocol } = this.#options
    const row = Object.fromEntries(
      tested.flatMap(({ top1, top5 }, h) => [
        [`${protocol.heads[h]!}Top1`, top1],
        [`${protocol.heads[h]!}Top5`, top5],
      ]),
    )
    this.#run.log.metrics({ globalStep: this.#run.position, epoch: this.#run.position, loss, ...row })
    this.#run.log.progress(
      [
        `epoch ${this.#run.position}/${protocol.epochs}`,
        `loss ${loss.toFixed(3)}`,
        ...tested.map(({ top1 }, h) => `${protocol.heads[h]!} ${(100 * top1).toFixed(2)} %`),
      ],
      true,
    )
  }

  #results(): HeadResult[] {
    const rows = this.#run.rows()
    return this.#options.protocol.heads.map((head) => {
      const best = rows.reduce((a, b) => (b[`${head}Top1`]! > a[`${head}Top1`]! ? b : a))
      const last = rows.at(-1)!
      return { head, top1: last[`${head}Top1`]!, top5: last[`${head}Top5`]!, best: best[`${head}Top1`]!, bestEpoch: best.epoch! }
    })
  }
}

/** Images in batches, in their order. The last one may have fewer; those that are fewer than `least` join the batch before. */
export function batchesOf(order: Int32Array, batchSize: number, least: number): Int32Array[] {
  const [whole, left] = [Math.floor(order.length / batchSize), order.length % batchSize]
  const count = whole + Number(left > 0 && left >= Math.min(least, order.length))
  return Array.from({ length: count }, (_, b) => order.slice(b * batchSize, b + 1 === count ? order.length : (b + 1) * batchSize))
}

/** The shapes of the features of an image. */
export function shapesOf(backbone: Backbone, heads: readonly FeatureName[], imageSize: number): FeatureShape[] {
  return scope(() => {
    const features = pooledFeatures(backbone, Tensor.zeros([1, imageSize, imageSize, backbone.inputs]), heads)
    return features.map(({ shape, size }, i) => ({ name: heads[i]!, shape: shape.slice(1), size }))
  })
}
