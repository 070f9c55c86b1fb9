/** Images and samples of a golden file of a detector, and the network with its first weights. */
import { Random } from '../../src/tensor/random.js'
import { type AnchorOptions } from '../../src/detection/anchors.js'
import { assign } from '../../src/detection/assign.js'
import type { FoundObject } from '../../src/detection/detect.js'
import type { Detector, DetectorForm, Regions } from '../../src/detection/detector.js'
import { FasterRcnn } from '../../src/detection/fasterRcnn.js'
import { MaskRcnn } from '../../src/detection/maskRcnn.js'
import { type Chooser, type DetectionLosses, detectionLosses } from '../../src/detection/step.js'
import { type DetectionStyle, detectionStyles } from '../../src/detection/styles.js'
import { boxAt, type RegionSample, type TrainingImage } from '../../src/detection/targets.js'
import { training } from '../../src/nn/layers.js'
import { allTensors, disposeState, refreshCopies } from '../../src/nn/module.js'
import { ResNet } from '../../src/nn/resnet.js'
import { fail } from '../../src/tensor/errors.js'
import { type FloatDType, scope, type Tensor } from '../../src/tensor/tensor.js'
import { loadStored } from '../../src/weights/layout.js'
import { type StoredTensor, storedValues, type TensorFile } from '../../src/weights/safetensors.js'
import { channelsLast } from './golden.js'

/** Whether a file is of a detector, and of which form. */
export const detectorForm = ({ tensors }: TensorFile): DetectorForm | undefined =>
  tensors.has('w0.res5.0.conv1.weight') ? 'c4' : tensors.has('in.gt_boxes.0') ? 'fpn' : undefined

/** Names of a file under ours, which are mmdetection's. */
const renamed = (name: string): string =>
  name
    .replace(/^res5\./, 'roi_head.shared_head.layer4.')
    .replace(/^norm\./, 'roi_head.shared_head.norm.')
    .replace(/^rpn\.(conv|cls|reg)\./, 'rpn_head.rpn_$1.')
    .replace(/^(cls|reg)\./, 'roi_head.bbox_head.fc_$1.')
    .replace(/^fc\./, 'roi_head.bbox_head.shared_fcs.0.')
    .replace(/^(lateral|output|boxconv|maskconv)\.(\d)\.([01])\./, (_, part: keyof typeof units, i: string, layer: string) =>
      [units[part], i, layer === '0' ? 'conv' : 'bn', ''].join('.'),
    )
    .replace(/^deconv\./, 'roi_head.mask_head.upsample.')
    .replace(/^mask\./, 'roi_head.mask_head.conv_logits.')
const units = {
  lateral: 'neck.lateral_convs',
  output: 'neck.fpn_convs',
  boxconv: 'roi_head.bbox_head.shared_convs',
  maskconv: 'roi_head.mask_head.convs',
}

/** f32 master weights with bf16 activations and copies are `bf16`. */
export type Precision = 'f64' | 'f32' | 'bf16'

/** Images and samples of the file, and the network with its first weights, on the current device. */
export class GoldenDetector {
  readonly form: DetectorForm
  readonly images: TrainingImage[]
  readonly model: Detector
  readonly x: Tensor

  constructor(
    readonly golden: TensorFile,
    readonly precision: Precision,
  ) {
    this.form = detectorForm(golden) ?? fail('FORMAT', 'golden: the file is of no detector')
    const { shape } = this.stored('in.image')
    const [count, , height, width] = shape as [number, number, number, number]
    this.images = Array.from({ length: count }, (_, i) => ({
      height,
      width,
      objects: Array.from(this.values(`in.gt_labels.${i}`), (label, k) => ({ label, box: boxAt(this.values(`in.gt_boxes.${i}`), k) })),
    }))
    const dtype: FloatDType = precision === 'f64' ? 'f64' : 'f32'
    this.model = this.build(dtype)
    this.load('w0.')
    this.x = scope(() => channelsLast(this.stored('in.image'), dtype)).keep()
  }

  private build(dtype: FloatDType): Detector {
    const build = { random: new Random(0), dtype, compute: this.precision }
    const backbone = new ResNet(build, { depth: 50, baseChannels: this.stored('w0.backbone.conv1.weight').shape[0]!, blocks: this.blocks })
    const classes = this.stored('w0.cls.bias').shape[0]! - 1
    if (this.form === 'c4') return new FasterRcnn(build, backbone, { classes, anchors: this.anchorsOf(['in.anchors']), regionSize: 14 })
    const pyramid = {
      channels: this.stored('w0.rpn.conv.bias').shape[0]!,
      width: this.stored('w0.fc.bias').shape[0]!,
      boxConvolutions: this.count('w0.boxconv.'),
      boxLinears: 1,
      maskConvolutions: this.count('w0.maskconv.'),
      norm: true,
      canonical: this.values('in.canonical_size')[0]!,
      levels: 'detectron2' as const,
    }
    const anchors = this.anchorsOf([0, 1, 2, 3, 4].map((map) => `in.anchors.${map}`))
    return new MaskRcnn(build, backbone, { classes, anchors, init: 'detectron2', pyramid })
  }

