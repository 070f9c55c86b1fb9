import { fail } from '../tensor/errors.js'
import { runPositional } from '../tensor/native.js'
import { Tensor } from '../tensor/tensor.js'

export interface SgdOptions {
  momentum: number
  /** L2 penalty on every parameter, biases and batch norm too, as the original trains. */
  weightDecay: number
  nesterov?: boolean
}

/** The target of an exponential moving average (the key encoder of MoCo): target = momentum * target + (1 - momentum) * p. */
export interface EmaTarget {
  parameters: Map<string, Tensor>
  copies: Map<string, Tensor>
  momentum: number
}

/** Stochastic gradient descent with momentum, PyTorch's form: v = momentum * v + (g + decay * p), p -= lr * v. */
export class Sgd {
  readonly momenta: Map<string, Tensor>
  readonly #lr: Tensor

  /** `copies` are bf16 forms of parameters, by name, that are written along with them. */
  constructor(
    readonly parameters: Map<string, Tensor>,
    readonly options: SgdOptions,
    readonly copies: Map<string, Tensor> = new Map(),
  ) {
    const [first] = parameters.values()
    this.momenta = new Map([...parameters].map(([name, p]) => [name, Tensor.zeros(p.shape, p.dtype, p.device).keep()]))
    this.#lr = Tensor.zeros([1], first?.dtype, first?.device).keep()
  }

  /** setRate, then update. */
  step(gradients: readonly Tensor[], lr: number, options: { foundInf?: Tensor; emaTarget?: EmaTarget } = {}): void {
    this.setRate(lr)
    this.update(gradients, options)
  }

  /** The learning rate of the updates that follow; it lies on the device. */
  setRate(lr: number): void {
    this.#lr.write(this.#lr.dtype === 'f64' ? Float64Array.of(lr) : Float32Array.of(lr))
  }

  /**
   * One update in place with `gradients` in the order of the parameters, all tensors in one kernel. Nothing changes where
   * `foundInf` i32 [1] is not 0 (checkFinite). The EMA target is moved in the same pass, after the parameters.
   */
  update(gradients: readonly Tensor[], { foundInf, emaTarget }: { foundInf?: Tensor; emaTarget?: EmaTarget } = {}): void {
    if (gradients.length !== this.parameters.size)
      fail('ARGUMENT', `sgd: expected ${this.parameters.size} gradients but received ${gradients.length}`)
    const { momentum, weightDecay, nesterov = false } = this.options
    const rows = [...this.parameters].map(([name, p], i) => [
      p,
      gradients[i]!,
      this.momenta.get(name)!,
      this.copies.get(name),
      emaTarget?.parameters.get(name),
      emaTarget?.copies.get(name),
    ])
    runPositional('sgd', [this.#lr, foundInf, ...rows.flat()], [momentum, weightDecay, Number(nesterov), emaTarget?.momentum ?? 0])
  }

  dispose(): void {
    for (const tensor of this.momenta.values()) tensor.dispose()
    this.#lr.dispose()
  }
}

/** Sets `foundInf` i32 [1] to 1 when one of `tensors` holds an infinity or NaN, on the device alone. */
export function checkFinite(foundInf: Tensor, tensors: readonly Tensor[]): void {
  runPositional('checkFinite', [foundInf, ...tensors])
}
