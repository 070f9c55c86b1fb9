import { fail } from '../tensor/errors.js'
import { runPositional } from '../tensor/native.js'
import { Tensor } from '../tensor/tensor.js'

export interface SgdOptions {
  momentum: number
  /** L2 penalty on every parameter, biases and batch norm too, as the original trains. */
  weightDecay: number
  nesterov?: boolean
}

/** A network whose parameters follow the trained ones as a moving average: average = momentum * average + (1 - momentum) * p. */
export interface Follower {
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
  step(gradients: readonly Tensor[], lr: number, options: { bad?: Tensor; follower?: Follower } = {}): void {
    this.setRate(lr)
    this.update(gradients, options)
  }

  /** The learning rate of the updates that follow; it lies on the device. */
  setRate(lr: number): void {
    this.#lr.write(this.#lr.dtype === 'f64' ? Float64Array.of(lr) : Float32Array.of(lr))
  }

  /**
   * One update in place with `gradients` in the order of the parameters, all tensors in one kernel. Nothing changes where
   * `bad` i32 [1] is not 0 (checkFinite). A follower is moved in the same pass, after the parameters.
   */
  update(gradients: readonly Tensor[], { bad, follower }: { bad?: Tensor; follower?: Follower } = {}): void {
    if (gradients.length !== this.parameters.size)
      fail('ARGUMENT', `sgd: expected ${this.parameters.size} gradients but received ${gradients.length}`)
    const { momentum, weightDecay, nesterov = false } = this.options
    const rows = [...this.parameters].map(([name, p], i) => [
      p,
      gradients[i]!,
      this.momenta.get(name)!,
      this.copies.get(name),
      follower?.parameters.get(name),
      follower?.copies.get(name),
    ])
    runPositional('sgd', [this.#lr, bad, ...rows.flat()], [momentum, weightDecay, Number(nesterov), follower?.momentum ?? 0])
  }

  dispose(): void {
    for (const tensor of this.momenta.values()) tensor.dispose()
    this.#lr.dispose()
  }
}

/** Sets `bad` i32 [1] to 1 when one of `tensors` holds an infinity or NaN, without a word to the host. */
export function checkFinite(bad: Tensor, tensors: readonly Tensor[]): void {
  runPositional('checkFinite', [bad, ...tensors])
}
