import { batchNorm } from '../ops/batchNorm.js'
import { conv2d, type Conv2dOptions } from '../ops/conv2d.js'
import { linear } from '../ops/linear.js'
import { type FloatDType, sizeOf, Tensor } from '../tensor/tensor.js'
import { emptyState, type State } from './module.js'
import type { Random } from './random.js'

/**
 * How weights are drawn (densecl-spec 1.7). `original`: Kaiming normal by fan-in for convolutions of the backbone and linear
 * layers of the neck, zero biases. `mmselfsup`: Kaiming normal by fan-out for the backbone, PyTorch's default for the neck.
 */
export type Initialization = 'original' | 'mmselfsup'

export type Fill = (random: Random, shape: readonly number[]) => ArrayLike<number>

const fanIn = (shape: readonly number[]): number => sizeOf(shape.slice(1))

/** Standard deviation sqrt(2 / fan), the gain of ReLU (He et al., arXiv:1502.01852). */
export function kaimingNormal(mode: 'fanIn' | 'fanOut'): Fill {
  return (random, shape) => {
    const fan = mode === 'fanIn' ? fanIn(shape) : shape[0]! * sizeOf(shape.slice(1, -1))
    const deviation = Math.sqrt(2 / fan)
    return Float64Array.from({ length: sizeOf(shape) }, () => deviation * random.normal())
  }
}

/** PyTorch's default of Linear and Conv2d: U(-1/sqrt(fan in), 1/sqrt(fan in)), for the bias with the weight's fan. */
export function frameworkDefault(fan?: number): Fill {
  return (random, shape) => {
    const bound = 1 / Math.sqrt(fan ?? fanIn(shape))
    return Float64Array.from({ length: sizeOf(shape) }, () => random.uniform(-bound, bound))
  }
}

const zeros: Fill = (_, shape) => new Float64Array(sizeOf(shape))

function draw(random: Random, shape: readonly number[], fill: Fill, dtype: FloatDType): Tensor {
  return Tensor.from(fill(random, shape), shape, dtype).keep()
}

export interface Build {
  random: Random
  dtype: FloatDType
}

export class Conv2d {
  readonly weight: Tensor
  readonly bias: Tensor | undefined

  constructor(
    { random, dtype }: Build,
    inputs: number,
    outputs: number,
    readonly kernel: number,
    readonly options: Conv2dOptions & { fill: Fill; bias?: Fill },
  ) {
    this.weight = draw(random, [outputs, kernel, kernel, inputs], options.fill, dtype)
    this.bias = options.bias === undefined ? undefined : draw(random, [outputs], options.bias, dtype)
  }

  forward(x: Tensor): Tensor {
    return conv2d(x, this.weight, this.bias, this.options)
  }

  state(): State {
    const state = emptyState()
    state.parameters.set('weight', this.weight)
    if (this.bias !== undefined) state.parameters.set('bias', this.bias)
    return state
  }
}

export class Linear {
  readonly weight: Tensor
  readonly bias: Tensor

  constructor({ random, dtype }: Build, inputs: number, outputs: number, fill: Fill, bias: Fill = zeros) {
    this.weight = draw(random, [outputs, inputs], fill, dtype)
    this.bias = draw(random, [outputs], bias, dtype)
  }

  forward(x: Tensor): Tensor {
    return linear(x, this.weight, this.bias)
  }

  state(): State {
    const state = emptyState()
    state.parameters.set('weight', this.weight).set('bias', this.bias)
    return state
  }
}

/** How batch norm behaves in a forward pass: by the batch in groups, or by the running statistics. */
export type NormMode = { train: true; groups: number } | { train: false }
export const evaluation: NormMode = { train: false }

export class BatchNorm2d {
  readonly weight: Tensor
  readonly bias: Tensor
  readonly runningMean: Tensor
  readonly runningVar: Tensor
  /** PyTorch's counter; it takes part in nothing but is written to checkpoints. */
  readonly batches: Tensor

  constructor({ dtype }: Build, channels: number) {
    this.weight = Tensor.full([channels], 1, dtype).keep()
    this.bias = Tensor.zeros([channels], dtype).keep()
    this.runningMean = Tensor.zeros([channels], dtype).keep()
    this.runningVar = Tensor.full([channels], 1, dtype).keep()
    this.batches = Tensor.zeros([], 'i32').keep()
  }

  /** Batch norm, then the residual is added, then ReLU. */
  forward(x: Tensor, mode: NormMode, options: { relu?: boolean; residual?: Tensor | undefined } = {}): Tensor {
    if (mode.train) this.batches.write(Int32Array.of(this.batches.item() + 1))
    return batchNorm(x, this.weight, this.bias, this.runningMean, this.runningVar, { ...mode, ...options })
  }

  state(): State {
    const state = emptyState()
    state.parameters.set('weight', this.weight).set('bias', this.bias)
    state.buffers.set('running_mean', this.runningMean).set('running_var', this.runningVar).set('num_batches_tracked', this.batches)
    return state
  }
}
