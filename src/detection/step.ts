/** One training step of a two-stage detector, from a batch of images to the gradient's starting point. */
import { add } from '../ops/arithmetic.js'
import { binaryCrossEntropy, crossEntropy, smoothL1 } from '../ops/losses.js'
import { noGrad } from '../autograd/tape.js'
import type { NormMode } from '../nn/layers.js'
import { accumulator, type DType, scope, Tensor } from '../tensor/tensor.js'
import type { Random } from '../tensor/random.js'
import { gridAnchors } from './anchors.js'
import type { FasterRcnn, Proposed } from './fasterRcnn.js'
import { type ProposalLimits, proposals } from './proposals.js'
import type { DetectionStyle } from './styles.js'
import {
  type AnchorSample,
  anchorTargets,
  type DenseTargets,
  type RegionSample,
  regionTargets,
  sampleAnchors,
  sampleRegions,
  sampling,
  type TrainingImage,
} from './targets.js'

/** The parts of the loss, each a scalar. */
export interface DetectionLosses {
  total: Tensor
  /** Whether an anchor stands for an object, and where it is moved to. */
  anchorClass: Tensor
  anchorBox: Tensor
  /** Which class a region has, and where it is moved to. */
  regionClass: Tensor
  regionBox: Tensor
}

/** What is trained on; drawn at random where a caller does not say. */
export interface Chooser {
  /** Anchors that are wanted of each image, by which losses are divided in detectron2's style. */
  wanted: number
  anchors(anchors: Float64Array, image: TrainingImage, index: number): AnchorSample
  regions(proposals: Float64Array, image: TrainingImage, index: number): RegionSample
}

/** Draws what is trained on as a style does, of each image so many regions or the published number. */
export const randomChooser = (random: Random, classes: number, style: DetectionStyle, regions?: number): Chooser => ({
  wanted: sampling.anchors.count,
  anchors: (anchors, image) => sampleAnchors(random, anchors, image, style),
  regions: (found, image) => sampleRegions(random, found, image, classes, regions),
})

/** The losses of a batch x [N, H, W, 3], whose images may be smaller than it: what lies outside of them is zero. */
export function detectionLosses(
  model: FasterRcnn,
  x: Tensor,
  images: readonly TrainingImage[],
  choose: Chooser,
  mode: NormMode,
  style: DetectionStyle,
  limits: ProposalLimits,
): DetectionLosses {
  return scope(() => {
    const { classes } = model.options
    const features = model.features(x, mode)

    // Which anchors hold something, and where it lies exactly.
    const proposed = model.propose(features)
    const anchors = gridAnchors(model.options.anchors, features.shape[1]!, features.shape[2]!)
    const anchorSamples = images.map((image, i) => choose.anchors(anchors, image, i))
    const [anchorClass, anchorBox] = anchorLosses(proposed, anchorTargets(anchors, images, anchorSamples), anchorSamples, choose, style)

    // What the best of them hold: they and the objects themselves are looked at again, as constants.
    const found = noGrad(() => proposals(proposed, anchors, images, style, limits))
    const regionSamples = images.map((image, i) => choose.regions(found[i]!.boxes, image, i))
    const [regionClass, regionBox] = regionLosses(model, features, regionSamples, mode, classes)

    return { total: add(add(anchorClass, anchorBox), add(regionClass, regionBox)), anchorClass, anchorBox, regionClass, regionBox }
  })
}

function anchorLosses(
  { logits, deltas }: Proposed,
  targets: DenseTargets,
  samples: readonly AnchorSample[],
  { wanted }: Chooser,
  style: DetectionStyle,
): [Tensor, Tensor] {
  const drawn = samples.reduce(
    (total, { indices, positives }) => total + Math.max(positives, 1) + Math.max(indices.length - positives, 1),
    0,
  )
  const divisor = style.anchorDivisor === 'constant' ? wanted * samples.length : drawn
  const like = (values: Float64Array, dtype: DType): Tensor => Tensor.from(values, logits.shape, dtype)
  const [object, sampled] = [like(targets.object, logits.dtype), like(targets.sampled, accumulator(logits.dtype))]
  return [binaryCrossEntropy(logits, object, { weight: sampled, divisor }), boxLoss(deltas, targets, divisor)]
}

function regionLosses(
  model: FasterRcnn,
  features: Tensor,
  samples: readonly RegionSample[],
  mode: NormMode,
  classes: number,
): [Tensor, Tensor] {
  const count = samples.reduce((total, { labels }) => total + labels.length, 0)
  // Neither proposals nor objects: there is nothing to learn from.
  if (count === 0) return [Tensor.zeros([], accumulator(features.dtype)), Tensor.zeros([], accumulator(features.dtype))]
  const boxes = Tensor.from(Float64Array.from(samples.flatMap((each) => [...each.boxes])), [count, 4], accumulator(features.dtype))
  const images = Int32Array.from(samples.flatMap(({ labels }, image) => Array.from(labels, () => image)))
  const labels = Int32Array.from(samples.flatMap((each) => [...each.labels]))
  const { logits, deltas } = model.classify(features, { boxes, images: Tensor.from(images, [count], 'i32') }, mode)
  return [
    crossEntropy(logits, Tensor.from(labels, [count], 'i32')),
    // Over all regions, also those of the background.
    boxLoss(deltas, regionTargets(samples, classes), count),
  ]
}

/** The distances along each axis between deltas and their targets, where these are taught, over `divisor`. */
function boxLoss(deltas: Tensor, targets: Pick<DenseTargets, 'deltas' | 'taught'>, divisor: number): Tensor {
  const like = (values: Float64Array, dtype: DType): Tensor => Tensor.from(values, deltas.shape, dtype)
  const weight = like(targets.taught, accumulator(deltas.dtype))
  return smoothL1(deltas, like(targets.deltas, deltas.dtype), { beta: 0, weight, divisor })
}
