import type { DenseCL } from '../methods/densecl/model.js'
import { type Observed, preparedStep, type StepConstants, StepResult, type Views } from '../methods/densecl/step.js'
import { fusion } from '../ops/fusion.js'
import { checkFinite, type Sgd } from '../optim/sgd.js'
import { type TuningChoice, untuned, withTuning } from '../ops/tuning.js'
import { Graph } from '../tensor/graph.js'
import { Tensor } from '../tensor/tensor.js'

export interface TrainerOptions extends StepConstants {
  /** Makes the views of the current batch; the trainer frees them. Part of the recorded step where one is recorded. */
  views: () => Views
  /** Records the step where the device can (src/tensor/graph.ts). */
  graph: boolean
  /** The tables and the current level of fusion when absent. */
  tuning?: TuningChoice
}

/** What changes from step to step, beside the views. */
export interface StepInputs {
  lr: number
  denseWeight: number
  keyOrder?: ArrayLike<number> | undefined
}

/** Whole training steps: views, both encoders, losses, gradients, the optimiser with the moving average. */
export class Trainer {
  /** i32 [1] on the device: not 0 once a loss or gradient was not finite; nothing is updated from then on. */
  readonly foundInf: Tensor
  readonly graph: Graph<Observed>
  /** Of the tensors that a step keeps for its backward pass. */
  savedBytes = 0
  /** What steps compute their convolutions with; to be set before the first. */
  tuning: TuningChoice

  constructor(
    readonly model: DenseCL,
    readonly sgd: Sgd,
    options: TrainerOptions,
  ) {
    this.tuning = options.tuning ?? untuned(fusion.level)
    this.foundInf = Tensor.zeros([1], 'i32', model.device).keep()
    this.graph = new Graph(model.device, () => this.#work(options), options.graph)
  }

  /** One step. The result is valid until the next one, but what it has started to read stays readable. */
  step({ lr, denseWeight, keyOrder }: StepInputs): StepResult {
    this.model.prepare({ denseWeight, keyOrder })
    this.sgd.setRate(lr)
    const observed = withTuning(this.tuning, () => this.graph.run())
    return new StepResult([], observed, this.savedBytes)
  }

  #work(options: TrainerOptions): Observed {
    const views = options.views()
    const { gradients, observed, savedBytes } = preparedStep(this.model, views, options)
    this.savedBytes = savedBytes
    checkFinite(this.foundInf, [observed.total, ...gradients])
    this.sgd.update(gradients, { foundInf: this.foundInf, emaTarget: this.model.emaTarget(options.keyMomentum) })
    for (const tensor of [...gradients, views.query, views.key]) tensor.dispose()
    return observed
  }

  dispose(): void {
    this.graph.dispose()
    this.foundInf.dispose()
  }
}
