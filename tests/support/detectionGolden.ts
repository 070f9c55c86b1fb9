/**
 * A golden step of a detector of the form C4: the forward pass, both code bases' losses, gradients, one update and what is found then, as
 * PyTorch computed it in float64 with fixed samples. Architecture and numbers are read off the shapes in the file.
 */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'

import { Tape } from '../../src/autograd/tape.js'
import { gridAnchors } from '../../src/detection/anchors.js'
import { assign } from '../../src/detection/assign.js'
import { detectInRegions, type FoundObject } from '../../src/detection/detect.js'
import { FasterRcnn, type Regions } from '../../src/detection/fasterRcnn.js'
import { proposalLimits, proposals } from '../../src/detection/proposals.js'
import { type DetectionLosses, detectionLosses } from '../../src/detection/step.js'
import { type DetectionStyle, detectionStyles } from '../../src/detection/styles.js'
import { boxAt, type RegionSample, type TrainingImage } from '../../src/detection/targets.js'
import { evaluation, training } from '../../src/nn/layers.js'
import { allTensors, disposeState, isNorm, refreshCopies } from '../../src/nn/module.js'
import { ResNet } from '../../src/nn/resnet.js'
import { Sgd } from '../../src/optim/sgd.js'
import { fail } from '../../src/tensor/errors.js'
import { packageRoot } from '../../src/tensor/native.js'
import { Random } from '../../src/tensor/random.js'
import { accumulator, type FloatDType, scope, Tensor, withDevice } from '../../src/tensor/tensor.js'
import { loadStored, toStored } from '../../src/weights/layout.js'
import { type StoredTensor, storedValues, type TensorFile } from '../../src/weights/safetensors.js'
import { runPython } from './suite.js'
import { channelsFirst, channelsLast, distance, type GoldenRow, relativeError } from './golden.js'

/** Names of a file under ours, which are mmdetection's. */
const renamed = (name: string): string =>
  name
    .replace(/^res5\./, 'roi_head.shared_head.layer4.')
    .replace(/^norm\./, 'roi_head.shared_head.norm.')
    .replace(/^rpn\.(conv|cls|reg)\./, 'rpn_head.rpn_$1.')
    .replace(/^(cls|reg)\./, 'roi_head.bbox_head.fc_$1.')

/** Writes into a folder a golden file of another small detector, which PyTorch draws and computes by a seed. */
export function writeGoldenDetector(folder: string, seed: number): void {
  const program = readFileSync(join(packageRoot, 'tests', 'detection', 'goldenDetector.py'), 'utf8')
  runPython(program, [join(folder, `seed${seed}.safetensors`), String(seed)])
}

/** Whether a file is of a detector, and of which form. */
export const detectorForm = ({ tensors }: TensorFile): 'c4' | 'fpn' | undefined =>
  tensors.has('w0.res5.0.conv1.weight') ? 'c4' : tensors.has('in.gt_boxes.0') ? 'fpn' : undefined

/** f32 master weights with bf16 activations and copies are `bf16`. */
type Precision = 'f64' | 'f32' | 'bf16'

/** Images and samples of the file, and the network with its first weights, on the current device. */
class GoldenDetector {
  readonly images: TrainingImage[]
  readonly model: FasterRcnn
  readonly x: Tensor

  constructor(
    readonly golden: TensorFile,
    readonly precision: Precision,
  ) {
    const { shape } = this.stored('in.image')
    const [count, , height, width] = shape as [number, number, number, number]
    this.images = Array.from({ length: count }, (_, i) => ({
      height,
      width,
      objects: Array.from(this.values(`in.gt_labels.${i}`), (label, k) => ({ label, box: boxAt(this.values(`in.gt_boxes.${i}`), k) })),
    }))
    const dtype: FloatDType = precision === 'f64' ? 'f64' : 'f32'
    const build = { random: new Random(0), dtype, compute: precision }
    const blocks = [1, 2, 3].map((stage) => this.count(`w0.backbone.layer${stage}.`)).concat(this.count('w0.res5.'))
    const backbone = new ResNet(build, { depth: 50, baseChannels: this.stored('w0.backbone.conv1.weight').shape[0]!, blocks })
    const cell = this.anchorsOf()
    this.model = new FasterRcnn(build, backbone, { classes: this.stored('w0.cls.bias').shape[0]! - 1, anchors: cell, regionSize: 14 })
    this.load('w0.')
    this.x = scope(() => channelsLast(this.stored('in.image'), dtype)).keep()
  }

