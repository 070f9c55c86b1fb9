import type { Group } from '../distributed/group.js'
import { batchNorm, type BatchNormOptions } from '../ops/batchNorm.js'
import { conv2d, conv2dForNorm, type ConvolutionForNorm } from '../ops/conv2d.js'
import { conv2dNorm, type RunningNorm } from '../ops/conv2dNorm.js'
import { layerNorm } from '../ops/layerNorm.js'
import { linear } from '../ops/linear.js'
import type { Conv2dOptions } from '../ops/windows.js'
import { onEveryRun } from '../tensor/graph.js'
import { numbersOf } from '../tensor/numbers.js'
import { type FloatDType, scope, sizeOf, Tensor } from '../tensor/tensor.js'
import { emptyState, type State } from './module.js'
import type { Random } from '../tensor/random.js'

/**
 * How weights are drawn (docs/method.md, Initialisation). `original`: Kaiming normal by fan-in for convolutions of the backbone and linear
 * layers of the neck, zero biases. `mmselfsup`: Kaiming normal by fan-out for the backbone, PyTorch's default for the neck.
 */
export type Initialization = 'original' | 'mmselfsup'

/** Draws the initial values of a parameter of a shape, row-major. */
export type Fill = (random: Random, shape: readonly number[]) => ArrayLike<number>

const drawn = (shape: readonly number[], of: () => number): Float64Array => numbersOf(`a parameter [${shape.join(',')}]`, sizeOf(shape), of)
const fanIn = (shape: readonly number[]): number => sizeOf(shape.slice(1))

/** Standard deviation sqrt(2 / fan), the gain of ReLU (He et al., arXiv:1502.01852). */
export function kaimingNormal(mode: 'fanIn' | 'fanOut'): Fill {
  return (random, shape) => {
    const fan = mode === 'fanIn' ? fanIn(shape) : shape[0]! * sizeOf(shape.slice(1, -1))
    const deviation = Math.sqrt(2 / fan)
    return drawn(shape, () => deviation * random.normal())
  }
}

/** PyTorch's default of Linear and Conv2d: U(-1/sqrt(fan in), 1/sqrt(fan in)), for the bias with the weight's fan. */
export function frameworkDefault(fan?: number): Fill {
  return (random, shape) => {
    const bound = 1 / Math.sqrt(fan ?? fanIn(shape))
    return drawn(shape, () => random.uniform(-bound, bound))
  }
}

/** Zeros, as biases begin. */
export const zeros: Fill = (_, shape) => drawn(shape, () => 0)

/** What layers are made with: the stream that their weights are drawn from, and dtypes. */
export interface Build {
  random: Random
  /** The dtype of parameters and statistics. */
  dtype: FloatDType
  /** The dtype of activations, and of weights as they meet them; `dtype` when absent, bf16 for mixed precision. */
  compute?: FloatDType | undefined
  /**
   * Whether weights have copies in the dtype of the activations, true by default. Else products round weights as they read them, which is
   * less memory where weights change as often as they are used.
   */
  keepsCopies?: boolean
  /** Weights are not drawn, since all of them are going to be written: what they hold until then is nothing to rely on. */
  unset?: boolean
}

function draw({ random, dtype, unset = false }: Build, shape: readonly number[], fill: Fill): Tensor {
  if (unset) return Tensor.empty(shape, dtype).keep()
  return Tensor.drawn(() => fill(random, shape), shape, dtype).keep()
}

/** A weight with its copy in the dtype of the activations, where that is another and copies are kept. */
class Operand {
  readonly copy: Tensor | undefined

  constructor(
    { dtype, compute = dtype, keepsCopies = true }: Build,
    readonly weight: Tensor,
  ) {
    if (compute !== dtype && keepsCopies) this.copy = weight.to(compute).keep()
  }

  /** What products take. */
  get value(): Tensor {
    return this.copy ?? this.weight
  }

  /** Its state, with that of a bias. */
  state(bias?: Tensor): State {
    const state = emptyState()
    state.parameters.set('weight', this.weight)
    if (this.copy !== undefined) state.copies.set('weight', this.copy)
    if (bias !== undefined) state.parameters.set('bias', bias)
    return state
  }
}

/** A convolution with square kernels; weights are drawn by `fill`, Kaiming normal by default, and a bias where `bias` says how. */
export class Conv2d {
  readonly weight: Tensor
  readonly bias: Tensor | undefined
  readonly #operand: Operand

  constructor(
    build: Build,
    inputs: number,
    outputs: number,
    readonly kernel: number,
    readonly options: Conv2dOptions & { fill?: Fill; bias?: Fill } = {},
  ) {
    const { groups = 1, fill = kaimingNormal('fanIn') } = options
    this.weight = draw(build, [outputs, kernel, kernel, inputs / groups], fill)
    this.#operand = new Operand(build, this.weight)
    this.bias = options.bias === undefined ? undefined : draw(build, [outputs], options.bias)
  }

