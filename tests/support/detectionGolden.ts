/**
 * A golden step of a detector of the form C4: the forward pass, both code bases' losses, gradients, one update and what is found then, as
 * PyTorch computed it in float64 with fixed samples. Architecture and numbers are read off the shapes in the file.
 */
import { Tape } from '../../src/autograd/tape.js'
import { gridAnchors } from '../../src/detection/anchors.js'
import { assign } from '../../src/detection/assign.js'
import { detectInRegions } from '../../src/detection/detect.js'
import { FasterRcnn } from '../../src/detection/fasterRcnn.js'
import { proposals } from '../../src/detection/proposals.js'
import { type DetectionLosses, detectionLosses } from '../../src/detection/step.js'
import { type DetectionStyle, detectionStyles } from '../../src/detection/styles.js'
import { boxAt, type RegionSample, type TrainingImage } from '../../src/detection/targets.js'
import { evaluation, training } from '../../src/nn/layers.js'
import { allTensors, disposeState, isNorm } from '../../src/nn/module.js'
import { ResNet } from '../../src/nn/resnet.js'
import { Sgd } from '../../src/optim/sgd.js'
import { fail } from '../../src/tensor/errors.js'
import { Random } from '../../src/tensor/random.js'
import { scope, type Tensor } from '../../src/tensor/tensor.js'
import { loadStored, toStored } from '../../src/weights/layout.js'
import { type StoredTensor, storedValues, type TensorFile } from '../../src/weights/safetensors.js'
import { channelsFirst, channelsLast, distance, type GoldenRow, relativeError } from './golden.js'

/** Names of a file under ours, which are mmdetection's. */
const renamed = (name: string): string =>
  name
    .replace(/^res5\./, 'roi_head.shared_head.layer4.')
    .replace(/^norm\./, 'roi_head.shared_head.norm.')
    .replace(/^rpn\.(conv|cls|reg)\./, 'rpn_head.rpn_$1.')
    .replace(/^(cls|reg)\./, 'roi_head.bbox_head.fc_$1.')

/** Whether a file is of a detector, and of which form. */
export const detectorForm = ({ tensors }: TensorFile): 'c4' | 'fpn' | undefined =>
  tensors.has('w0.res5.0.conv1.weight') ? 'c4' : tensors.has('in.gt_boxes.0') ? 'fpn' : undefined

/** Images and samples of the file, and the network with its first weights. */
class GoldenDetector {
  readonly images: TrainingImage[]
  readonly model: FasterRcnn
  readonly x: Tensor

  constructor(
    readonly golden: TensorFile,
    readonly dtype: 'f32' | 'f64',
  ) {
    const { shape } = this.stored('in.image')
    const [count, , height, width] = shape as [number, number, number, number]
    this.images = Array.from({ length: count }, (_, i) => ({
      height,
      width,
      objects: Array.from(this.values(`in.gt_labels.${i}`), (label, k) => ({ label, box: boxAt(this.values(`in.gt_boxes.${i}`), k) })),
    }))
    const build = { random: new Random(0), dtype }
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
      regions: (_, image, i): RegionSample => {
        const candidates = Float64Array.from([...this.values(`in.proposals.${i}`), ...image.objects.flatMap(({ box }) => [...box])])
        const labels = Int32Array.from(this.values(`in.roi.label.${i}`))
        const objects = this.values(`in.roi.gt.${i}`)
        const boxes = Array.from(this.values(`in.roi.sample.${i}`), (at) => boxAt(candidates, at))
        return {
          boxes: Float64Array.from(boxes.flatMap((box) => [...box])),
          labels,
          targets: Array.from(labels, (label, k) => (label < this.model.options.classes ? image.objects[objects[k]!]!.box : undefined)),
        }
      },
    }
  }
}

/** Relative errors that are allowed. Networks of a few channels amplify rounding, and a ReLU that tips changes a whole gradient. */
const bounds = { f64: { values: 1e-8, gradients: 1e-8 }, f32: { values: 2e-4, gradients: 2e-2 } } as const

/** The rows of a golden file of the form C4. */
export function* detectionRows(file: string, golden: TensorFile): Generator<GoldenRow> {
  for (const dtype of ['f64', 'f32'] as const) {
    const detector = new GoldenDetector(golden, dtype)
    const row = (name: string, error: number, tolerance: number = bounds[dtype].values): GoldenRow => ({
      name: `${file} ${name}`,
      dtype,
      error,
      tolerance,
    })
    yield* scope(() => [...rowsOf(detector, row)])
    detector.dispose()
  }
}

