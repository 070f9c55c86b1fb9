import { runNative } from '../tensor/native.js'
import type { Tensor } from '../tensor/tensor.js'
import { Optimizer, type UpdateTensors } from './optimizer.js'

/** Settings of Sgd. */
export interface SgdOptions {
  momentum: number
  /** L2 penalty on every parameter, biases and batch norm too, as the original trains. */
  weightDecay: number
  nesterov?: boolean
}

/** Stochastic gradient descent with momentum, PyTorch's form: v = momentum * v + (g + decay * p), p -= rate * v. */
export class Sgd extends Optimizer {
  readonly momenta: Map<string, Tensor>

  constructor(
    parameters: Map<string, Tensor>,
    readonly options: SgdOptions,
    copies?: Map<string, Tensor>,
  ) {
    super('sgd', parameters, copies, { momenta: { momentum: options.momentum }, notNegative: { weightDecay: options.weightDecay } })
    this.momenta = this.zeros()
  }

  state(): Map<string, Tensor> {
    return this.momenta
  }

  protected run({ parameters, gradients, copies, averages, averageCopies, rate, foundInf }: UpdateTensors, averageMomentum: number): void {
    const { momentum, weightDecay, nesterov = false } = this.options
    const momenta = [...this.momenta.values()]
    runNative(
      'sgd',
      { rate, foundInf, parameters, gradients, momenta, copies, averages, averageCopies },
      { momentum, weightDecay, nesterov, averageMomentum },
    )
  }
}

/** Sets `foundInf` i32 [1] to 1 when one of `tensors` holds an infinity or NaN, on the device alone. */
export function checkFinite(foundInf: Tensor, tensors: readonly Tensor[]): void {
  runNative('checkFinite', { foundInf, tensors })
}