  stored = (key: string): StoredTensor => this.golden.tensors.get(key) ?? fail('FORMAT', `golden: the tensor ${key} is missing`)
  values = (key: string): Float64Array => storedValues(this.stored(key))
  has = (key: string): boolean => this.golden.tensors.has(key)

  /** Blocks of a stage whose names begin with `prefix`. */
  private count(prefix: string): number {
    return new Set(
      [...this.golden.tensors.keys()].filter((key) => key.startsWith(prefix)).map((key) => key.slice(prefix.length).split('.')[0]),
    ).size
  }

  /** Convolutions in a row: three in a block, and the stem. */
  get convolutions(): number {
    return 1 + 3 * [1, 2, 3].reduce((sum, stage) => sum + this.count(`w0.backbone.layer${stage}.`), this.count('w0.res5.'))
  }

  /** What is found in image i after the step. */
  found(i: number): FoundObject[] {
    const [labels, boxes] = [this.values(`det.classes.${i}`), this.values(`det.boxes.${i}`)]
    return Array.from(this.values(`det.scores.${i}`), (score, k) => ({ label: labels[k]!, score, box: boxAt(boxes, k) }))
  }

  /** Sizes from the first cell's square anchors; three ratios of each. */
  private anchorsOf(): { sizes: number[]; ratios: number[]; stride: number; order: 'size' } {
    const anchors = this.values('in.anchors')
    const each = this.stored('w0.rpn.cls.bias').shape[0]!
    const sizes = Array.from({ length: each / 3 }, (_, s) => anchors[4 * (3 * s + 1) + 2]! - anchors[4 * (3 * s + 1)]!)
    return { sizes, ratios: [0.5, 1, 2], stride: anchors[4 * each]! - anchors[0]!, order: 'size' }
  }

  *tensors(): Generator<[string, Tensor, string]> {
    const own = new Map(allTensors(this.model.state()))
    for (const key of this.golden.tensors.keys()) {
      if (!key.startsWith('w0.')) continue
      const name = renamed(key.slice(3))
      yield [name, own.get(name) ?? fail('FORMAT', `golden: the model has no ${name}`), key.slice(3)]
    }
  }

  load(prefix: string): void {
    for (const [name, tensor, key] of this.tensors()) loadStored('golden', name, tensor, this.stored(prefix + key))
    refreshCopies(this.model.state())
  }

  dispose(): void {
    disposeState(this.model.state())
    this.x.dispose()
  }

  losses(style: DetectionStyle): DetectionLosses {
    return detectionLosses(this.model, this.x, this.images, this.chooser(), training, style, { before: 6000, after: 50, overlap: 0.7 })
  }

  /** The samples of the file, whose anchors are 512 of an image where the published number is 256. */
  private chooser(): Parameters<typeof detectionLosses>[3] {
    return {
      wanted: 512,
      anchors: (anchors, image, i) => {
        const { matched } = assign(
          anchors,
          image.objects.map(({ box }) => box),
          detectionStyles.detectron2.anchors,
        )
        const indices = Int32Array.from(this.values(`in.rpn.sample.${i}`))
        const positives = this.values(`in.rpn.num_pos.${i}`)[0]!
        return { indices, positives, objects: indices.subarray(0, positives).map((at) => matched[at]!) }
      },
      regions: (_, image, i) => this.regions(image, i),
    }
  }

  /** The sampled regions of all images. */
  sampledRegions(): Regions {
    const each = this.images.map((image, i) => this.regions(image, i).boxes)
    const dtype = accumulator(this.precision)
    const boxes = each.flatMap((own) => [...own])
    const of = each.flatMap((own, image) => new Array<number>(own.length / 4).fill(image))
    return { boxes: Tensor.from(boxes, [of.length, 4], dtype), images: Tensor.from(of, [of.length], 'i32') }
  }

  /** The sampled regions of image i. */
  regions(image: TrainingImage, i: number): RegionSample {
    const candidates = Float64Array.from([...this.values(`in.proposals.${i}`), ...image.objects.flatMap(({ box }) => [...box])])
    const labels = Int32Array.from(this.values(`in.roi.label.${i}`))
    const objects = this.values(`in.roi.gt.${i}`)
    const boxes = Array.from(this.values(`in.roi.sample.${i}`), (at) => boxAt(candidates, at))
    return {
      boxes: Float64Array.from(boxes.flatMap((box) => [...box])),
      labels,
      targets: Array.from(labels, (label, k) => (label < this.model.options.classes ? image.objects[objects[k]!]!.box : undefined)),
    }
  }
}

