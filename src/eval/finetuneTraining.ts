/** A classifier in fine-tuning: what is built for it, one update of it, and a test. */
import { SharedGradients } from '../distributed/buckets.js'
import { Group } from '../distributed/group.js'
import { Loader } from '../data/loader.js'
import { orderedBatches } from '../data/sampler.js'
import type { Item } from '../data/source.js'
import { noGrad, Tape } from '../autograd/tape.js'
import type { Backbone } from '../nn/backbone.js'
import { Classifier } from '../nn/classifier.js'
import { scale } from '../ops/elementwise.js'
import { evaluation, trainingAcross } from '../nn/layers.js'
import { isNorm, trainable } from '../nn/module.js'
import { crossEntropy } from '../ops/losses.js'
import { Sgd } from '../optim/sgd.js'
import { type ComputeOptions, withCompute } from '../tensor/compute.js'
import { fail } from '../tensor/errors.js'
import type { Random } from '../tensor/random.js'
import { scope, Tensor, withDevice } from '../tensor/tensor.js'
import { type ClassificationResult, ClassificationScores } from './classificationScores.js'
import { partOf, shareBroken } from './shares.js'

/** A classifier with what updates it: the backbone, and the last layer, whose learning rate may be another. */
export interface Finetuned {
  model: Classifier
  optimizers: { backbone: Sgd; head: Sgd }
}

/**
 * Images that a batch has at least: two where the last map of an image is one cell, of which a batch norm has no variance. Throws DATA for
 * fewer training images, and CONFIG for a smaller batch.
 */
export function leastImages(
  backbone: Backbone,
  { protocol: { batchSize }, train, imageSize }: { protocol: { batchSize: number }; train: readonly unknown[]; imageSize: number },
): number {
  const state = backbone.state()
  const hasNorms = [...state.parameters.keys()].some((name) => isNorm(state, name))
  if (!hasNorms || imageSize >= 2 * backbone.stride || cellsOf(backbone, imageSize) > 1) return 1
  const why = `the last map of an image of ${imageSize} px is one cell, and batch norm has no variance of one value`
  if (train.length < 2) fail('DATA', `finetune: there is ${train.length} training image: expected two or more, as ${why}`)
  if (batchSize < 2) fail('CONFIG', `finetune: the batch is of ${batchSize} image: expected two or more (--batch-size), as ${why}`)
  return 2
}

/** Cells of the last map of an image. */
const cellsOf = (backbone: Backbone, imageSize: number): number =>
  scope(() => {
    const x = Tensor.zeros([1, imageSize, imageSize, backbone.inputs], backbone.compute, backbone.device)
    const [, rows = 0, columns = 0] = noGrad(() => backbone.forward(x, evaluation)).shape
    return rows * columns
  })

/** A classifier on a backbone, which belongs to the caller, with a last layer that `random` draws. */
export function buildFinetuned(
  backbone: Backbone,
  { classes, weightDecay, random }: { classes: number; weightDecay: number; random: Random },
): Finetuned {
  return withDevice(backbone.device, () => {
    const model = new Classifier({ random, dtype: 'f32' }, backbone, classes)
    const { parameters, copies } = model.state()
    const of = (head: boolean): Sgd =>
      new Sgd(new Map([...parameters].filter(([name]) => name.startsWith('fc.') === head)), { momentum: 0.9, weightDecay }, copies)
    return { model, optimizers: { backbone: of(false), head: of(true) } }
  })
}

/** Frees all but the backbone. */
export function disposeFinetuned({ model, optimizers }: Finetuned): void {
  model.dispose()
  optimizers.backbone.dispose()
  optimizers.head.dispose()
}

/**
 * One update by the images x [N, H, W, inputs] and their classes, within a scope; the mean cross-entropy before it. Of a batch that
 * processes share they are the own ones, `weight` times as many as there are of each process on average.
 */
export function updateClassifier(
  { model, optimizers }: Finetuned,
  x: Tensor,
  labels: Int32Array,
  rates: { backbone: number; head: number },
  { shared, weight }: { shared: SharedGradients; weight: number } = { shared: new SharedGradients(Group.single), weight: 1 },
): number {
  const target = Tensor.from(labels, [labels.length], 'i32', model.backbone.device)
  const parts = (['backbone', 'head'] as const).map((name) => ({ name, watched: trainable(optimizers[name]) }))
  const watched = parts.flatMap((part) => part.watched)
  const { gradients, loss } = shared.average(
    (ready) => {
      const tape = new Tape().watch(watched)
      const made = tape.record(() => {
        const own = crossEntropy(model.logits(x, trainingAcross(shared.group)), target)
        return weight === 1 ? own : scale(own, weight)
      })
      return { gradients: tape.backward(made, watched, undefined, ready), loss: made }
    },
    (made) => ({ gradients: made.gradients, observed: [made.loss] }),
  )
  let from = 0
  for (const { name, watched: own } of parts) optimizers[name].step(gradients.slice(from, (from += own.length)), rates[name])
  return loss.item()
}

/** Images that are tested at a time. */
export const testBatchSize = 64

/** How images are read for a test. */
export interface TestOptions {
  imageSize: number
  batchSize?: number
  workers?: number
  maxBroken?: number
  /** A map that is filled with the images that could not be read, which count as black ones. */
  broken?: Map<string, string>
  /** Called after every batch. */
  progress?: (done: number) => void
}

/** Calls `body` with the logits [count, classes] of the central crops of `items` from `first` on, in order. */
export async function overLogits(
  model: Classifier,
  items: Item[],
  compute: ComputeOptions,
  { imageSize, batchSize = testBatchSize, workers = 0, maxBroken = 0.01, broken, progress }: TestOptions,
  body: (logits: Tensor, first: number, count: number) => void,
): Promise<void> {
  const { device } = model.backbone
  const loader = new Loader({ items, imageSize, batchSize, views: 'centre', device, workers, maxBroken })
  try {
    for await (const batch of loader.batches(orderedBatches(items.length, batchSize))) {
      const [x] = batch.views() as [Tensor]
      const first = batch.indices[0]!
      withDevice(device, () =>
        withCompute(compute, () => scope(() => noGrad(() => body(model.logits(x, evaluation), first, batch.indices.length)))),
      )
      x.dispose()
      progress?.(first + batch.indices.length)
    }
  } finally {
    for (const [name, reason] of loader.broken) broken?.set(name, reason)
    await loader.close()
  }
}

/** What a classifier reaches on labelled items, with running statistics. Of several processes each looks at its part of the items. */
export async function testClassifier(
  model: Classifier,
  items: Item[],
  labels: Int32Array,
  compute: ComputeOptions,
  options: TestOptions,
  group = Group.single,
): Promise<ClassificationResult> {
  const scores = new ClassificationScores(model.classes)
  const [own, ownLabels] = [partOf(items, group), partOf([...labels], group)]
  await overLogits(model, own, compute, options, (logits, first, count) => {
    const values = logits.data()
    for (let i = 0; i < count; ++i) scores.add(values.subarray(i * model.classes, (i + 1) * model.classes), ownLabels[first + i]!)
  })
  shareBroken(options.broken, group)
  return scores.result(group)
}
