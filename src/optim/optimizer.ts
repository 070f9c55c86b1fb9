/** What optimisers share: the learning rate on the device, the order of gradients, and what they leave alone. */
import { calledAs, fail } from '../tensor/errors.js'
import { nativeOpNames } from '../tensor/native.js'
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
   * `copies` are bf16 forms of parameters, by name, that are written along with them; of the numbers, by name, momenta must be from 0
   * to below 1, positive ones finite and above 0, the others finite and 0 or more. Throws ARGUMENT.
   */
  constructor(
    readonly name: string,
    readonly parameters: Map<string, Tensor>,
    readonly copies: Map<string, Tensor> = new Map(),
    { momenta = {}, positive = {}, notNegative = {} }: Partial<Record<'momenta' | 'positive' | 'notNegative', Record<string, number>>> = {},
  ) {
    const expect = (numbers: Record<string, number>, range: string, fits: (value: number) => boolean): void => {
      for (const [what, value] of Object.entries(numbers))
        if (!fits(value)) fail('ARGUMENT', `${name}: expected ${what} ${range} but received ${value}`)
    }
    expect(momenta, 'from 0 to below 1', (value) => value >= 0 && value < 1)
    expect(positive, 'above 0', (value) => value > 0 && value < Infinity)
    expect(notNegative, 'of 0 or more', (value) => value >= 0 && value < Infinity)
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

  /** Sets the learning rate of the updates that follow; throws ARGUMENT for one that is negative or not finite. */
  setRate(rate: number): void {
    if (!(rate >= 0 && rate < Infinity)) fail('ARGUMENT', `${this.name}: expected a learning rate of 0 or more but received ${rate}`)
    this.#rate.write(this.#rate.dtype === 'f64' ? Float64Array.of(rate) : Float32Array.of(rate))
  }

  /** One update in place, with `gradients` in the order of the parameters and of their shapes. */
  update(gradients: readonly Tensor[], { foundInf, emaTarget }: UpdateOptions = {}): void {
    if (gradients.length !== this.parameters.size)
      fail('ARGUMENT', `${this.name}: expected ${this.parameters.size} gradients but received ${gradients.length}`)
    const momentum = emaTarget?.momentum ?? 0
    if (!(momentum >= 0 && momentum <= 1))
      fail('ARGUMENT', `${this.name}: expected the momentum of emaTarget from 0 to 1 but received ${momentum}`)
    const names = [...this.parameters.keys()]
    const parameters = [...this.parameters.values()]
    const wrong = parameters.findIndex((p, i) => p.shape.join() !== gradients[i]!.shape.join())
    if (wrong >= 0)
      fail(
        'SHAPE',
        `${this.name}: expected the gradient of ${names[wrong]} [${parameters[wrong]!.shape.join(',')}] but ` +
          `received ${describe(gradients[wrong]!)}`,
      )
    const tensors = {
      parameters,
      gradients: [...gradients],
      copies: names.map((name) => this.copies.get(name)),
      averages: names.map((name) => emaTarget?.parameters.get(name)),
      averageCopies: names.map((name) => emaTarget?.copies.get(name)),
      rate: this.#rate,
      foundInf,
    }
    calledAs(this.name, nativeOpNames, () => this.run(tensors, momentum))
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
