/** Statistics of batch norms over the training images, as detectron2 and fvcore take them when the weights no longer change. */
import { Group } from '../distributed/group.js'
import { fail } from '../tensor/errors.js'
import { scope, Tensor } from '../tensor/tensor.js'
import type { NormMode } from './layers.js'
import type { State } from './module.js'

/**
 * Gathers the statistics of batches that a network sees in training mode, and gives its norms the means over the batches in place of the
 * running ones: of the batches' means, and of their unbiased variances. Every batch counts alike.
 */
export class PreciseNorms {
  readonly #sums: { tensor: Tensor; values: Float64Array }[]
  /** In which running statistics become those of the batch alone. */
  readonly #measuring: NormMode
  #batches = 0

  /**
   * `state` is that of the network, whose buffers called running_mean and running_var are meant. Processes may share the batches, and have
   * the same result then.
   */
  constructor({ buffers }: State, across = Group.single) {
    this.#measuring = { train: true, groups: 1, momentum: 1, across }
    this.#sums = [...buffers]
      .filter(([name]) => /(^|\.)running_(mean|var)$/.test(name))
      .map(([, tensor]) => ({ tensor, values: new Float64Array(tensor.size) }))
  }

  /** Batches that were added. */
  get batches(): number {
    return this.#batches
  }

  /** Adds a batch: `forward` puts it through the network in the mode that it is given. */
  add(forward: (mode: NormMode) => void): void {
    forward(this.#measuring)
    for (const { tensor, values } of this.#sums) {
      const own = tensor.data()
      for (let i = 0; i < values.length; ++i) values[i]! += own[i]!
    }
    this.#batches += 1
  }

  /** Writes the means. Throws ARGUMENT where no batch was added. */
  write(): void {
    if (this.#batches === 0) fail('ARGUMENT', 'preciseNorms: expected one batch or more but received none')
    scope(() => {
      for (const { tensor, values } of this.#sums) {
        const means = values.map((sum) => sum / this.#batches)
        tensor.write(Tensor.from(means, tensor.shape, tensor.dtype, 'cpu').data())
      }
    })
  }
}
