/** A detector in training: what is built for it, and one update of it. */
import { Tape } from '../autograd/tape.js'
import type { Detector } from '../detection/detector.js'
import { detectorOf, type DetectorShape } from '../detection/detectorShape.js'
import { publishedPyramid } from '../detection/maskRcnn.js'
import { proposalLimits } from '../detection/proposals.js'
import { type Chooser, type DetectionLosses, detectionLosses, lossParts, randomChooser } from '../detection/step.js'
import { type DetectionStyle, type DetectionStyleName, detectionStyles } from '../detection/styles.js'
import type { TrainingImage } from '../detection/targets.js'
import type { Backbone } from '../nn/backbone.js'
import { type NormMode, training } from '../nn/layers.js'
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

/** How a batch is gone through: `random` draws the samples of a part, unless `chooser` says what they are. */
export interface DetectorPass {
  style: DetectionStyle
  /** Regions of an image that are trained on. */
  regions: number
  /** Images of a part; batch norms see these alone. */
  imagesAtOnce: number
  random: (part: number) => Random
  chooser?: Chooser
}

/** The losses of the parts of a batch that are computed together, one after the other. */
export function* partsOfBatch(
  model: Detector,
  { values, shape, images }: DetectionBatch<TrainingImage>,
  { style, regions, imagesAtOnce, random, chooser }: DetectorPass,
): Generator<(mode: NormMode) => DetectionLosses> {
  const each = values.length / images.length
  for (let first = 0, part = 0; first < images.length; first += imagesAtOnce, ++part) {
    const last = Math.min(images.length, first + imagesAtOnce)
    const x = Tensor.from(values.subarray(first * each, last * each), [last - first, ...shape.slice(1)])
    const choose = chooser ?? randomChooser(random(part), model.options.classes, style, regions)
    yield (mode) => detectionLosses(model, x, images.slice(first, last), choose, mode, style, proposalLimits[model.form].train)
  }
}

/** One update by a batch within a scope. There is none where a loss is not a number. */
export function updateDetector(
  model: Detector,
  optimizers: readonly Sgd[],
  batch: DetectionBatch<TrainingImage>,
  { rate, ...pass }: DetectorPass & { rate: number },
): Losses {
  const sums: Losses = {}
  const state = model.state()
  const watched = trainable(state)
  const count = Math.ceil(batch.images.length / pass.imagesAtOnce)
  let gradients: Tensor[] | undefined
  for (const lossesIn of partsOfBatch(model, batch, pass)) {
    const tape = new Tape().watch(watched)
    const { losses, share } = tape.record(() => {
      const made = lossesIn(training)
      return { losses: made, share: scale(made.total, 1 / count) }
    })
    for (const key of lossParts) if (losses[key] !== undefined) sums[key] = (sums[key] ?? 0) + losses[key].item() / count
    if (!Object.values(sums).every(Number.isFinite)) return sums
    const own = tape.backward(share, watched)
    gradients = gradients === undefined ? own : gradients.map((sum, i) => add(sum, own[i]!))
  }
  const byName = new Map([...state.parameters.keys()].map((key, i) => [key, gradients![i]!]))
  for (const optimizer of optimizers)
    optimizer.step(
      [...optimizer.parameters.keys()].map((key) => byName.get(key)!),
      rate,
    )
  return sums
}
