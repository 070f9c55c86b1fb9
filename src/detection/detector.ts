/** What training, tests and files know of a two-stage detector, whichever form it has. */
import { concat } from '../ops/concat.js'
import { relu, reshape } from '../ops/elementwise.js'
import type { Backbone } from '../nn/backbone.js'
import { type Build, Conv2d, type Fill, type NormMode, zeros } from '../nn/layers.js'
import { include, type State } from '../nn/module.js'
import type { RoiAlignOptions } from '../ops/roiAlign.js'
import { scope, sizeOf, type Tensor } from '../tensor/tensor.js'
import type { AnchorOptions } from './anchors.js'
import type { DetectionStyleName } from './styles.js'

/** The forms that there are: one map and the backbone's last stage in the head, or a pyramid of maps, with masks. */
export type DetectorForm = 'c4' | 'fpn'

/** What the proposal network says of every anchor of a map: logits [N, h * w * A] and deltas [N, h * w * A, 4]. */
export interface Proposed {
  logits: Tensor
  deltas: Tensor
}

/** Regions of images: boxes [R, 4] in pixels, and the image of each [R]. */
export interface Regions {
  boxes: Float64Array
  images: Int32Array
}

/** How regions are taken from the maps. */
export interface RegionPooling extends Pick<RoiAlignOptions, 'samplingRatio' | 'aligned'> {
  /** Pixels between two cells of each map that regions are taken from. */
  strides: readonly number[]
  /** Bins along each side of a region, for its class and for its mask. */
  bins: number
  maskBins?: number
  /** Which of several maps a region is taken from, by its size. */
  levels?: { canonical: number; rule: LevelRule }
}

/** Whose rule says which map a region is taken from; they differ next to powers of two. */
export type LevelRule = DetectionStyleName | 'torchvision'

/** What the head says of every region: logits [R, classes + 1], the background last, and deltas [R, 4 * classes], four of each class. */
export interface Classified {
  logits: Tensor
  deltas: Tensor
}

/** A two-stage detector on a backbone, which is part of it. */
export interface Detector {
  readonly form: DetectorForm
  readonly backbone: Backbone
  readonly options: { readonly classes: number }
  /** Images [N, H, W, 3] to the maps [N, h, w, C] that proposals and regions are taken from, fine to coarse. */
  features(images: Tensor, mode: NormMode): Tensor[]
  /** The anchors of a cell of each map. */
  readonly cells: readonly AnchorOptions[]
  readonly pooling: RegionPooling
  /** The anchors [h * w * A, 4] of each map, of images [N, H, W, 3]. */
  anchors(features: readonly Tensor[], images: Tensor): Float64Array[]
  /** Scores and moves the anchors of every map. */
  propose(features: readonly Tensor[]): Proposed[]
  /** Classifies regions of the maps. */
  classify(features: readonly Tensor[], regions: Regions, mode: NormMode): Classified
  /** The same of the bins [R, S, S, C] of regions. */
  classifyBins(bins: Tensor, mode: NormMode): Classified
  /** Logits [R, S, S, classes] of whether places of regions belong to an object of a class; absent in a form without masks. */
  masks?(features: readonly Tensor[], regions: Regions, mode: NormMode): Tensor
  /** The same of the bins [R, S / 2, S / 2, C] of regions. */
  maskBins?(bins: Tensor, mode: NormMode): Tensor
  /** Parameters and buffers by name. */
  state(): State
  /** Frees what the detector has beside its backbone. */
  dispose(): void
}

/** Normal deviates of a deviation, as weights of scores and moves begin. */
export const normal =
  (deviation: number): Fill =>
  (random, shape) =>
    Float64Array.from({ length: sizeOf(shape) }, () => deviation * random.normal())

/** The proposal network (Ren et al., arXiv:1506.01497): a convolution, then scores and moves of the anchors at every cell. */
export class ProposalHead {
  readonly #conv: Conv2d
  readonly #cls: Conv2d
  readonly #reg: Conv2d

  /** `anchors` is their number at a cell. */
  constructor(
    build: Build,
    channels: number,
    readonly anchors: number,
  ) {
    const conv = (outputs: number, kernel: number): Conv2d =>
      new Conv2d(build, channels, outputs, kernel, { padding: (kernel - 1) / 2, fill: normal(0.01), bias: zeros })
    this.#conv = conv(channels, 3)
    this.#cls = conv(anchors, 1)
    this.#reg = conv(4 * anchors, 1)
  }

  /** Of a map, in the order of gridAnchors. */
  forward(map: Tensor): Proposed {
    return scope(() => {
      const [images, height, width] = map.shape as [number, number, number, number]
      const hidden = relu(this.#conv.forward(map))
      const anchors = height * width * this.anchors
      return {
        logits: reshape(this.#cls.forward(hidden), [images, anchors]),
        deltas: reshape(this.#reg.forward(hidden), [images, anchors, 4]),
      }
    })
  }

  /** Adds parameters under mmdetection's names. */
  include(state: State): void {
    include(state, 'rpn_head.rpn_conv', this.#conv.state())
    include(state, 'rpn_head.rpn_cls', this.#cls.state())
    include(state, 'rpn_head.rpn_reg', this.#reg.state())
  }
}

/** What is said of the anchors of all maps together, map after map. */
export const joined = (proposed: readonly Proposed[]): Proposed =>
  proposed.length === 1
    ? proposed[0]!
    : {
        logits: concat(
          proposed.map(({ logits }) => logits),
          1,
        ),
        deltas: concat(
          proposed.map(({ deltas }) => deltas),
          1,
        ),
      }
