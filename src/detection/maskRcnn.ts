/**
 * Mask R-CNN (He et al., arXiv:1703.06870) on a feature pyramid: regions of every size are taken from the map that fits them, classified,
 * moved, and given masks. Names are mmdetection's.
 */
import { concat } from '../ops/concat.js'
import { gather } from '../ops/gather.js'
import { roiAlign, type RoiAlignOptions } from '../ops/roiAlign.js'
import { type Backbone, disposeHeads, type MapShape } from '../nn/backbone.js'
import { type Build, evaluation, kaimingNormal, type NormMode } from '../nn/layers.js'
import { emptyState, include, type State } from '../nn/module.js'
import { fail } from '../tensor/errors.js'
import { accumulator, scope, Tensor } from '../tensor/tensor.js'
import { type AnchorOptions, anchorsOfMap } from './anchors.js'
import {
  type Classified,
  type Detector,
  type LevelRule,
  normal,
  ProposalHead,
  type Proposed,
  type RegionPooling,
  type Regions,
} from './detector.js'
import { FeaturePyramid } from './featurePyramid.js'
import { BoxHead, MaskHead } from './regionHeads.js'
import type { DetectionStyleName } from './styles.js'
import { kaimingUniform, xavierUniform } from './unit.js'

/** The numbers of a pyramid and its heads that files do not tell by shapes. */
export interface PyramidOptions {
  /** Channels of the pyramid and of the heads' convolutions, and the width of the linear layers. */
  channels: number
  width: number
  boxConvolutions: number
  boxLinears: number
  maskConvolutions: number
  /** Whether pyramid and heads have batch norms. */
  norm: boolean
  /** Whether batch norms of the backbone keep statistics, scales and shifts; trained where absent. */
  frozen?: boolean | undefined
  /** The side of regions that are taken from the third map. */
  canonical: number
  levels: LevelRule
}

/** The published pyramid: a head of four convolutions and one linear layer, norms everywhere. */
export const publishedPyramid: Omit<PyramidOptions, 'levels'> = {
  channels: 256,
  width: 1024,
  boxConvolutions: 4,
  boxLinears: 1,
  maskConvolutions: 4,
  norm: true,
  canonical: 224,
}

/** What a MaskRcnn is built with. */
export interface MaskRcnnOptions {
  classes: number
  /** Square roots of the areas of anchors, one of each map. */
  anchors: Pick<AnchorOptions, 'sizes' | 'ratios' | 'order' | 'rounded'>
  /** How weights are drawn. */
  init: DetectionStyleName
  pyramid: PyramidOptions
  /** How a region's bins are sampled; as RoIAlign does where absent. */
  pooling?: Pick<RoiAlignOptions, 'samplingRatio' | 'aligned'> | undefined
}

/** Maps of the backbone that enter the pyramid, and bins along the sides of regions. */
const [mapCount, boxBins, maskBins] = [4, 7, 14]

function mapsOf({ name, maps }: Backbone): readonly MapShape[] {
  const last = maps.slice(-mapCount)
  const doubling = last.every(({ stride }, i) => stride === last[0]!.stride * 2 ** i)
  if (last.length === mapCount && doubling) return last
  const strides = maps.map(({ stride }) => stride).join(', ')
  return fail(
    'CONFIG',
    `feature pyramid: expected ${mapCount} maps, each half as large as the one before, but ${name} has strides ${strides}`,
  )
}

/** The map of each region [R, 4], counted from the finest: larger regions are taken from coarser maps. */
export function levelsOf(
  boxes: Float64Array,
  maps: number,
  { canonical, levels }: Pick<PyramidOptions, 'canonical' | 'levels'>,
): Int32Array {
  return Int32Array.from({ length: boxes.length / 4 }, (_, i) => {
    const side = Math.sqrt((boxes[4 * i + 2]! - boxes[4 * i]!) * (boxes[4 * i + 3]! - boxes[4 * i + 1]!))
    const level = {
      detectron2: () => 2 + Math.log2(side / canonical + 1e-8),
      mmdet: () => Math.log2((4 * side) / canonical + 1e-6),
      torchvision: () => 2 + Math.log2(side / canonical) + 1e-6,
    }[levels]()
    return Math.min(maps - 1, Math.max(0, Math.floor(level)))
  })
}

/** A detector on a feature pyramid over a backbone, which becomes part of it. */
export class MaskRcnn implements Detector {
  readonly form = 'fpn'
  readonly #neck: FeaturePyramid
  readonly #rpn: ProposalHead
  readonly #box: BoxHead
  readonly #mask: MaskHead
  readonly #maps: readonly MapShape[]

