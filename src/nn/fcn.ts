/**
 * FCN (Shelhamer et al., arXiv:1605.06211) as mmsegmentation builds it on a dilated backbone (R50-D8), and its names: `backbone`,
 * `decode_head` on the last map, `auxiliary_head` on the one before (docs/method.md, Segmentation).
 */
import { add, mul } from '../ops/arithmetic.js'
import { concat } from '../ops/concat.js'
import { dropout, scale } from '../ops/elementwise.js'
import { crossEntropy } from '../ops/losses.js'
import { resizeBilinear } from '../ops/resizeBilinear.js'
import { slice } from '../ops/slice.js'
import { fail } from '../tensor/errors.js'
import { scope, sizeOf, Tensor } from '../tensor/tensor.js'
import type { Backbone } from './backbone.js'
import { BatchNorm2d, type Build, Conv2d, convNorm, kaimingNormal, type NormMode, training } from './layers.js'
import { emptyState, include, type State } from './module.js'

interface HeadOptions {
  inputs: number
  channels: number
  convolutions: number
  /** The input joins the last of them in front of one more convolution. */
  concatInput: boolean
  classes: number
  dropout: number
}

class FcnHead {
  readonly #units: { conv: Conv2d; norm: BatchNorm2d }[]
  readonly #join: { conv: Conv2d; norm: BatchNorm2d } | undefined
  readonly #classify: Conv2d
  readonly #dropout: number

  constructor(build: Build, { inputs, channels, convolutions, concatInput, classes, dropout: probability }: HeadOptions) {
    const unit = (from: number): { conv: Conv2d; norm: BatchNorm2d } => ({
      conv: new Conv2d(build, from, channels, 3, { padding: 1, fill: kaimingNormal('fanOut') }),
      norm: new BatchNorm2d(build, channels),
    })
    this.#units = Array.from({ length: convolutions }, (_, i) => unit(i === 0 ? inputs : channels))
    this.#join = concatInput ? unit(inputs + channels) : undefined
    const fill = (random: { normal(): number }, shape: readonly number[]): Float64Array =>
      Float64Array.from({ length: sizeOf(shape) }, () => 0.01 * random.normal())
    this.#classify = new Conv2d(build, channels, classes, 1, { fill, bias: (_, shape) => new Float64Array(sizeOf(shape)) })
    this.#dropout = probability
  }

  /** x [N, h, w, inputs] to logits [N, h, w, classes]; with a seed, channels are dropped. */
  forward(x: Tensor, mode: NormMode, seed?: number): Tensor {
    return scope(() => {
      const deep = this.#units.reduce((y, { conv, norm }) => convNorm(conv, norm, y, mode, { relu: true }), x)
      const joined = this.#join === undefined ? deep : convNorm(this.#join.conv, this.#join.norm, concat([x, deep]), mode, { relu: true })
      const kept = seed === undefined || this.#dropout === 0 ? joined : droppedChannels(joined, this.#dropout, seed, mode)
      return this.#classify.forward(kept)
    })
  }

  state(): State {
    const state = emptyState()
    const unit = (name: string, { conv, norm }: { conv: Conv2d; norm: BatchNorm2d }): void => {
      include(state, `${name}.conv`, conv.state())
      include(state, `${name}.bn`, norm.state())
    }
    include(state, 'conv_seg', this.#classify.state())
    this.#units.forEach((part, i) => unit(`convs.${i}`, part))
    if (this.#join !== undefined) unit('conv_cat', this.#join)
    return state
  }
}

/** Dropped channels are drawn for all images of a batch: where processes share it, each has those of its own. */
function droppedChannels(x: Tensor, probability: number, seed: number, mode: NormMode): Tensor {
  const { across } = mode.train ? mode : {}
  if (across === undefined || across.size === 1) return dropout(x, probability, seed, { whole: true })
  const [images, channels] = [x.shape[0]!, x.shape[3]!]
  const ones = Tensor.full([across.size * images, 1, 1, channels], 1, x.dtype)
  const first = across.rank * images
  return mul(x, slice(dropout(ones, probability, seed, { whole: true }), [[first, first + images]]))
}

/** What an Fcn is built with. */
export interface FcnOptions {
  classes: number
  alignCorners: boolean
  /** Probability that a channel in front of the classifier is dropped. */
  dropout?: number
}

/** A fully convolutional network for segmentation: a backbone, its head and the auxiliary head (docs/method.md, Segmentation). */
export class Fcn {
  readonly #head: FcnHead
  readonly #auxiliary: FcnHead
  readonly classes: number

  /** Heads of a quarter and an eighth of the backbone's channels: 512 and 256 of 2048. The backbone is then the network's own. */
  constructor(
    build: Build,
    readonly backbone: Backbone,
    readonly options: FcnOptions,
  ) {
    const { classes, dropout: probability = 0.1 } = options
    const inputs = backbone.channels
    const before =
      backbone.maps.at(-2) ?? fail('ARGUMENT', `fcn: expected a backbone of two maps at least but received ${backbone.name} of one`)
    this.classes = classes
    this.#head = new FcnHead(build, {
      inputs,
      channels: Math.ceil(inputs / 4),
      convolutions: 2,
      concatInput: true,
      classes,
      dropout: probability,
    })
    this.#auxiliary = new FcnHead(build, {
      inputs: before.channels,
      channels: Math.ceil(inputs / 8),
      convolutions: 1,
      concatInput: false,
      classes,
      dropout: probability,
    })
  }

  /** x [N, H, W, 3] to logits [N, H, W, classes], with running statistics; of bf16 maps they are f32, so that fewer are equal. */
  logits(x: Tensor): Tensor {
    return scope(() => {
      const logits = this.#head.forward(this.backbone.forward(x, { train: false }), { train: false })
      return resizeBilinear(logits.dtype === 'bf16' ? logits.to('f32') : logits, sizeOfImage(x), this.options)
    })
  }

  /**
   * Cross-entropy of both heads, the auxiliary one with weight 0.4, for labels i32 [N, H, W], of which 255 stands for none. As
   * mmsegmentation takes it, the mean is over all pixels, those without a label counting as 0: `labelled` is the share of the others.
   */
  loss(
    x: Tensor,
    labels: Tensor,
    labelled: number,
    seed?: number,
    mode: NormMode = training,
  ): { total: Tensor; main: Tensor; auxiliary: Tensor } {
    return scope(() => {
      const [third, last] = this.backbone.stages(x, mode).slice(-2) as [Tensor, Tensor]
      const of = (head: FcnHead, map: Tensor, weight: number, own: number | undefined): Tensor =>
        scale(
          crossEntropy(resizeBilinear(head.forward(map, mode, own), sizeOfImage(x), this.options), labels, { ignoreIndex: 255 }),
          weight * labelled,
        )
      const main = of(this.#head, last, 1, seed === undefined ? undefined : 2 * seed)
      const auxiliary = of(this.#auxiliary, third, 0.4, seed === undefined ? undefined : 2 * seed + 1)
      return { total: add(main, auxiliary), main, auxiliary }
    })
  }

  /** Parameters and buffers under the names of mmsegmentation. */
  state(): State {
    const state = emptyState()
    include(state, 'backbone', this.backbone.state())
    include(state, 'decode_head', this.#head.state())
    include(state, 'auxiliary_head', this.#auxiliary.state())
    return state
  }
}

const sizeOfImage = (x: Tensor): [number, number] => [x.shape[1]!, x.shape[2]!]
