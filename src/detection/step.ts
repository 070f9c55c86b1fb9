/** One training step of a two-stage detector, from a batch of images to the gradient's starting point. */
import { add } from '../ops/arithmetic.js'
import { reshape, scale } from '../ops/elementwise.js'
import { gather } from '../ops/gather.js'
import { binaryCrossEntropy, crossEntropy, smoothL1 } from '../ops/losses.js'
import { noGrad } from '../autograd/tape.js'
import type { NormMode } from '../nn/layers.js'
import { accumulator, type DType, scope, Tensor } from '../tensor/tensor.js'
import { fail } from '../tensor/errors.js'
import type { Random } from '../tensor/random.js'
import { type Detector, joined, type Proposed, type Regions } from './detector.js'
import { maskTargets } from './maskTargets.js'
import { type ProposalLimits, proposals } from './proposals.js'
import type { DetectionStyle } from './styles.js'
import {
  type AnchorSample,
  type AnchorTargets,
  anchorTargets,
  type BoxTargets,
  type RegionSample,
  regionTargets,
  sampleAnchors,
  sampleRegions,
  sampling,
  sumsOfGroups,
  type TrainingImage,
} from './targets.js'

/** The parts of the loss by name. */
export const lossParts = ['anchorClass', 'anchorBox', 'regionClass', 'regionBox', 'mask'] as const

/** The parts of the loss, each a scalar. */
export interface DetectionLosses {
  total: Tensor
  /** Whether an anchor stands for an object, and where it is moved to. */
  anchorClass: Tensor
  anchorBox: Tensor
  /** Which class a region has, and where it is moved to. */
  regionClass: Tensor
  regionBox: Tensor
  /** Which places of a region belong to its object; absent in a form without masks. */
  mask?: Tensor
}

/** What is trained on; drawn at random where a caller does not say. */
export interface Chooser {
  /** Anchors that are wanted of each image, by which losses are divided in detectron2's style. */
  wanted: number
  anchors(anchors: Float64Array, image: TrainingImage, index: number): AnchorSample
  regions(proposals: Float64Array, image: TrainingImage, index: number): RegionSample
  /** Masks [P, S, S] of 0 and 1 of the objects of a sample, in its regions; asked for in a form with masks. */
  masks?(sample: RegionSample, image: TrainingImage, index: number, side: number): ArrayLike<number>
}

/** Draws what is trained on as a style does, of each image so many regions or the published number. */
export const randomChooser = (random: Random, classes: number, style: DetectionStyle, regions?: number): Chooser => ({
  wanted: sampling.anchors.count,
  anchors: (anchors, image) => sampleAnchors(random, anchors, image, style),
  regions: (found, image) => sampleRegions(random, found, image, classes, style, regions),
  masks: ({ boxes, objects }, image, index, side) => {
    const without = (): never => fail('DATA', `detection: an object of image ${index} of the batch has no mask to train a mask head on`)
    const masks = Array.from(objects, (object) => image.objects[object]!.mask ?? without())
    return maskTargets(boxes, masks, side)
  },
})

/**
 * The losses of a batch x [N, H, W, 3], whose images may be smaller than it: what lies outside of them is zero. Where processes share the
 * batch (`across` of the mode) their mean is the loss of all of it; each has whole groups of the style's images, with objects in them.
 */
export function detectionLosses(
  model: Detector,
  x: Tensor,
  images: readonly TrainingImage[],
  choose: Chooser,
  mode: NormMode,
  style: DetectionStyle,
  limits: ProposalLimits,
): DetectionLosses {
  return scope(() => {
    const features = model.features(x, mode)

    // Which anchors hold something, and where it lies exactly.
    const proposed = model.propose(features)
    const ofMaps = model.anchors(features, x)
    const anchors = ofMaps.length === 1 ? ofMaps[0]! : Float64Array.from(ofMaps.flatMap((own) => [...own]))
    const anchorSamples = images.map((image, i) => choose.anchors(anchors, image, i))
    const [anchorClass, anchorBox] = anchorLosses(
      joined(proposed),
      anchorTargets(anchors, images, anchorSamples, choose.wanted, style),
      style,
    )

    // What the best of them hold: they and the objects themselves are looked at again, as constants.
    const found = noGrad(() => proposals(proposed, ofMaps, images, style, limits))
    const samples = images.map((image, i) => choose.regions(found[i]!.boxes, image, i))
    const [regionClass, regionBox] = regionLosses(model, features, samples, images, mode, style).map((loss) =>
      scale(loss, shareOfRegions(samples, mode)),
    ) as [Tensor, Tensor]
    const losses = { anchorClass, anchorBox, regionClass, regionBox }
    const total = add(add(anchorClass, anchorBox), add(regionClass, regionBox))
    if (model.masks === undefined) return { total, ...losses }
    const mask = maskLoss(model, features, samples, images, choose, mode, style)
    return { total: add(total, mask), ...losses, mask }
  })
}

