/**
 * Faster R-CNN (Ren et al., arXiv:1506.01497) in the form C4: proposals from the map before the backbone's last stage, which is applied to
 * the region of each instead. Names are mmdetection's.
 */
import { mean } from '../ops/reduce.js'
import { roiAlign, type RoiAlignOptions } from '../ops/roiAlign.js'
import { type Backbone, disposeHeads, type MapShape } from '../nn/backbone.js'
import { BatchNorm2d, type Build, Linear, type NormMode } from '../nn/layers.js'
import { emptyState, include, type State } from '../nn/module.js'
import { fail } from '../tensor/errors.js'
import { accumulator, scope, Tensor } from '../tensor/tensor.js'
import { type AnchorOptions, anchorsOfMap, cellAnchors } from './anchors.js'
import { type Classified, type Detector, normal, ProposalHead, type Proposed, type RegionPooling, type Regions } from './detector.js'

/** What a FasterRcnn is built with. */
export interface FasterRcnnOptions {
  classes: number
  anchors: AnchorOptions
  /** Bins along each side of a region; 14 where absent, which the last stage makes 7. */
  regionSize?: number
  /** How a region's bins are sampled; as RoIAlign does where absent. */
  pooling?: Pick<RoiAlignOptions, 'samplingRatio' | 'aligned'> | undefined
}

function mapBeforeLast({ name, maps, beforeLast, last }: Backbone): MapShape {
  const map = maps.at(-2)
  return map !== undefined && beforeLast !== undefined && last !== undefined
    ? map
    : fail('CONFIG', `${name}: its last stage cannot be applied to regions, as a detector of the form C4 does`)
}

/** A detector of the form C4 on a backbone, which becomes part of it. */
export class FasterRcnn implements Detector {
  readonly form = 'c4'
  readonly #rpn: ProposalHead
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
    this.#rpn = new ProposalHead(build, channels, cellAnchors(options.anchors).length / 4)
    this.#norm = new BatchNorm2d(build, backbone.channels)
    this.#cls = new Linear(build, backbone.channels, options.classes + 1, normal(0.01))
    this.#reg = new Linear(build, backbone.channels, 4 * options.classes, normal(0.001))
  }

  features(images: Tensor, mode: NormMode): [Tensor] {
    return [this.backbone.beforeLast!(this.backbone.input(images), mode)]
  }

  get cells(): [AnchorOptions] {
    return [this.options.anchors]
  }

  get pooling(): RegionPooling {
    const { regionSize: bins = 14, pooling } = this.options
    return { strides: [this.stride], bins, ...pooling }
  }

  anchors([map]: readonly Tensor[], images: Tensor): [Float64Array] {
    return [anchorsOfMap(this.options.anchors, map!, images)]
  }

  propose([map]: readonly Tensor[]): [Proposed] {
    return [this.#rpn.forward(map!)]
  }

  classify([map]: readonly Tensor[], { boxes, images }: Regions, mode: NormMode): Classified {
    return scope(() => {
      const { bins: size, strides, ...how } = this.pooling
      const rows = images.length
      const corners = Tensor.from(boxes, [rows, 4], accumulator(map!.dtype))
      const options = { size, scale: 1 / strides[0]!, ...how, convolved: true }
      return this.classifyBins(roiAlign(map!, corners, Tensor.from(images, [rows], 'i32'), options), mode)
    })
  }

  /** The last stage, a batch norm without ReLU, the mean over the bins, two linear layers. */
  classifyBins(bins: Tensor, mode: NormMode): Classified {
    return scope(() => {
      const deep = this.#norm.forward(this.backbone.last!(bins, mode), mode)
      const vector = mean(deep, { axes: [1, 2] })
      return { logits: this.#cls.forward(vector), deltas: this.#reg.forward(vector) }
    })
  }

  dispose(): void {
    disposeHeads(this)
  }

  state(): State {
    const state = emptyState()
    const last = `layer${this.backbone.maps.length - 1}`
    const own = this.backbone.state()
    for (const kind of ['parameters', 'buffers', 'copies'] as const)
      for (const [name, tensor] of own[kind])
        state[kind].set(name.startsWith(`${last}.`) ? `roi_head.shared_head.${name}` : `backbone.${name}`, tensor)
    this.#rpn.include(state)
    include(state, 'roi_head.shared_head.norm', this.#norm.state())
    include(state, 'roi_head.bbox_head.fc_cls', this.#cls.state())
    include(state, 'roi_head.bbox_head.fc_reg', this.#reg.state())
    return state
  }
}