/** Relative errors that are allowed. */
interface Bounds {
  /** Of what the network says: of the largest magnitude, in mixed precision of the root mean square. */
  values: number
  losses: number
  /** Of all gradients together; absent where they say nothing. */
  gradients?: number
  /** Share of the found objects that may be others: at a threshold rounding decides. */
  others: number
}

/**
 * In f64 sums differ by their order alone. Networks of a few channels over a few positions amplify rounding. In f32 a ReLU, or the sign of
 * an L1 loss, within rounding of zero that falls the other way changes a whole gradient: by up to 4e-2 for single seeds of
 * goldenDetector.py, on the CPU and on simt alike. In mixed precision each of `depth` convolutions, with its batch norm, rounds to 2^-9;
 * PyTorch with every activation and weight rounded to bf16 differs by 1.5 to 2.6 times 2^-9 a convolution (eight seeds), and gradients say
 * nothing (docs/decisions.md). Losses are means over many such values, whose errors are of either sign.
 */
const boundsOf = (precision: Precision, depth: number): Bounds =>
  precision === 'f64'
    ? { values: 1e-8, losses: 1e-8, gradients: 1e-8, others: 0 }
    : precision === 'f32'
      ? { values: 2e-4, losses: 2e-4, gradients: 0.1, others: 0.1 }
      : { values: 4 * 2 ** -9 * depth, losses: 2 * 2 ** -9 * Math.sqrt(2 * depth), others: 0.3 }

/** The rows of a golden file of the form C4: in f64 and f32 on the CPU, on a device in f32 and in mixed precision. */
export function* detectionRows(file: string, golden: TensorFile, device?: string): Generator<GoldenRow> {
  for (const precision of device === undefined ? (['f64', 'f32'] as const) : (['f32', 'bf16'] as const))
    yield* withDevice(device ?? 'cpu', () => {
      const detector = new GoldenDetector(golden, precision)
      const row = (name: string, error: number, tolerance: number): GoldenRow => ({
        name: `${file} ${name}`,
        dtype: precision,
        error,
        tolerance,
      })
      try {
        return scope(() => [...rowsOf(detector, row, device)])
      } finally {
        detector.dispose()
      }
    })
}

