import { fail } from '../tensor/errors.js'
import { runNative } from '../tensor/native.js'
import { Tensor } from '../tensor/tensor.js'

export interface SgdOptions {
  momentum: number
  /** L2 penalty on every parameter, biases and batch norm too, as the original trains. */
  weightDecay: number
  nesterov?: boolean
}

/** Stochastic gradient descent with momentum, PyTorch's form: v = momentum * v + (g + decay * p), p -= lr * v. */
export class Sgd {
  readonly momenta: Map<string, Tensor>

  constructor(
    readonly parameters: Map<string, Tensor>,
    readonly options: SgdOptions,
  ) {
    this.momenta = new Map([...parameters].map(([name, p]) => [name, Tensor.zeros(p.shape, p.dtype).keep()]))
  }

  /** One update in place with `gradients` in the order of the parameters. */
  step(gradients: readonly Tensor[], lr: number): void {
    if (gradients.length !== this.parameters.size) fail('ARGUMENT', `sgd: expected ${this.parameters.size} gradients but received ${gradients.length}`)
    const { momentum, weightDecay, nesterov = false } = this.options
    runNative('sgd', [...this.parameters.values(), ...gradients, ...this.momenta.values()], [lr, momentum, weightDecay, Number(nesterov)])
  }

  dispose(): void {
    for (const tensor of this.momenta.values()) tensor.dispose()
  }
}
