/** What Mask R-CNN (He et al., arXiv:1703.06870) does with the maps of its regions: classes and moves, and masks. */
import { convTranspose2d } from '../ops/convTranspose2d.js'
import { relu, reshape } from '../ops/elementwise.js'
import { permute } from '../ops/permute.js'
import { type Build, Conv2d, type Fill, kaimingNormal, Linear, type NormMode, zeros } from '../nn/layers.js'
import { emptyState, include, type State } from '../nn/module.js'
import { scope, sizeOf, Tensor } from '../tensor/tensor.js'
import { type Classified, normal } from './detector.js'
import { Unit } from './unit.js'

const he = kaimingNormal('fanOut')

/** What a BoxHead is built with. */
export interface BoxHeadOptions {
  classes: number
  channels: number
  /** Bins along each side of a region. */
  size: number
  /** Numbers of convolutions, and of linear layers of `width` behind them. */
  convolutions: number
  linears: number
  width: number
  norm: boolean
  /** How the linear layers begin. */
  fill: Fill
}

/** Convolutions, linear layers, then scores of the classes and of the background and four moves a class. */
export class BoxHead {
  readonly #convs: Unit[]
  readonly #linears: Linear[]
  readonly #cls: Linear
  readonly #reg: Linear

  constructor(build: Build, { classes, channels, size, convolutions, linears, width, norm, fill }: BoxHeadOptions) {
    this.#convs = Array.from({ length: convolutions }, () => new Unit(build, channels, channels, { kernel: 3, fill: he, norm }))
    this.#linears = Array.from({ length: linears }, (_, i) => new Linear(build, i === 0 ? channels * size * size : width, width, fill))
    this.#cls = new Linear(build, width, classes + 1, normal(0.01))
    this.#reg = new Linear(build, width, 4 * classes, normal(0.001))
  }

  /** Of the bins [R, S, S, C] of regions. */
  forward(pooled: Tensor, mode: NormMode): Classified {
    return scope(() => {
      const deep = this.#convs.reduce((x, conv) => conv.forward(x, mode, { relu: true }), pooled)
      // Linear layers of files take the bins of a channel together.
      const flat = reshape(permute(deep, [0, 3, 1, 2]), [deep.shape[0]!, sizeOf(deep.shape.slice(1))])
      const vector = this.#linears.reduce((x, linear) => relu(linear.forward(x)), flat)
      return { logits: this.#cls.forward(vector), deltas: this.#reg.forward(vector) }
    })
  }

  /** Adds parameters and buffers under mmdetection's names. */
  include(state: State): void {
    const head = 'roi_head.bbox_head'
    this.#convs.forEach((conv, i) => include(state, `${head}.shared_convs.${i}`, conv.state()))
    this.#linears.forEach((linear, i) => include(state, `${head}.shared_fcs.${i}`, linear.state()))
    include(state, `${head}.fc_cls`, this.#cls.state())
    include(state, `${head}.fc_reg`, this.#reg.state())
  }
}

/** What a MaskHead is built with. */
export interface MaskHeadOptions {
  classes: number
  channels: number
  convolutions: number
  norm: boolean
  /** How the map of each class begins. */
  fill: Fill
}

/** He's way of a transposed convolution as PyTorch counts its fan: inputs times the kernel. */
const heTransposed: Fill = (random, shape) => {
  const [, height = 1, width = 1, inputs = 1] = shape
  return normal(Math.sqrt(2 / (inputs * height * width)))(random, shape)
}

/** Convolutions, a transposed one that doubles the size, a map of each class. */
export class MaskHead {
  readonly #convs: Unit[]
  /** Only its weights: a transposed convolution applies them. */
  readonly #upsample: { weight: Tensor; bias: Tensor; copy: Tensor | undefined }
  readonly #logits: Conv2d

  constructor(build: Build, { classes, channels, convolutions, norm, fill }: MaskHeadOptions) {
    this.#convs = Array.from({ length: convolutions }, () => new Unit(build, channels, channels, { kernel: 3, fill: he, norm }))
    const { random, dtype, compute = dtype } = build
    const shape = [channels, 2, 2, channels]
    const weight = Tensor.drawn(() => heTransposed(random, shape), shape, dtype).keep()
    this.#upsample = {
      weight,
      bias: Tensor.zeros([channels], dtype).keep(),
      copy: compute === dtype ? undefined : weight.to(compute).keep(),
    }
    this.#logits = new Conv2d(build, channels, classes, 1, { fill, bias: zeros })
  }

  /** Bins [R, S, S, C] of regions to logits [R, 2S, 2S, classes]. */
  forward(pooled: Tensor, mode: NormMode): Tensor {
    return scope(() => {
      const deep = this.#convs.reduce((x, conv) => conv.forward(x, mode, { relu: true }), pooled)
      const { weight, bias, copy } = this.#upsample
      return this.#logits.forward(relu(convTranspose2d(deep, copy ?? weight, bias)))
    })
  }

  /** Adds parameters and buffers under mmdetection's names. */
  include(state: State): void {
    const head = 'roi_head.mask_head'
    this.#convs.forEach((conv, i) => include(state, `${head}.convs.${i}`, conv.state()))
    const { weight, bias, copy } = this.#upsample
    const upsample = emptyState()
    upsample.parameters.set('weight', weight).set('bias', bias)
    if (copy !== undefined) upsample.copies.set('weight', copy)
    include(state, `${head}.upsample`, upsample)
    include(state, `${head}.conv_logits`, this.#logits.state())
  }
}