  /** The layer applied to x. */
  forward(x: Tensor): Tensor {
    return conv2d(x, this.#operand.value, this.bias, this.options)
  }

  /** @internal forward, and statistics of the result for the batch norm that follows, where the device gives them for free. */
  forwardForNorm(x: Tensor, groups: number): ConvolutionForNorm {
    return conv2dForNorm(x, this.#operand.value, this.options, groups)
  }

  /** @internal forward, and the norm by running statistics of the result. */
  forwardNormed(x: Tensor, norm: RunningNorm, options: Pick<BatchNormOptions, 'relu' | 'residual' | 'pooled'>): Tensor {
    return conv2dNorm(x, this.#operand.value, norm, { ...this.options, ...options })
  }

  /** Parameters and buffers by name. */
  state(): State {
    return this.#operand.state(this.bias)
  }
}

/** A linear layer with bias; weights are drawn by `fill`, Kaiming normal by default, biases are zeros by default. */
export class Linear {
  readonly weight: Tensor
  readonly bias: Tensor
  readonly #operand: Operand

  constructor(build: Build, inputs: number, outputs: number, fill = kaimingNormal('fanIn'), bias = zeros) {
    this.weight = draw(build, [outputs, inputs], fill)
    this.#operand = new Operand(build, this.weight)
    this.bias = draw(build, [outputs], bias)
  }

  /** The layer applied to x. */
  forward(x: Tensor): Tensor {
    return linear(x, this.#operand.value, this.bias)
  }

  /** Parameters and buffers by name. */
  state(): State {
    return this.#operand.state(this.bias)
  }
}

/** Layer norm over the channels of each position, or of each row. */
export class LayerNorm {
  readonly weight: Tensor
  readonly bias: Tensor

  constructor(
    { dtype }: Build,
    channels: number,
    readonly eps = 1e-5,
  ) {
    this.weight = Tensor.full([channels], 1, dtype).keep()
    this.bias = Tensor.zeros([channels], dtype).keep()
  }

  /** The layer applied to x. */
  forward(x: Tensor): Tensor {
    return layerNorm(x, this.weight, this.bias, { eps: this.eps })
  }

  /** Parameters and buffers by name. */
  state(): State {
    const state = emptyState()
    state.parameters.set('weight', this.weight).set('bias', this.bias)
    return state
  }
}

/**
 * How batch norm behaves in a forward pass: by the batch in groups, whose share in the running statistics is `momentum` (0.1), or by these.
 * One group may be that of the batches of several processes (`across`). Without gradients `maps` keeps what only convolutions read in E4M3
 * where the device multiplies it.
 */
export type NormMode = { train: true; groups: number; momentum?: number; across?: Group; maps?: 'e4m3' } | { train: false }
/** The mode in which batch norm takes its running statistics. */
export const evaluation: NormMode = { train: false }
/** The mode in which batch norm takes the statistics of the whole batch. */
export const training: NormMode = { train: true, groups: 1 }
/** The mode in which batch norm takes the statistics of a batch that processes share. */
export const trainingAcross = (across: Group): NormMode => ({ train: true, groups: 1, across })

/** Batch norm over the channels of NHWC maps, with its running statistics. */
export class BatchNorm2d {
  readonly weight: Tensor
  readonly bias: Tensor
  readonly runningMean: Tensor
  readonly runningVar: Tensor
  /** PyTorch's counter; it takes part in nothing but is written to checkpoints. Kept by the host. */
  readonly batches: Tensor

  constructor({ dtype }: Build, channels: number) {
    this.weight = Tensor.full([channels], 1, dtype).keep()
    this.bias = Tensor.zeros([channels], dtype).keep()
    this.runningMean = Tensor.zeros([channels], dtype).keep()
    this.runningVar = Tensor.full([channels], 1, dtype).keep()
    this.batches = Tensor.zeros([], 'i32', 'cpu').keep()
  }

  /** Batch norm, then the residual is added, then ReLU. */
  forward(
    x: Tensor,
    mode: NormMode,
    options: Pick<BatchNormOptions, 'relu' | 'residual' | 'statistics' | 'pooled' | 'convolved'> = {},
  ): Tensor {
    if (mode.train) onEveryRun(() => this.batches.write(Int32Array.of(this.batches.item() + 1)))
    return batchNorm(x, this.weight, this.bias, this.runningMean, this.runningVar, { ...mode, ...options })
  }

  /** Parameters and buffers by name. */
  state(): State {
    const state = emptyState()
    state.parameters.set('weight', this.weight).set('bias', this.bias)
    state.buffers.set('running_mean', this.runningMean).set('running_var', this.runningVar).set('num_batches_tracked', this.batches)
    return state
  }
}

/** A convolution without bias, its batch norm, then the residual and ReLU. */
export function convNorm(
  conv: Conv2d,
  norm: BatchNorm2d,
  x: Tensor,
  mode: NormMode,
  options: Pick<BatchNormOptions, 'relu' | 'residual' | 'pooled' | 'convolved'> = {},
): Tensor {
  return scope(() => {
    if (!mode.train) return conv.forwardNormed(x, norm, options)
    const { y, statistics } = conv.forwardForNorm(x, mode.groups)
    return norm.forward(y, mode, { ...options, statistics })
  })
}
