/** What optimisers share: the learning rate on the device, the order of gradients, and what they leave alone. */
import { fail } from '../tensor/errors.js'
import { describe, Tensor } from '../tensor/tensor.js'

/** The target of an exponential moving average (the key encoder of MoCo): target = momentum * target + (1 - momentum) * p. */
export interface EmaTarget {
  parameters: Map<string, Tensor>
  copies: Map<string, Tensor>
  momentum: number
}

/** What an update may take beside the gradients. */
export interface UpdateOptions {
  /** i32 [1]: nothing changes where it is not 0 (checkFinite). */
  foundInf?: Tensor
  /** Moved in the same pass, after the parameters. */
  emaTarget?: EmaTarget
}

/** Which parameters weight decay (and, of LARS, the local rate) is for. */
export type ParameterFilter = (name: string, parameter: Tensor) => boolean

/** All but biases and the scales and shifts of norms: parameters of two axes or more. */
export const matricesAndKernels: ParameterFilter = (_, parameter) => parameter.shape.length > 1

/** The tensors that a native optimiser is called with beside those of its own, by the names of native/core/ops.def. */
export interface UpdateTensors {
  parameters: Tensor[]
  gradients: Tensor[]
  copies: (Tensor | undefined)[]
  averages: (Tensor | undefined)[]
  averageCopies: (Tensor | undefined)[]
  rate: Tensor
  foundInf?: Tensor | undefined
}

/**
 * An optimiser of named parameters, which it changes in place, all in one native call. Its learning rate and what it keeps
 * from step to step lie on the device of the parameters, so an update may be part of a recorded step (Graph).
 */
export abstract class Optimizer {
  readonly #rate: Tensor

  /**
   * `copies` are bf16 forms of parameters, by name, that are written along with them; `momenta` are numbers, by name, that must be from 0
   * to below 1.
   */
  constructor(
    readonly name: string,
    readonly parameters: Map<string, Tensor>,
    readonly copies: Map<string, Tensor> = new Map(),
    momenta: Record<string, number> = {},
  ) {
    for (const [momentum, value] of Object.entries(momenta))
      if (!(value >= 0 && value < 1)) fail('ARGUMENT', `${name}: expected ${momentum} from 0 to below 1 but received ${value}`)
    const [first] = parameters.values()
    this.#rate = Tensor.zeros([1], first?.dtype, first?.device).keep()
  }

  /** What it keeps from step to step, by name: to be saved and restored with the parameters. */
  abstract state(): Map<string, Tensor>

  protected abstract run(tensors: UpdateTensors, averageMomentum: number): void

  /** setRate, then update. */
  step(gradients: readonly Tensor[], rate: number, options: UpdateOptions = {}): void {
    this.setRate(rate)
    this.update(gradients, options)
  }

  /** Sets the learning rate of the updates that follow. */
  setRate(rate: number): void {
    this.#rate.write(this.#rate.dtype === 'f64' ? Float64Array.of(rate) : Float32Array.of(rate))
  }

  /** One update in place, with `gradients` in the order of the parameters and of their shapes. */
  update(gradients: readonly Tensor[], { foundInf, emaTarget }: UpdateOptions = {}): void {
    if (gradients.length !== this.parameters.size)
      fail('ARGUMENT', `${this.name}: expected ${this.parameters.size} gradients but received ${gradients.length}`)
    const names = [...this.parameters.keys()]
    const parameters = [...this.parameters.values()]
    const wrong = parameters.findIndex((p, i) => p.shape.join() !== gradients[i]!.shape.join())
    if (wrong >= 0)
      fail(
        'SHAPE',
        `${this.name}: expected the gradient of ${names[wrong]} [${parameters[wrong]!.shape.join(',')}] but ` +
          `received ${describe(gradients[wrong]!)}`,
      )
    this.run(
      {
        parameters,
        gradients: [...gradients],
        copies: names.map((name) => this.copies.get(name)),
        averages: names.map((name) => emaTarget?.parameters.get(name)),
        averageCopies: names.map((name) => emaTarget?.copies.get(name)),
        rate: this.#rate,
        foundInf,
      },
      emaTarget?.momentum ?? 0,
    )
  }

  /** Frees what the optimiser keeps. */
  dispose(): void {
    for (const tensor of this.state().values()) tensor.dispose()
    this.#rate.dispose()
  }

  /** Zeros like each parameter, by its name. */
  protected zeros(): Map<string, Tensor> {
    return new Map([...this.parameters].map(([name, p]) => [name, Tensor.zeros(p.shape, p.dtype, p.device).keep()]))
  }
}