  stored = (key: string): StoredTensor => this.golden.tensors.get(key) ?? fail('FORMAT', `golden: the tensor ${key} is missing`)
  values = (key: string): Float64Array => storedValues(this.stored(key))
  has = (key: string): boolean => this.golden.tensors.has(key)

  /** Parts of a list, such as blocks of a stage, whose names begin with `prefix`. */
  private count(prefix: string): number {
    return new Set(
      [...this.golden.tensors.keys()].filter((key) => key.startsWith(prefix)).map((key) => key.slice(prefix.length).split('.')[0]),
    ).size
  }

  private get blocks(): number[] {
    return [
      'w0.backbone.layer1.',
      'w0.backbone.layer2.',
      'w0.backbone.layer3.',
      this.form === 'c4' ? 'w0.res5.' : 'w0.backbone.layer4.',
    ].map((prefix) => this.count(prefix))
  }

  /** Convolutions in a row: three in a block, the stem, and those of a pyramid and the longest head behind it. */
  get convolutions(): number {
    const own = 1 + 3 * this.blocks.reduce((sum, count) => sum + count, 0)
    return this.form === 'c4' ? own : own + 2 + Math.max(this.count('w0.boxconv.'), this.count('w0.maskconv.')) + 2
  }

  /** What is found in image i after the step. */
  found(i: number): FoundObject[] {
    const [labels, boxes] = [this.values(`det.classes.${i}`), this.values(`det.boxes.${i}`)]
    return Array.from(this.values(`det.scores.${i}`), (score, k) => ({ label: labels[k]!, score, box: boxAt(boxes, k) }))
  }

  /** Sizes from the first cells' square anchors; three ratios of each, in size-major order. */
  private anchorsOf(keys: readonly string[]): AnchorOptions {
    const each = this.stored('w0.rpn.cls.bias').shape[0]!
    const sizes = keys.flatMap((key) => {
      const anchors = this.values(key)
      return Array.from({ length: each / 3 }, (_, s) => anchors[4 * (3 * s + 1) + 2]! - anchors[4 * (3 * s + 1)]!)
    })
    const first = this.values(keys[0]!)
    return { sizes, ratios: [0.5, 1, 2], stride: first[4 * each]! - first[0]!, order: 'size' }
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

  /** The samples of the file, whose anchors are of each image as many as the file's divisor says. */
  private chooser(): Chooser {
    return {
      // The published number is 256.
      wanted: this.form === 'c4' ? 512 : this.stored('in.rpn.sample.0').shape[0]!,
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
      masks: (_, __, i) => {
        const before = this.images.slice(0, i).reduce((sum, image, at) => sum + this.regions(image, at).objects.length, 0)
        return this.masksOf(before, this.regions(this.images[i]!, i).objects.length)
      },
    }
  }

  /** Masks of `count` sampled regions of objects. */
  private masksOf(first: number, count: number): Float64Array {
    const each = 28 * 28
    return this.values('out.mask_targets').subarray(first * each, (first + count) * each)
  }

  /** The sampled regions of all images, of objects alone where told. */
  sampledRegions({ ofObjects = false } = {}): Regions {
    const each = this.images.map((image, i) => {
      const { boxes, objects } = this.regions(image, i)
      return ofObjects ? boxes.subarray(0, 4 * objects.length) : boxes
    })
    return {
      boxes: Float64Array.from(each.flatMap((own) => [...own])),
      images: Int32Array.from(each.flatMap((own, image) => new Array<number>(own.length / 4).fill(image))),
    }
  }

  /** The sampled regions of image i. */
  regions(image: TrainingImage, i: number): RegionSample {
    const candidates = Float64Array.from([...this.values(`in.proposals.${i}`), ...image.objects.flatMap(({ box }) => [...box])])
    const labels = Int32Array.from(this.values(`in.roi.label.${i}`))
    const boxes = Array.from(this.values(`in.roi.sample.${i}`), (at) => boxAt(candidates, at))
    const positives = labels.filter((label) => label < this.model.options.classes).length
    return {
      boxes: Float64Array.from(boxes.flatMap((box) => [...box])),
      labels,
      objects: Int32Array.from(this.values(`in.roi.gt.${i}`).subarray(0, positives)),
    }
  }
}
