/** A detector in training: what is built for it, and one update of it. */
import { type GradientReady, Tape } from '../autograd/tape.js'
import { SharedGradients } from '../distributed/buckets.js'
import { Group } from '../distributed/group.js'
import type { Detector } from '../detection/detector.js'
import { detectorOf, type DetectorShape } from '../detection/detectorShape.js'
import { publishedPyramid } from '../detection/maskRcnn.js'
import { proposalLimits } from '../detection/proposals.js'
import { type Chooser, type DetectionLosses, detectionLosses, lossParts, randomChooser } from '../detection/step.js'
import { type DetectionStyle, type DetectionStyleName, detectionStyles } from '../detection/styles.js'
import type { TrainingImage } from '../detection/targets.js'
import type { Backbone } from '../nn/backbone.js'
import { type NormMode, trainingAcross } from '../nn/layers.js'
import { isNorm, trainable } from '../nn/module.js'
import { add } from '../ops/arithmetic.js'
import { scale } from '../ops/elementwise.js'
import { Sgd } from '../optim/sgd.js'
import type { Random } from '../tensor/random.js'
import { Tensor, withDevice } from '../tensor/tensor.js'
import type { DetectionBatch } from './detectionBatches.js'
import { type DetectionProtocol, detectionTraining } from './detectionProtocols.js'

/** The parts of the loss that a form has. */
export type Losses = Partial<Record<(typeof lossParts)[number], number>>

/** What the detector of a protocol is built from. */
export const shapeOf = (
  { form, channels, frozenNorms: frozen = false }: Pick<DetectionProtocol, 'form' | 'channels' | 'frozenNorms'>,
  style: DetectionStyleName,
  rest: Pick<DetectorShape, 'classes' | 'anchors'>,
): DetectorShape => ({
  form,
  style,
  ...rest,
  ...(form === 'fpn'
    ? { pyramid: { ...publishedPyramid, channels, width: 4 * channels, levels: style, ...(frozen ? { frozen } : {}) } }
    : {}),
})

/**
 * A detector on a backbone, and its optimisers: of everything but norms, and of norms, whose weight decay may be another; none has those
 * that are frozen.
 */
export function buildDetector(
  backbone: Backbone,
  { random, ...shape }: DetectorShape & { random: Random },
): { model: Detector; optimizers: Sgd[] } {
  const { normDecay } = detectionStyles[shape.style]
  return withDevice(backbone.device, () => {
    const model = detectorOf({ random, dtype: 'f32', compute: backbone.compute }, backbone, shape)
    const state = model.state()
    const optimizers = [false, true].map((norms) => {
      const frozen = norms && shape.pyramid?.frozen === true ? 'backbone.' : undefined
      const own = [...state.parameters].filter(
        ([parameter]) => isNorm(state, parameter) === norms && (frozen === undefined || !parameter.startsWith(frozen)),
      )
      const { momentum, weightDecay } = detectionTraining
      return new Sgd(new Map(own), { momentum, weightDecay: norms ? normDecay : weightDecay }, state.copies)
    })
    return { model, optimizers }
  })
}

/**
 * How a batch, or what one of several processes has of it, is gone through: `random` draws the samples of an image, by its place there,
 * unless `chooser` says what they are.
 */
export interface DetectorPass {
  style: DetectionStyle
  /** Regions of an image that are trained on. */
  regions: number
  /** Images of a part; batch norms see these alone, and of processes that share the batch those of the same part. */
  imagesAtOnce: number
  random: (image: number) => Random
  chooser?: Chooser
}

/** The losses of the parts of a batch that are computed together, one after the other. */
export function* partsOfBatch(
  model: Detector,
  { values, shape, images }: DetectionBatch<TrainingImage>,
  { style, regions, imagesAtOnce, random, chooser }: DetectorPass,
): Generator<(mode: NormMode) => DetectionLosses> {
  const each = values.length / images.length
  for (let first = 0; first < images.length; first += imagesAtOnce) {
    const last = Math.min(images.length, first + imagesAtOnce)
    const x = Tensor.from(values.subarray(first * each, last * each), [last - first, ...shape.slice(1)])
    const from = (image: number): Chooser => randomChooser(random(first + image), model.options.classes, style, regions)
    const choose = chooser ?? choosingByImage(images.slice(first, last).map((_, image) => from(image)))
    yield (mode) => detectionLosses(model, x, images.slice(first, last), choose, mode, style, proposalLimits[model.form].train)
  }
}

/** Choosers of the images of a batch as one: what is drawn of an image does not depend on what it is computed together with. */
const choosingByImage = (of: readonly Chooser[]): Chooser => ({
  wanted: of[0]!.wanted,
  anchors: (anchors, image, index) => of[index]!.anchors(anchors, image, index),
  regions: (found, image, index) => of[index]!.regions(found, image, index),
  masks: (sample, image, index, side) => of[index]!.masks!(sample, image, index, side),
})

/**
 * One update by a batch within a scope. There is none where a loss is not a number. Of a batch that processes share it is the own part, and
 * losses are of all of it.
 */
export function updateDetector(
  model: Detector,
  optimizers: readonly Sgd[],
  batch: DetectionBatch<TrainingImage>,
  { rate, ...pass }: DetectorPass & { rate: number },
  shared = new SharedGradients(Group.single),
): Losses {
  const { losses, gradients } = shared.average(
    (ready) => differentiated(model, batch, pass, shared.group, ready),
    (made) => (made.gradients === undefined ? undefined : { gradients: made.gradients, observed: [] }),
  )
  if (gradients === undefined) return losses
  const byName = new Map([...model.state().parameters.keys()].map((key, i) => [key, gradients[i]!]))
  for (const optimizer of optimizers)
    optimizer.step(
      [...optimizer.parameters.keys()].map((key) => byName.get(key)!),
      rate,
    )
  return losses
}

/**
 * The losses of a batch that processes of `group` share, and the gradients of the own images, both means over the parts; none where a loss
 * is not a number. `ready` is told of the gradients while the last part has its backward pass.
 */
function differentiated(
  model: Detector,
  batch: DetectionBatch<TrainingImage>,
  pass: DetectorPass,
  group: Group,
  ready: GradientReady | undefined,
): { losses: Losses; gradients?: readonly Tensor[] } {
  const means: Losses = {}
  const gradients: Tensor[] = []
  const watched = trainable(model.state())
  const count = Math.ceil(batch.images.length / pass.imagesAtOnce)
  let left = count
  for (const lossesIn of partsOfBatch(model, batch, pass)) {
    const tape = new Tape().watch(watched)
    const { losses, share } = tape.record(() => {
      const made = lossesIn(trainingAcross(group))
      return { losses: made, share: scale(made.total, 1 / count) }
    })
    const parts = lossParts.filter((key) => losses[key] !== undefined)
    const values = group.sum(parts.map((key) => losses[key]!.item() / group.size))
    for (const [i, key] of parts.entries()) means[key] = (means[key] ?? 0) + values[i]! / count
    if (!Object.values(means).every(Number.isFinite)) return { losses: means }
    left -= 1
    const own = tape.backward(share, watched, undefined, (place, gradient, reached) => {
      const before = gradients[place]
      const sum = before === undefined ? gradient : add(before, gradient)
      before?.dispose()
      gradients[place] = sum
      if (left === 0) ready?.(place, sum, reached)
    })
    for (const [place, gradient] of own.entries()) if (gradient !== gradients[place]) gradient.dispose()
  }
  return { losses: means, gradients }
}
