import { runNative } from '../tensor/native.js'
import type { Tensor } from '../tensor/tensor.js'
import { matricesAndKernels, Optimizer, type ParameterFilter, type UpdateTensors } from './optimizer.js'

/** Settings of Lars. */
export interface LarsOptions {
  /** 0.9 */
  momentum?: number
  /** L2 penalty on the adapted parameters, 1e-6 as SimCLR trains. */
  weightDecay?: number
  /** The trust coefficient, 0.001. */
  trust?: number
  /** What has weight decay and a local rate: all but biases and norms. */
  adapts?: ParameterFilter
}

/**
 * Layer-wise adaptive rate scaling (You, Gitman and Ginsburg, arXiv:1708.03888) in the form of SimCLR: with g the gradient and its
 * weight decay, v = momentum * v + rate * trust * |p| / |g| * g, p -= v. Where one of the norms is 0, and for parameters that are not
 * adapted, the local rate is 1.
 */
export class Lars extends Optimizer {
  readonly momenta: Map<string, Tensor>
  readonly options: Required<LarsOptions>
  readonly #adapted: number[]

  constructor(parameters: Map<string, Tensor>, options: LarsOptions = {}, copies?: Map<string, Tensor>) {
    const all = { momentum: 0.9, weightDecay: 1e-6, trust: 0.001, adapts: matricesAndKernels, ...options }
    super('lars', parameters, copies, {
      momenta: { momentum: all.momentum },
      positive: { trust: all.trust },
      notNegative: { weightDecay: all.weightDecay },
    })
    this.options = all
    this.momenta = this.zeros()
    this.#adapted = [...parameters].map((entry) => Number(this.options.adapts(...entry)))
  }

  state(): Map<string, Tensor> {
    return this.momenta
  }

  protected run(tensors: UpdateTensors, averageMomentum: number): void {
    const { momentum, weightDecay, trust } = this.options
    const numbers = { adapted: this.#adapted, momentum, weightDecay, trust, averageMomentum }
    runNative('lars', { ...tensors, momenta: [...this.momenta.values()] }, numbers)
  }
}
