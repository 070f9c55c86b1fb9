/** What a trained detector finds in an image. */
import { type Box, boxArea } from '../data/boxes.js'
import { noGrad } from '../autograd/tape.js'
import { evaluation } from '../nn/layers.js'
import { nms } from '../ops/nms.js'
import { softmax } from '../ops/softmax.js'
import { sigmoid } from '../ops/unary.js'
import { accumulator, scope, Tensor, withDevice } from '../tensor/tensor.js'
import { clipBox, decodeBox } from './coding.js'
import type { Detector, Regions } from './detector.js'
import { type ProposalLimits, proposals } from './proposals.js'
import type { DetectionStyle } from './styles.js'
import { ofClass } from './step.js'
import { boxAt, sampling } from './targets.js'

/** A found object: its class, its box in pixels of the original image, and its probability. */
export interface FoundObject {
  label: number
  box: Box
  score: number
  /** Probabilities [side * side] that places of the box belong to the object, row by row; of a detector with masks. */
  mask?: { side: number; values: Float64Array }
}

/** Which of the classified regions are kept: those of a probability above `score`, `most` in an image, without much overlap in a class. */
export interface TestRules {
  score: number
  overlap: number
  most: number
}
export const testRules: TestRules = { score: 0.05, overlap: 0.5, most: 100 }

/** An image as it enters the network, and as it was. */
export interface TestImage {
  height: number
  width: number
  original: { height: number; width: number }
}

/** The objects in images x [N, H, W, 3], for each the best first. */
export function detect(
  model: Detector,
  x: Tensor,
  images: readonly TestImage[],
  style: DetectionStyle,
  limits: ProposalLimits,
  rules: TestRules = testRules,
): FoundObject[][] {
  return scope(() =>
    noGrad(() => {
      const features = model.features(x, evaluation)
      const found = proposals(model.propose(features), model.anchors(features, x), images, style, limits)
      return detectInRegions(
        model,
        features,
        found.map(({ boxes }) => boxes),
        images,
        style,
        rules,
      )
    }),
  )
}

/** The regions [n, 4] of each image, of all images together. */
const together = (regions: readonly Float64Array[]): Regions => ({
  boxes: Float64Array.from(regions.flatMap((own) => [...own])),
  images: Int32Array.from(regions.flatMap((own, image) => new Array<number>(own.length / 4).fill(image))),
})

/** The objects in the regions [n, 4] of each image of the maps. */
export function detectInRegions(
  model: Detector,
  features: readonly Tensor[],
  regions: readonly Float64Array[],
  images: readonly TestImage[],
  style: DetectionStyle,
  rules: TestRules = testRules,
): FoundObject[][] {
  return scope(() => {
    const all = together(regions)
    if (all.images.length === 0) return images.map(() => [])
    const { logits, deltas } = model.classify(features, all, evaluation)
    const [probabilities, moves] = [softmax(logits.to(accumulator(logits.dtype))).data(), deltas.data()]
    const candidates = images.map(() => [] as Candidate[])
    all.images.forEach((image, row) => {
      const objects = objectsOf(boxAt(all.boxes, row), row, probabilities, moves, model.options.classes, images[image]!, style, rules.score)
      for (const object of objects) candidates[image]!.push(object)
    })
    const kept = candidates.map((own) => suppressed(own, rules))
    if (model.masks !== undefined) maskObjects(model, features, kept)
    return kept.map((own, image) =>
      own.map((each) => placed(each, images[image]!, style)).filter(({ box }) => style.rescale === 'before' || boxArea(box) > 0),
    )
  })
}

/** A found object whose box is that in which it is compared with others, and its box in the image as the network sees it. */
interface Candidate extends FoundObject {
  region: Box
}

function objectsOf(
  region: Box,
  row: number,
  probabilities: ArrayLike<number>,
  moves: { subarray(from: number, to: number): ArrayLike<number> },
  classes: number,
  image: TestImage,
  { clamp, rescale }: DetectionStyle,
  least: number,
): Candidate[] {
  const objects: Candidate[] = []
  for (let label = 0; label < classes; ++label) {
    const score = probabilities[row * (classes + 1) + label]!
    if (!(score > least)) continue
    const at = 4 * (row * classes + label)
    const box = clipBox(decodeBox(region, moves.subarray(at, at + 4), sampling.regions.weights, clamp), image)
    if (box.every(Number.isFinite)) objects.push({ label, score, region: box, box: rescale === 'before' ? toOriginal(box, image) : box })
  }
  return objects
}

/** The best candidates of an image after those are dropped that a better one of their class overlaps. */
function suppressed(candidates: readonly Candidate[], { overlap, most }: TestRules): Candidate[] {
  const count = candidates.length
  if (count === 0) return []
  return scope(() => {
    const boxes = Tensor.from(
      candidates.flatMap(({ box }) => [...box]),
      [count, 4],
      'f64',
      'cpu',
    )
    const scores = Tensor.from(
      candidates.map(({ score }) => score),
      [count],
      'f64',
      'cpu',
    )
    const group = Tensor.from(
      Int32Array.from(candidates, ({ label }) => label),
      [count],
      'i32',
      'cpu',
    )
    const { index } = withDevice('cpu', () => nms(boxes, scores, overlap, { group, limit: Math.min(most, count) }))
    return Array.from(index.data() as Int32Array)
      .filter((at) => at >= 0)
      .map((at) => candidates[at]!)
  })
}

/** Gives the objects of all images their masks: probabilities at places of their regions, in the map of their class. */
function maskObjects(model: Detector, features: readonly Tensor[], found: readonly Candidate[][]): void {
  const regions = together(found.map((own) => Float64Array.from(own.flatMap(({ region }) => [...region]))))
  if (regions.images.length === 0) return
  const labels = Int32Array.from(found.flatMap((own) => own.map(({ label }) => label)))
  const logits = ofClass(model.masks!(features, regions, evaluation), labels)
  const values = sigmoid(logits.to(accumulator(logits.dtype))).data()
  const [, side = 0] = logits.shape
  let at = 0
  for (const own of found)
    for (const object of own) object.mask = { side, values: Float64Array.from(values.subarray(at * side ** 2, ++at * side ** 2)) }
}

/** An object in its original image. */
function placed({ region: _, ...object }: Candidate, image: TestImage, { rescale }: DetectionStyle): FoundObject {
  return rescale === 'before' ? object : { ...object, box: clipBox(toOriginal(object.box, image), image.original) }
}

function toOriginal(box: Box, { height, width, original }: TestImage): Box {
  const [across, down] = [original.width / width, original.height / height]
  return [box[0] * across, box[1] * down, box[2] * across, box[3] * down]
}
