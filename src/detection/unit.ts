/** A layer of the heads and of the pyramid: a convolution with a batch norm, or with a bias instead. */
import { relu } from '../ops/elementwise.js'
import { BatchNorm2d, type Build, Conv2d, convNorm, type Fill, type NormMode, zeros } from '../nn/layers.js'
import { emptyState, include, type Module, type State } from '../nn/module.js'
import { scope, sizeOf, type Tensor } from '../tensor/tensor.js'

/** What a Unit is built with. */
export interface UnitOptions {
  /** Sides of the kernel, which is padded to keep the size of a map. */
  kernel: number
  fill: Fill
  /** Whether it has a batch norm; a bias that begins as zero otherwise. */
  norm: boolean
}

/** A convolution of stride 1 with a batch norm or a bias. */
export class Unit implements Module {
  readonly #conv: Conv2d
  readonly #norm: BatchNorm2d | undefined

  constructor(build: Build, inputs: number, outputs: number, { kernel, fill, norm }: UnitOptions) {
    const padding = (kernel - 1) / 2
    this.#conv = new Conv2d(build, inputs, outputs, kernel, { padding, fill, ...(norm ? {} : { bias: zeros }) })
    this.#norm = norm ? new BatchNorm2d(build, outputs) : undefined
  }

  /** x [N, h, w, inputs] to [N, h, w, outputs], with a ReLU where told. */
  forward(x: Tensor, mode: NormMode, { relu: rectified }: { relu: boolean }): Tensor {
    if (this.#norm !== undefined) return convNorm(this.#conv, this.#norm, x, mode, { relu: rectified })
    return scope(() => (rectified ? relu(this.#conv.forward(x)) : this.#conv.forward(x)))
  }

  /** Parameters and buffers under mmdetection's names, `conv` and `bn`. */
  state(): State {
    const state = emptyState()
    include(state, 'conv', this.#conv.state())
    if (this.#norm !== undefined) include(state, 'bn', this.#norm.state())
    return state
  }
}

/** Uniform deviates whose bound is the root of `over` by a fan. */
const uniform =
  (over: number, fan: (shape: readonly number[]) => number): Fill =>
  (random, shape) => {
    const bound = Math.sqrt(over / fan(shape))
    return Float64Array.from({ length: sizeOf(shape) }, () => random.uniform(-bound, bound))
  }

const fanIn = (shape: readonly number[]): number => sizeOf(shape.slice(1))
const fanOut = (shape: readonly number[]): number => shape[0]! * sizeOf(shape.slice(1, -1))

/** detectron2's way for the pyramid and the first linear layer: U(-sqrt(3 / fan in), sqrt(3 / fan in)). */
export const kaimingUniform: Fill = uniform(3, fanIn)
/** mmdetection's way (Glorot and Bengio, 2010): U(-sqrt(6 / (fan in + fan out)), sqrt(6 / (fan in + fan out))). */
export const xavierUniform: Fill = uniform(6, (shape) => fanIn(shape) + fanOut(shape))
