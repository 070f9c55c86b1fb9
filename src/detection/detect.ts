/** What a trained detector finds in an image. */
import { type Box, boxHeight, boxWidth } from '../data/boxes.js'
import { noGrad } from '../autograd/tape.js'
import { evaluation } from '../nn/layers.js'
import { nms } from '../ops/nms.js'
import { softmax } from '../ops/softmax.js'
import { accumulator, scope, Tensor, withDevice } from '../tensor/tensor.js'
import { gridAnchors } from './anchors.js'
import { clipBox, decodeBox } from './coding.js'
import type { FasterRcnn } from './fasterRcnn.js'
import { type ProposalLimits, proposals } from './proposals.js'
import type { DetectionStyle } from './styles.js'
import { boxAt, sampling } from './targets.js'

/** A found object: its class, its box in pixels of the original image, and its probability. */
export interface FoundObject {
  label: number
  box: Box
  score: number
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
  model: FasterRcnn,
  x: Tensor,
  images: readonly TestImage[],
  style: DetectionStyle,
  limits: ProposalLimits,
  rules: TestRules = testRules,
): FoundObject[][] {
  return scope(() =>
    noGrad(() => {
      const features = model.features(x, evaluation)
      const anchors = gridAnchors(model.options.anchors, features.shape[1]!, features.shape[2]!)
      const found = proposals(model.propose(features), anchors, images, style, limits)
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

/** The objects in the regions [n, 4] of each image of a map. */
export function detectInRegions(
  model: FasterRcnn,
  features: Tensor,
  regions: readonly Float64Array[],
  images: readonly TestImage[],
  style: DetectionStyle,
  rules: TestRules = testRules,
): FoundObject[][] {
  return scope(() => {
    const rows = regions.reduce((sum, boxes) => sum + boxes.length / 4, 0)
    if (rows === 0) return images.map(() => [])
    const boxes = Float64Array.from(regions.flatMap((own) => [...own]))
    const of = Int32Array.from(regions.flatMap((own, image) => new Array<number>(own.length / 4).fill(image)))
    const { logits, deltas } = model.classify(
      features,
      { boxes: Tensor.from(boxes, [rows, 4], accumulator(features.dtype)), images: Tensor.from(of, [rows], 'i32') },
      evaluation,
    )
    const [probabilities, moves] = [softmax(logits.to(accumulator(logits.dtype))).data(), deltas.data()]
    const candidates = images.map(() => [] as FoundObject[])
    of.forEach((image, row) => {
      const objects = objectsOf(boxAt(boxes, row), row, probabilities, moves, model.options.classes, images[image]!, style, rules.score)
      for (const object of objects) candidates[image]!.push(object)
    })
    return candidates.map((own, image) => suppressed(own, images[image]!, style, rules))
  })
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
): FoundObject[] {
  const objects: FoundObject[] = []
  for (let label = 0; label < classes; ++label) {
    const score = probabilities[row * (classes + 1) + label]!
    if (!(score > least)) continue
    const at = 4 * (row * classes + label)
    const box = clipBox(decodeBox(region, moves.subarray(at, at + 4), sampling.regions.weights, clamp), image)
    if (box.every(Number.isFinite)) objects.push({ label, score, box: rescale === 'before' ? toOriginal(box, image) : box })
  }
  return objects
}

/** The best candidates of an image after those are dropped that a better one of their class overlaps. */
function suppressed(
  candidates: readonly FoundObject[],
  image: TestImage,
  { rescale }: DetectionStyle,
  { overlap, most }: TestRules,
): FoundObject[] {
  const count = candidates.length
  if (count === 0) return []
  const chosen = scope(() => {
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
  if (rescale === 'before') return chosen
  return chosen
    .map((each) => ({ ...each, box: clipBox(toOriginal(each.box, image), image.original) }))
    .filter(({ box }) => boxWidth(box) > 0 && boxHeight(box) > 0)
}

function toOriginal(box: Box, { height, width, original }: TestImage): Box {
  const [across, down] = [original.width / width, original.height / height]
  return [box[0] * across, box[1] * down, box[2] * across, box[3] * down]
}
