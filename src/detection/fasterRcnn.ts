/**
 * Faster R-CNN (Ren et al., arXiv:1506.01497) in the form C4: proposals from the map before the backbone's last stage, which is applied to
 * the region of each instead. Names are mmdetection's.
 */
import { relu, reshape } from '../ops/elementwise.js'
import { mean } from '../ops/reduce.js'
import { roiAlign, type RoiAlignOptions } from '../ops/roiAlign.js'
import type { Backbone, MapShape } from '../nn/backbone.js'
import { BatchNorm2d, type Build, Conv2d, type Fill, Linear, type NormMode, zeros } from '../nn/layers.js'
import { emptyState, include, type State } from '../nn/module.js'
import { fail } from '../tensor/errors.js'
import { scope, sizeOf, type Tensor } from '../tensor/tensor.js'
import { type AnchorOptions, cellAnchors } from './anchors.js'

const normal =
  (deviation: number): Fill =>
  (random, shape) =>
    Float64Array.from({ length: sizeOf(shape) }, () => deviation * random.normal())

/** What a FasterRcnn is built with. */
export interface FasterRcnnOptions {
  classes: number
  anchors: AnchorOptions
  /** Bins along each side of a region; 14 where absent, which the last stage makes 7. */
  regionSize?: number
  /** How a region's bins are sampled; as RoIAlign does where absent. */
  pooling?: Pick<RoiAlignOptions, 'samplingRatio' | 'aligned'>
}

/** What the proposal network says of every anchor: logits [N, h * w * A] and deltas [N, h * w * A, 4]. */
export interface Proposed {
  logits: Tensor
  deltas: Tensor
}

/** Regions of images: boxes [R, 4] in pixels, and the image of each, i32 [R]. */
export interface Regions {
  boxes: Tensor
  images: Tensor
}

/** What the head says of every region: logits [R, classes + 1], the background last, and deltas [R, 4 * classes], four of each class. */
export interface Classified {
  logits: Tensor
  deltas: Tensor
}

function mapBeforeLast({ name, maps, beforeLast, last }: Backbone): MapShape {
  const map = maps.at(-2)
  return map !== undefined && beforeLast !== undefined && last !== undefined
    ? map
    : fail('CONFIG', `${name}: its last stage cannot be applied to regions, as a detector of the form C4 does`)
}

/** A detector of the form C4 on a backbone, which becomes part of it. */
export class FasterRcnn {
  readonly #rpn: { conv: Conv2d; cls: Conv2d; reg: Conv2d }
  readonly #norm: BatchNorm2d
  readonly #cls: Linear
  readonly #reg: Linear
  /** Pixels between two cells of the map. */
  readonly stride: number

  /** Throws CONFIG for a backbone whose last stage cannot be applied alone. */
  constructor(
    build: Build,
    readonly backbone: Backbone,
    readonly options: FasterRcnnOptions,
  ) {
    const { channels, stride } = mapBeforeLast(backbone)
    this.stride = stride
    const anchors = cellAnchors(options.anchors).length / 4
    const conv = (outputs: number, kernel: number): Conv2d =>
      new Conv2d(build, channels, outputs, kernel, { padding: (kernel - 1) / 2, fill: normal(0.01), bias: zeros })
    this.#rpn = { conv: conv(channels, 3), cls: conv(anchors, 1), reg: conv(4 * anchors, 1) }
    this.#norm = new BatchNorm2d(build, backbone.channels)
    this.#cls = new Linear(build, backbone.channels, options.classes + 1, normal(0.01))
    this.#reg = new Linear(build, backbone.channels, 4 * options.classes, normal(0.001))
  }

  /** Images [N, H, W, 3] to the map [N, h, w, C] that proposals and regions are taken from. */
  features(images: Tensor, mode: NormMode): Tensor {
    return this.backbone.beforeLast!(this.backbone.input(images), mode)
  }

  /** Scores and moves the anchors at every cell of a map, in the order of gridAnchors. */
  propose(features: Tensor): Proposed {
    return scope(() => {
      const [images = 0, height = 0, width = 0] = features.shape
      const hidden = relu(this.#rpn.conv.forward(features))
      const anchors = height * width * (cellAnchors(this.options.anchors).length / 4)
      return {
        logits: reshape(this.#rpn.cls.forward(hidden), [images, anchors]),
        deltas: reshape(this.#rpn.reg.forward(hidden), [images, anchors, 4]),
      }
    })
  }

  /** Classifies regions of the map: the last stage, a batch norm without ReLU, the mean over the bins, two linear layers. */
  classify(features: Tensor, { boxes, images }: Regions, mode: NormMode): Classified {
    return scope(() => {
      const { regionSize = 14, pooling } = this.options
      const pooled = roiAlign(features, boxes, images, { size: regionSize, scale: 1 / this.stride, ...pooling })
      const deep = this.#norm.forward(this.backbone.last!(pooled, mode), mode)
      const vector = mean(deep, { axes: [1, 2] })
      return { logits: this.#cls.forward(vector), deltas: this.#reg.forward(vector) }
    })
  }

  /** Frees what the detector has beside its backbone. */
  dispose(): void {
    const tensorsOf = ({ parameters, buffers, copies }: State): Tensor[] =>
      [parameters, buffers, copies].flatMap((map) => [...map.values()])
    const shared = new Set(tensorsOf(this.backbone.state()))
    for (const tensor of tensorsOf(this.state())) if (!shared.has(tensor)) tensor.dispose()
  }

  /** Parameters and buffers by name. */
  state(): State {
    const state = emptyState()
    const last = `layer${this.backbone.maps.length - 1}`
    const own = this.backbone.state()
    for (const kind of ['parameters', 'buffers', 'copies'] as const)
      for (const [name, tensor] of own[kind])
        state[kind].set(name.startsWith(`${last}.`) ? `roi_head.shared_head.${name}` : `backbone.${name}`, tensor)
    include(state, 'rpn_head.rpn_conv', this.#rpn.conv.state())
    include(state, 'rpn_head.rpn_cls', this.#rpn.cls.state())
    include(state, 'rpn_head.rpn_reg', this.#rpn.reg.state())
    include(state, 'roi_head.shared_head.norm', this.#norm.state())
    include(state, 'roi_head.bbox_head.fc_cls', this.#cls.state())
    include(state, 'roi_head.bbox_head.fc_reg', this.#reg.state())
    return state
  }
}
