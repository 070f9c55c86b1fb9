/** A detector in training: what is built for it, and one update of it. */
import { publishedAnchors } from '../detection/anchors.js'
import { Tape } from '../autograd/tape.js'
import { FasterRcnn } from '../detection/fasterRcnn.js'
import { proposalLimits } from '../detection/proposals.js'
import { type DetectionLosses, detectionLosses, randomChooser } from '../detection/step.js'
import { type DetectionStyle, type DetectionStyleName, detectionStyles } from '../detection/styles.js'
import type { TrainingImage } from '../detection/targets.js'
import type { Backbone } from '../nn/backbone.js'
import { type NormMode, training } from '../nn/layers.js'
import { isNorm } from '../nn/module.js'
import { add } from '../ops/arithmetic.js'
import { scale } from '../ops/elementwise.js'
import { Sgd } from '../optim/sgd.js'
import type { Random } from '../tensor/random.js'
import { Tensor, withDevice } from '../tensor/tensor.js'
import type { DetectionBatch } from './detectionBatches.js'
import { detectionTraining } from './detectionProtocols.js'

/** The parts of the loss. */
export const parts = ['anchorClass', 'anchorBox', 'regionClass', 'regionBox'] as const
export type Losses = Record<(typeof parts)[number], number>

/** A detector on a backbone, and its optimisers: of everything but norms, and of norms, whose weight decay may be another. */
export function buildDetector(
  backbone: Backbone,
  { classes, style, anchors, random }: { classes: number; style: DetectionStyleName; anchors: readonly number[]; random: Random },
): { model: FasterRcnn; optimizers: Sgd[] } {
  const { anchorOrder, normDecay } = detectionStyles[style]
  return withDevice(backbone.device, () => {
    const { stride } = backbone.maps.at(-2)!
    const cell = { sizes: anchors, ratios: publishedAnchors.ratios, stride, order: anchorOrder }
    const model = new FasterRcnn({ random, dtype: 'f32' }, backbone, { classes, anchors: cell })
    const state = model.state()
    const optimizers = [false, true].map((norms) => {
      const own = [...state.parameters].filter(([parameter]) => isNorm(state, parameter) === norms)
      const { momentum, weightDecay } = detectionTraining
      return new Sgd(new Map(own), { momentum, weightDecay: norms ? normDecay : weightDecay })
    })
    return { model, optimizers }
  })
}

/** How a batch is gone through: `random` draws the samples of a part. */
export interface DetectorPass {
  style: DetectionStyle
  /** Regions of an image that are trained on. */
  regions: number
  /** Images of a part; batch norms see these alone. */
  imagesAtOnce: number
  random: (part: number) => Random
}

/** The losses of the parts of a batch that are computed together, one after the other. */
export function* partsOfBatch(
  model: FasterRcnn,
  { values, shape, images }: DetectionBatch<TrainingImage>,
  { style, regions, imagesAtOnce, random }: DetectorPass,
): Generator<(mode: NormMode) => DetectionLosses> {
  const each = values.length / images.length
  for (let first = 0, part = 0; first < images.length; first += imagesAtOnce, ++part) {
    const last = Math.min(images.length, first + imagesAtOnce)
    const x = Tensor.from(values.subarray(first * each, last * each), [last - first, ...shape.slice(1)])
    const chooser = randomChooser(random(part), model.options.classes, style, regions)
    yield (mode) => detectionLosses(model, x, images.slice(first, last), chooser, mode, style, proposalLimits.train)
  }
}

/** One update by a batch within a scope. There is none where a loss is not a number. */
export function updateDetector(
  model: FasterRcnn,
  optimizers: readonly Sgd[],
  batch: DetectionBatch<TrainingImage>,
  { rate, ...pass }: DetectorPass & { rate: number },
): Losses {
  const sums: Losses = { anchorClass: 0, anchorBox: 0, regionClass: 0, regionBox: 0 }
  const parameters = model.state().parameters
  const count = Math.ceil(batch.images.length / pass.imagesAtOnce)
  let gradients: Tensor[] | undefined
  for (const lossesIn of partsOfBatch(model, batch, pass)) {
    const tape = new Tape().watch([...parameters.values()])
    const { losses, share } = tape.record(() => {
      const made = lossesIn(training)
      return { losses: made, share: scale(made.total, 1 / count) }
    })
    for (const key of parts) sums[key] += losses[key].item() / count
    if (!parts.every((key) => Number.isFinite(sums[key]))) return sums
    const own = tape.backward(share, [...parameters.values()])
    gradients = gradients === undefined ? own : gradients.map((sum, i) => add(sum, own[i]!))
  }
  const byName = new Map([...parameters.keys()].map((key, i) => [key, gradients![i]!]))
  for (const optimizer of optimizers)
    optimizer.step(
      [...optimizer.parameters.keys()].map((key) => byName.get(key)!),
      rate,
    )
  return sums
}