/** How many regions there are of the batch's mean number in a process, where processes share it: 1 where they are equally many. */
function shareOfRegions(samples: readonly RegionSample[], mode: NormMode): number {
  const { across } = mode.train ? mode : {}
  if (across === undefined || across.size === 1) return 1
  const own = samples.reduce((sum, { labels }) => sum + labels.length, 0)
  return (own * across.size) / Math.max(1, across.sum([own])[0]!)
}

const zero = (like: Tensor): Tensor => Tensor.zeros([], accumulator(like.dtype))

function anchorLosses(
  { logits, deltas }: Proposed,
  { index, object, weight, boxes }: AnchorTargets,
  style: DetectionStyle,
): [Tensor, Tensor] {
  const rows = Tensor.from(index, [index.length], 'i32')
  const sampled = gather(reshape(logits, [logits.size]), rows)
  const like = (values: Float64Array, dtype: DType): Tensor => Tensor.from(values, [index.length], dtype)
  const weights = like(weight, accumulator(logits.dtype))
  return [binaryCrossEntropy(sampled, like(object, logits.dtype), { weight: weights }), boxLoss(deltas, boxes, style)]
}

/** Regions of a batch, `of` each image's sample. */
function regionsOf(samples: readonly RegionSample[], of: (sample: RegionSample) => number): Regions {
  return {
    boxes: Float64Array.from(samples.flatMap((each) => [...each.boxes.subarray(0, 4 * of(each))])),
    images: Int32Array.from(samples.flatMap((each, image) => new Array<number>(of(each)).fill(image))),
  }
}

function regionLosses(
  model: Detector,
  features: readonly Tensor[],
  samples: readonly RegionSample[],
  images: readonly TrainingImage[],
  mode: NormMode,
  style: DetectionStyle,
): [Tensor, Tensor] {
  const regions = regionsOf(samples, ({ labels }) => labels.length)
  const count = regions.images.length
  // Neither proposals nor objects: there is nothing to learn from.
  if (count === 0) return [zero(features[0]!), zero(features[0]!)]
  const labels = Int32Array.from(samples.flatMap((each) => [...each.labels]))
  const { logits, deltas } = model.classify(features, regions, mode)
  return [
    crossEntropy(logits, Tensor.from(labels, [count], 'i32')),
    boxLoss(deltas, regionTargets(images, samples, model.options.classes), style),
  ]
}

/** The distances along each axis between deltas [..., 4] and their targets. */
function boxLoss(deltas: Tensor, { index, deltas: targets, weight }: BoxTargets, { boxBeta: beta }: DetectionStyle): Tensor {
  const count = index.length
  if (count === 0) return zero(deltas)
  const taught = gather(reshape(deltas, [deltas.size / 4, 4]), Tensor.from(index, [count], 'i32'))
  const weights = Tensor.from(weight, [count], accumulator(deltas.dtype))
  return smoothL1(taught, Tensor.from(targets, [count, 4], deltas.dtype), { beta, weight: weights })
}

/** Cross-entropy of the places of the regions of objects, in the map of the object's class, each group of images by its own mean. */
function maskLoss(
  model: Detector,
  features: readonly Tensor[],
  samples: readonly RegionSample[],
  images: readonly TrainingImage[],
  choose: Chooser,
  mode: NormMode,
  { groupOf }: DetectionStyle,
): Tensor {
  const regions = regionsOf(samples, ({ objects }) => objects.length)
  const count = regions.images.length
  if (count === 0) return zero(features[0]!)
  const logits = model.masks!(features, regions, mode)
  const [, height = 0, width = 0] = logits.shape
  const labels = Int32Array.from(samples.flatMap((each) => [...each.labels.subarray(0, each.objects.length)]))
  const own = ofClass(logits, labels)
  const groups = Math.ceil(images.length / groupOf)
  const inGroup = sumsOfGroups(images.length, groupOf, (image) => samples[image]!.objects.length)
  const weight = Float64Array.from(regions.images, (image) => 1 / (groups * inGroup[image]! * height * width))
  const targets = new Float64Array(count * height * width)
  let at = 0
  samples.forEach((sample, i) => {
    if (sample.objects.length === 0) return
    const masks = choose.masks!(sample, images[i]!, i, height)
    targets.set(masks, at)
    at += masks.length
  })
  return binaryCrossEntropy(own, Tensor.from(targets, own.shape, own.dtype), {
    weight: Tensor.from(weight, [count], accumulator(logits.dtype)),
  })
}

/** Of logits [R, S, S, classes] the map [R, S, S] of the class of each region. */
export function ofClass(logits: Tensor, labels: Int32Array): Tensor {
  const [count = 0, height = 0, width = 0, classes = 0] = logits.shape
  const picks = Tensor.from(labels, [count, 1], 'i32')
  const chosen = gather(reshape(logits, [count, height * width, classes]), picks, { axis: 2, batchAxes: 1 })
  return reshape(chosen, [count, height, width])
}
