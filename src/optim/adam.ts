import { runNative } from '../tensor/native.js'
import { Tensor } from '../tensor/tensor.js'
import { matricesAndKernels, Optimizer, type ParameterFilter, type UpdateTensors } from './optimizer.js'

/** Settings of Adam and AdamW. */
export interface AdamOptions {
  /** Momentum of the mean of gradients, 0.9. */
  beta1?: number
  /** Momentum of the mean of their squares, 0.999. */
  beta2?: number
  /** Added to the root of the mean of squares, above 0: 1e-8. */
  eps?: number
  /** 0 for Adam, 0.01 for AdamW. */
  weightDecay?: number
  /** What has weight decay: all parameters of Adam; of AdamW all but biases and norms. */
  decays?: ParameterFilter
}

/** What Adam and AdamW share; `decoupled` is what tells them apart. */
export class AdaptiveMoments extends Optimizer {
  readonly firstMoments: Map<string, Tensor>
  readonly secondMoments: Map<string, Tensor>
  /** i32 [1]: updates so far. */
  readonly steps: Tensor
  readonly options: Required<AdamOptions>
  readonly #decoupled: boolean
  readonly #decayed: number[]

  constructor(
    name: string,
    parameters: Map<string, Tensor>,
    options: AdamOptions & Required<Pick<AdamOptions, 'weightDecay' | 'decays'>>,
    copies: Map<string, Tensor> | undefined,
    decoupled: boolean,
  ) {
    const all = { beta1: 0.9, beta2: 0.999, eps: 1e-8, ...options }
    super(name, parameters, copies, {
      momenta: { beta1: all.beta1, beta2: all.beta2 },
      positive: { eps: all.eps },
      notNegative: { weightDecay: all.weightDecay },
    })
    this.options = all
    const [first] = parameters.values()
    this.firstMoments = this.zeros()
    this.secondMoments = this.zeros()
    this.steps = Tensor.zeros([1], 'i32', first?.device).keep()
    this.#decoupled = decoupled
    this.#decayed = [...parameters].map((entry) => Number(options.decays(...entry)))
  }

  state(): Map<string, Tensor> {
    const named = (moments: Map<string, Tensor>, what: string): [string, Tensor][] =>
      [...moments].map(([name, tensor]) => [`${name}.${what}`, tensor])
    return new Map([...named(this.firstMoments, 'first_moment'), ...named(this.secondMoments, 'second_moment'), ['steps', this.steps]])
  }

  protected run(tensors: UpdateTensors, averageMomentum: number): void {
    const { beta1, beta2, eps, weightDecay } = this.options
    const own = { firstMoments: [...this.firstMoments.values()], secondMoments: [...this.secondMoments.values()], steps: this.steps }
    const numbers = { decayed: this.#decayed, beta1, beta2, eps, weightDecay, decoupled: this.#decoupled, averageMomentum }
    runNative('adam', { ...tensors, ...own }, numbers)
  }
}

/**
 * Adam (Kingma and Ba, arXiv:1412.6980): p -= rate * m / (sqrt(v) + eps), with m and v the means of gradients and of their squares,
 * corrected for their start at zero. Weight decay is an L2 penalty, part of the gradient.
 */
export class Adam extends AdaptiveMoments {
  constructor(parameters: Map<string, Tensor>, options: AdamOptions = {}, copies?: Map<string, Tensor>) {
    super('adam', parameters, { ...options, weightDecay: options.weightDecay ?? 0, decays: options.decays ?? (() => true) }, copies, false)
  }
}

/** Adam with decoupled weight decay (Loshchilov and Hutter, arXiv:1711.05101): p -= rate * weightDecay * p beside Adam's step. */
export class AdamW extends AdaptiveMoments {
  constructor(parameters: Map<string, Tensor>, options: AdamOptions = {}, copies?: Map<string, Tensor>) {
    const { weightDecay = 0.01, decays = matricesAndKernels } = options
    super('adamw', parameters, { ...options, weightDecay, decays }, copies, true)
  }
}
