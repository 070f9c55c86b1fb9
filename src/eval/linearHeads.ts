/** Classifiers on frozen features: a batch norm without weights where the protocol has one, and a linear layer each. */
import { Tape } from '../autograd/tape.js'
import { smallNormal } from '../nn/classifier.js'
import { Linear, type NormMode } from '../nn/layers.js'
import { disposeState } from '../nn/module.js'
import type { Random } from '../tensor/random.js'
import { batchNorm } from '../ops/batchNorm.js'
import { add } from '../ops/arithmetic.js'
import { reshape } from '../ops/elementwise.js'
import { crossEntropy } from '../ops/losses.js'
import { Sgd } from '../optim/sgd.js'
import { Tensor } from '../tensor/tensor.js'
import type { FeatureShape } from './featureFile.js'

/** Batch norm by channel without weight and bias. */
class PlainNorm {
  readonly #constants: [one: Tensor, zero: Tensor]
  readonly mean: Tensor
  readonly variance: Tensor

  constructor(channels: number) {
    this.#constants = [Tensor.full([channels], 1).keep(), Tensor.zeros([channels]).keep()]
    this.mean = Tensor.zeros([channels]).keep()
    this.variance = Tensor.full([channels], 1).keep()
  }

  forward(x: Tensor, mode: NormMode): Tensor {
    return batchNorm(x, ...this.#constants, this.mean, this.variance, mode)
  }

  dispose(): void {
    for (const tensor of [...this.#constants, this.mean, this.variance]) tensor.dispose()
  }
}

/** Names of the features that are one cell of a map: the batch norms of their heads have no variance of one image. */
export const singleCells = (shapes: readonly FeatureShape[]): string[] =>
  shapes.filter(({ name, shape: [rows, columns] }) => name !== 'pooled' && rows! * columns! === 1).map(({ name }) => name)

export class LinearHeads {
  readonly #heads: { name: string; norm: PlainNorm | undefined; linear: Linear }[]

  /** Weights are drawn from N(0, 0.01^2), biases are 0. The pooled map goes in as it is, other features through a batch norm. */
  constructor(
    shapes: readonly FeatureShape[],
    readonly classes: number,
    random: Random,
  ) {
    this.#heads = shapes.map(({ name, shape, size }) => ({
      name,
      norm: name === 'pooled' ? undefined : new PlainNorm(shape[2]!),
      linear: new Linear({ random, dtype: 'f32' }, size, classes, smallNormal),
    }))
  }

  parameters(): Map<string, Tensor> {
    return new Map(
      this.#heads.flatMap(({ name, linear }) =>
        [...linear.state().parameters].map(([part, tensor]) => [`${name}.${part}`, tensor] as const),
      ),
    )
  }

  /** Everything that a state needs. */
  *tensors(): Generator<[string, Tensor]> {
    yield* this.parameters()
    for (const { name, norm } of this.#heads) {
      if (norm === undefined) continue
      yield [`${name}.running_mean`, norm.mean]
      yield [`${name}.running_var`, norm.variance]
    }
  }

  /** Logits [N, classes] of each head from its feature [N, grid, grid, C]. */
  logits(pooled: readonly Tensor[], mode: NormMode): Tensor[] {
    return this.#heads.map(({ norm, linear }, h) => {
      const x = norm === undefined ? pooled[h]! : norm.forward(pooled[h]!, mode)
      return linear.forward(reshape(x, [x.shape[0]!, x.size / x.shape[0]!]))
    })
  }

  /** The sum of the heads' cross-entropies: they learn side by side. */
  loss(pooled: readonly Tensor[], target: Tensor): Tensor {
    return this.logits(pooled, { train: true, groups: 1 })
      .map((logits) => crossEntropy(logits, target))
      .reduce((sum, loss) => add(sum, loss))
  }

  dispose(): void {
    for (const { norm, linear } of this.#heads) {
      norm?.dispose()
      disposeState(linear.state())
    }
  }
}

/** The optimiser of the classifiers, with what a protocol says of it. */
export const linearOptimizer = (heads: LinearHeads, { weightDecay, nesterov }: { weightDecay: number; nesterov: boolean }): Sgd =>
  new Sgd(heads.parameters(), { momentum: 0.9, weightDecay, nesterov })

/** One update by the features of a batch within a scope; the sum of the heads' losses. */
export function updateHeads(heads: LinearHeads, sgd: Sgd, pooled: readonly Tensor[], target: Tensor, rate: number): number {
  const parameters = [...heads.parameters().values()]
  const tape = new Tape().watch(parameters)
  const total = tape.record(() => heads.loss(pooled, target))
  sgd.step(tape.backward(total, parameters), rate)
  return total.item()
}