function* rowsOf(detector: GoldenDetector, row: (name: string, error: number, tolerance?: number) => GoldenRow): Generator<GoldenRow> {
  const { model, x, images, dtype } = detector
  const compare = (name: string, actual: ArrayLike<number>, key: string, tolerance?: number): GoldenRow =>
    row(name, relativeError(actual, detector.values(key)), tolerance)
  const style = detectionStyles.detectron2
  const grid = gridAnchors(model.options.anchors, detector.stored('out.res4').shape[2]!, detector.stored('out.res4').shape[3]!)
  yield compare('anchors', grid, 'in.anchors')
  for (const [i, image] of images.entries()) {
    const { labels } = assign(
      grid,
      image.objects.map(({ box }) => box),
      style.anchors,
    )
    yield compare(`labels of anchors ${i}`, labels, `in.rpn.label.${i}`, 0)
  }

  const parameters = model.state().parameters
  const saved = new Map([...allTensors(model.state())].map(([name, tensor]) => [name, toStored(name, tensor)]))
  const restore = (): void => {
    for (const [name, tensor] of allTensors(model.state())) loadStored('golden', name, tensor, saved.get(name)!)
  }
  const features = model.features(x, training)
  yield compare('map', channelsFirst(features), 'out.res4')
  const proposed = model.propose(features)
  yield compare('logits of anchors', proposed.logits.data(), 'out.rpn.logits')
  yield compare('deltas of anchors', proposed.deltas.data(), 'out.rpn.deltas')
  const found = proposals(proposed, grid, images, style, { before: 6000, after: 50, overlap: 0.7 })
  if (dtype === 'f64')
    for (const [i, each] of found.entries()) {
      yield compare(`proposals ${i}`, each.boxes, `out.rpn.proposals.${i}`)
      yield compare(`scores of proposals ${i}`, each.scores, `out.rpn.scores.${i}`)
    }
  restore()

  for (const [name, key] of [
    ['mmdet', 'mmdet'],
    ['detectron2', 'd2'],
  ] as const) {
    restore()
    const tape = new Tape().watch([...parameters.values()])
    const losses = tape.record(() => detector.losses(detectionStyles[name]))
    const { anchorClass, anchorBox, regionClass, regionBox } = losses
    const actual = [anchorClass, anchorBox, regionClass, regionBox].map((loss) => loss.item())
    const expected = ['rpn_cls', 'rpn_loc', 'cls', 'box_reg'].map((part) => detector.values(`loss.${key}.${part}`)[0]!)
    yield row(`losses of ${name}`, relativeError(actual, expected))
    if (name !== 'detectron2') {
      tape.dispose()
      continue
    }
    const gradients = tape.backward(losses.total, [...parameters.values()])
    const byName = new Map([...parameters.keys()].map((own, i) => [own, gradients[i]!]))
    const pairs = [...detector.tensors()].flatMap(([own, , theirs]) => {
      const gradient = byName.get(own)
      return gradient === undefined
        ? []
        : [{ own, actual: storedValues(toStored(own, gradient)), expected: detector.values(`grad.${theirs}`) }]
    })
    if (dtype === 'f64')
      for (const { own, actual, expected } of pairs) yield row(`gradient of ${own}`, relativeError(actual, expected, 1e-3))
    yield row(
      'all gradients',
      distance(
        pairs.flatMap(({ actual }) => [...actual]),
        pairs.flatMap(({ expected }) => [...expected]),
      ),
      bounds[dtype].gradients,
    )
    update(model, byName)
    for (const [own, tensor, theirs] of detector.tensors())
      yield row(`${own} after a step`, relativeError(storedValues(toStored(own, tensor)), detector.values(`w1.${theirs}`)))
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
    yield compare(
      `scores of what is found in ${i}`,
      each.map(({ score }) => score),
      `det.scores.${i}`,
    )
    if (dtype === 'f32') continue
    yield compare(
      `classes of what is found in ${i}`,
      each.map(({ label }) => label),
      `det.classes.${i}`,
      0,
    )
    yield compare(
      `boxes of what is found in ${i}`,
      each.flatMap(({ box }) => [...box]),
      `det.boxes.${i}`,
    )
  }
}

/** One step of SGD with momentum, whose decay leaves norms alone. */
function update(model: FasterRcnn, gradients: Map<string, Tensor>): void {
  const state = model.state()
  for (const norms of [true, false]) {
    const own = new Map([...state.parameters].filter(([name]) => isNorm(state, name) === norms))
    const sgd = new Sgd(own, { momentum: 0.9, weightDecay: norms ? 0 : 1e-4 })
    sgd.step(
      [...own.keys()].map((name) => gradients.get(name)!),
      0.02,
    )
    sgd.dispose()
  }
}