function* rowsOf(
  detector: GoldenDetector,
  row: (name: string, error: number, tolerance: number) => GoldenRow,
  device?: string,
): Generator<GoldenRow> {
  const { model, x, images, precision } = detector
  const bounds = boundsOf(precision, detector.convolutions)
  const compare = (name: string, actual: ArrayLike<number>, key: string, tolerance?: number): GoldenRow =>
    row(
      name,
      precision === 'bf16' && tolerance === undefined
        ? distance(actual, detector.values(key))
        : relativeError(actual, detector.values(key)),
      tolerance ?? bounds.values,
    )
  const style = detectionStyles.detectron2
  const limits = { ...proposalLimits.test, after: detector.stored('out.rpn.proposals.0').shape[0]! }
  const grid = gridAnchors(model.options.anchors, detector.stored('out.res4').shape[2]!, detector.stored('out.res4').shape[3]!)
  yield compare('anchors', grid, 'in.anchors', 1e-12)
  for (const [i, image] of images.entries()) {
    const { labels } = assign(
      grid,
      image.objects.map(({ box }) => box),
      style.anchors,
    )
    yield compare(`labels of anchors ${i}`, labels, `in.rpn.label.${i}`, 0)
  }

  const features = model.features(x, training)
  yield compare('map', channelsFirst(features), 'out.res4')
  const proposed = model.propose(features)
  yield compare('logits of anchors', proposed.logits.data(), 'out.rpn.logits')
  yield compare('deltas of anchors', proposed.deltas.data(), 'out.rpn.deltas')
  // Elsewhere rounding decides which of two that overlap is kept: then from the file's scores and moves.
  const given = (key: string): Tensor => Tensor.from(detector.values(key), detector.stored(key).shape, accumulator(precision))
  const exact = precision === 'f64' ? proposed : { logits: given('out.rpn.logits'), deltas: given('out.rpn.deltas') }
  const found = proposals(exact, grid, images, style, limits)
  for (const [i, each] of found.entries()) {
    yield compare(`proposals ${i}`, each.boxes, `out.rpn.proposals.${i}`, Math.min(bounds.values, 1e-5))
    yield compare(`scores of proposals ${i}`, each.scores, `out.rpn.scores.${i}`, Math.min(bounds.values, 1e-5))
  }
  const { logits, deltas } = model.classify(features, detector.sampledRegions(), training)
  yield compare('logits of regions', logits.data(), 'out.cls')
  yield compare('deltas of regions', deltas.data(), 'out.reg')

  const parameters = model.state().parameters
  // The other style's losses have the same kernels and other divisors.
  const styles = [...(device === undefined ? [['mmdet', 'mmdet'] as const] : []), ['detectron2', 'd2'] as const]
  for (const [name, key] of styles) {
    detector.load('w0.')
    const watched = [...parameters].map(([own, parameter]) => model.state().copies.get(own) ?? parameter)
    const tape = new Tape().watch(watched)
    const losses = tape.record(() => detector.losses(detectionStyles[name]))
    const { anchorClass, anchorBox, regionClass, regionBox } = losses
    const actual = [anchorClass, anchorBox, regionClass, regionBox].map((loss) => loss.item())
    const expected = ['rpn_cls', 'rpn_loc', 'cls', 'box_reg'].map((part) => detector.values(`loss.${key}.${part}`)[0]!)
    yield row(`losses of ${name}`, relativeError(actual, expected), bounds.losses)
    if (name !== 'detectron2') {
      tape.dispose()
      continue
    }
    const gradients = tape.backward(losses.total, watched)
    const byName = new Map([...parameters.keys()].map((own, i) => [own, gradients[i]!]))
    const pairs = [...detector.tensors()].flatMap(([own, , theirs]) => {
      const gradient = byName.get(own)
      return gradient === undefined
        ? []
        : [{ own, actual: storedValues(toStored(own, gradient)), expected: detector.values(`grad.${theirs}`) }]
    })
    if (precision === 'f64')
      for (const { own, actual, expected } of pairs) yield row(`gradient of ${own}`, relativeError(actual, expected, 1e-3), bounds.values)
    const whole = (of: 'actual' | 'expected'): number[] => pairs.flatMap((pair) => [...pair[of]])
    if (bounds.gradients !== undefined) yield row('all gradients', distance(whole('actual'), whole('expected')), bounds.gradients)
    update(model, byName)
    const updated = [...detector.tensors()].map(([own, tensor, theirs]) => ({ own, values: storedValues(toStored(own, tensor)), theirs }))
    for (const { own, values, theirs } of updated)
      if (precision === 'f64' || !parameters.has(own)) yield compare(`${own} after a step`, values, `w1.${theirs}`)
    if (bounds.gradients === undefined) continue
    const learned = updated.filter(({ own }) => parameters.has(own))
    const expectedWeights = learned.flatMap(({ theirs }) => [...detector.values(`w1.${theirs}`)])
    // What the error of the gradients makes of the weights, and their own rounding.
    const share = (rate * length(whole('expected'))) / length(expectedWeights)
    const error = distance(
      learned.flatMap(({ values }) => [...values]),
      expectedWeights,
    )
    yield row('all weights after a step', error, 1e-6 + bounds.gradients * share)
  }
  detector.load('w1.')
  const objects = detectInRegions(
    model,
    model.features(x, evaluation),
    images.map((_, i) => detector.values(`in.proposals.${i}`)),
    images.map((image) => ({ ...image, original: image })),
    style,
  )
  for (const [i, each] of objects.entries()) {
    const expected = detector.found(i)
    yield row(`objects found in ${i}`, unmatched(each, expected, bounds.losses), bounds.others)
    yield row(`objects to be found in ${i}`, unmatched(expected, each, bounds.losses), bounds.others)
  }
}

/** The share of `some` that has no counterpart among `others`: of its class, its score and its box, within `tolerance` of the largest. */
function unmatched(some: readonly FoundObject[], others: readonly FoundObject[], tolerance: number): number {
  const largest = Math.max(...others.flatMap(({ box }) => box.map(Math.abs)))
  const same = (a: FoundObject, b: FoundObject): boolean =>
    a.label === b.label &&
    Math.abs(a.score - b.score) <= tolerance &&
    a.box.every((value, k) => Math.abs(value - b.box[k]!) <= tolerance * largest)
  return some.filter((a) => !others.some((b) => same(a, b))).length / some.length
}

const rate = 0.02
const length = (values: readonly number[]): number => Math.sqrt(values.reduce((sum, value) => sum + value * value, 0))

/** One step of SGD with momentum, whose decay leaves norms alone. */
function update(model: FasterRcnn, gradients: Map<string, Tensor>): void {
  const state = model.state()
  for (const norms of [true, false]) {
    const own = new Map([...state.parameters].filter(([name]) => isNorm(state, name) === norms))
    const sgd = new Sgd(own, { momentum: 0.9, weightDecay: norms ? 0 : 1e-4 })
    sgd.step(
      [...own.keys()].map((name) => gradients.get(name)!),
      rate,
    )
    sgd.dispose()
  }
}