  /** Throws CONFIG for a backbone without four maps, or anchors that are not one size for each map of the pyramid. */
  constructor(
    build: Build,
    readonly backbone: Backbone,
    readonly options: MaskRcnnOptions,
  ) {
    const { classes, anchors, init, pyramid } = options
    const { channels, width, norm, boxConvolutions, boxLinears, maskConvolutions } = pyramid
    this.#maps = mapsOf(backbone)
    if (anchors.sizes.length !== mapCount + 1)
      fail(
        'CONFIG',
        `anchors of a feature pyramid: expected ${mapCount + 1} sizes, one for each map, but received ${anchors.sizes.join(', ')}`,
      )
    const fill = init === 'detectron2' ? kaimingUniform : xavierUniform
    this.#neck = new FeaturePyramid(build, { inputs: this.#maps.map((map) => map.channels), channels, fill, norm })
    this.#rpn = new ProposalHead(build, channels, anchors.ratios.length)
    this.#box = new BoxHead(build, {
      classes,
      channels,
      size: boxBins,
      convolutions: boxConvolutions,
      linears: boxLinears,
      width,
      norm,
      fill,
    })
    const maskFill = init === 'detectron2' ? normal(0.001) : kaimingNormal('fanOut')
    this.#mask = new MaskHead(build, { classes, channels, convolutions: maskConvolutions, norm, fill: maskFill })
  }

  features(images: Tensor, mode: NormMode): Tensor[] {
    const own = this.options.pyramid.frozen === true ? evaluation : mode
    return scope(() => this.#neck.forward(this.backbone.stages(this.backbone.input(images), own).slice(-mapCount), mode))
  }

  get cells(): AnchorOptions[] {
    const { sizes, ...shape } = this.options.anchors
    return sizes.map((size, i) => ({ ...shape, sizes: [size], stride: this.#maps[0]!.stride * 2 ** i }))
  }

  get pooling(): RegionPooling {
    const { canonical, levels: rule } = this.options.pyramid
    const strides = this.#maps.map(({ stride }) => stride)
    return { strides, bins: boxBins, maskBins, levels: { canonical, rule }, ...this.options.pooling }
  }

  anchors(features: readonly Tensor[], images: Tensor): Float64Array[] {
    const { cells } = this
    return features.map((map, i) => anchorsOfMap(cells[i]!, map, images))
  }

  propose(features: readonly Tensor[]): Proposed[] {
    return features.map((map) => this.#rpn.forward(map))
  }

  classify(features: readonly Tensor[], regions: Regions, mode: NormMode): Classified {
    return scope(() => this.classifyBins(this.#pool(features, regions, boxBins), mode))
  }

  classifyBins(bins: Tensor, mode: NormMode): Classified {
    return this.#box.forward(bins, mode)
  }

  masks(features: readonly Tensor[], regions: Regions, mode: NormMode): Tensor {
    return scope(() => this.maskBins(this.#pool(features, regions, maskBins), mode))
  }

  maskBins(bins: Tensor, mode: NormMode): Tensor {
    return this.#mask.forward(bins, mode)
  }

  /** The bins [R, size, size, C] of regions, each of the map that fits it: maps one after the other, then in the order of the regions. */
  #pool(features: readonly Tensor[], { boxes, images }: Regions, size: number): Tensor {
    const levels = levelsOf(boxes, mapCount, this.options.pyramid)
    const rowsOf = this.#maps.map((_, level) => [...levels.keys()].filter((row) => levels[row] === level))
    const parts = rowsOf.flatMap((rows, level) => {
      if (rows.length === 0) return []
      const map = features[level]!
      const own = Float64Array.from(rows.flatMap((row) => [...boxes.subarray(4 * row, 4 * row + 4)]))
      const of = Int32Array.from(rows, (row) => images[row]!)
      const corners = Tensor.from(own, [rows.length, 4], accumulator(map.dtype))
      const options = { size, scale: 1 / this.#maps[level]!.stride, ...this.options.pooling }
      return [roiAlign(map, corners, Tensor.from(of, [rows.length], 'i32'), options)]
    })
    if (parts.length === 1) return parts[0]!
    const place = new Int32Array(levels.length)
    rowsOf.flat().forEach((row, at) => {
      place[row] = at
    })
    return gather(concat(parts, 0), Tensor.from(place, [place.length], 'i32'))
  }

  dispose(): void {
    disposeHeads(this)
  }

  state(): State {
    const state = emptyState()
    include(state, 'backbone', this.backbone.state())
    this.#neck.include(state)
    this.#rpn.include(state)
    this.#box.include(state)
    this.#mask.include(state)
    return state
  }
}
