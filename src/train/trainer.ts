import type { ViewCrops } from '../data/augment.js'
import { SharedGradients } from '../distributed/buckets.js'
import { Group } from '../distributed/group.js'
import { type BuiltMethod, type Observed, StepResult, type Views } from '../methods/method.js'
import type { Optimizer } from '../optim/optimizer.js'
import { checkFinite } from '../optim/sgd.js'
import { type ComputeOptions, currentCompute, withCompute } from '../tensor/compute.js'
import { Graph } from '../tensor/graph.js'
import { Tensor } from '../tensor/tensor.js'

interface TrainerOptions {
  /** Makes the views of the current batch; the trainer frees them. Part of the recorded step where one is recorded. */
  views: () => Views
  /** Records the step where the device can (src/tensor/graph.ts). */
  graph: boolean
  /** Settings of the steps; what is absent is as it is where the trainer is made. */
  compute?: ComputeOptions
  /** The processes that share every batch; Group.single when absent. */
  group?: Group
}

/** Whole training steps of a method: views, forward and backward pass, the optimiser with the moving average. */
export class Trainer {
  /** i32 [1] on the device: not 0 once a loss or gradient was not finite; nothing is updated from then on. */
  readonly foundInf: Tensor
  readonly graph: Graph<Observed>
  /** Bytes of the tensors that a step keeps for its backward pass. */
  savedBytes = 0
  /** What steps compute with; to be set before the first. */
  compute: ComputeOptions
  readonly #shared: SharedGradients

  constructor(
    readonly method: BuiltMethod,
    readonly optimizer: Optimizer,
    options: TrainerOptions,
  ) {
    const { device } = method.backbone
    const { views, graph, group = Group.single } = options
    this.#shared = new SharedGradients(group)
    this.compute = { ...currentCompute(), ...options.compute }
    this.foundInf = Tensor.zeros([1], 'i32', device).keep()
    this.graph = new Graph(device, () => this.#work(views()), graph && group.recordable)
  }

  /**
   * The step after `globalStep` steps; `crops` says where its views lie in their images, where that is known. Its result is valid until the
   * next one, but what it has started to read stays readable.
   */
  step(globalStep: number, lr: number, crops?: ViewCrops): StepResult {
    this.method.prepare?.(globalStep, crops)
    this.optimizer.setRate(lr)
    const observed = withCompute(this.compute, () => this.graph.run())
    return new StepResult([], observed, this.savedBytes)
  }

  #work(views: Views): Observed {
    const { gradients, observed, savedBytes } = this.#gradients(views)
    this.savedBytes = savedBytes
    checkFinite(this.foundInf, [observed.loss, ...gradients])
    const emaTarget = this.method.emaTarget?.()
    this.optimizer.update(gradients, { foundInf: this.foundInf, ...(emaTarget === undefined ? {} : { emaTarget }) })
    for (const tensor of [...gradients, ...views]) tensor.dispose()
    return observed
  }

  /** Those of the whole batch, and of what is observed the means. */
  #gradients(views: Views): StepResult {
    return this.#shared.average(
      (ready) => this.method.step(views, ready),
      ({ gradients, observed }) => {
        const means = ['loss', ...(this.method.means ?? [])].map((name) => observed[name])
        return { gradients, observed: means.filter((tensor) => tensor !== undefined) }
      },
    )
  }

  dispose(): void {
    this.graph.dispose()
    this.foundInf.dispose()
  }
}
