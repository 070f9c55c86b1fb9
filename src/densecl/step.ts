/**
 * One training step of DenseCL (Wang et al., Dense Contrastive Learning, CVPR 2021, arXiv:2011.09157) in the order of the
 * authors' code, from two views to gradients. With `denseWeight` 0 it is MoCo v2 (arXiv:2003.04297).
 *
 * Letters: N images, S grid side, P = S * S positions, C backbone channels, D embedding dimension, K queue length.
 */
import { noGrad, Tape } from '../autograd/tape.js'
import { add, reshape, scale } from '../ops/elementwise.js'
import { infoNce } from '../ops/losses.js'
import { denseMatch, gatherRows, l2Normalize, permuteBatch } from '../ops/similarity.js'
import { scope, Tensor } from '../tensor/tensor.js'
import { embeddingSpread, type Health, matchHealth } from './health.js'
import type { DenseCL } from './model.js'

export interface StepOptions {
  temperature: number
  /** lambda: the loss is (1 - lambda) * global + lambda * dense. */
  denseWeight: number
  keyMomentum: number
  /** Groups of the batch with batch statistics of their own, as on that many devices. */
  normGroups: number
  /** The order in which the key batch passes the key encoder, undone behind it (shuffle-BN). */
  keyOrder: ArrayLike<number>
}

/** What a step has computed. Losses and health are still on the device: reading one waits for it. */
export class StepResult {
  #losses: { single: number; dense: number; total: number } | undefined
  #health: Health | undefined

  constructor(
    /** One f32 (f64) gradient per parameter of model.parameters(), in its order. */
    readonly gradients: Tensor[],
    /** Scalars, and what health is computed from. */
    readonly observed: { single: Tensor; dense: Tensor; total: Tensor; globalStatistics: Tensor; denseStatistics: Tensor; q: Tensor; index: Tensor },
  ) {}

  /** Both terms already weighted, as the original logs them, and their sum. */
  get losses(): { single: number; dense: number; total: number } {
    const { single, dense, total } = this.observed
    return (this.#losses ??= { single: single.item(), dense: dense.item(), total: total.item() })
  }

  get health(): Health {
    const { globalStatistics, denseStatistics, q, index } = this.observed
    return (this.#health ??= { global: statisticsOf(globalStatistics), dense: statisticsOf(denseStatistics), spread: embeddingSpread(q), ...matchHealth(index, index.shape[1]!) })
  }

  /** Frees gradients and observed tensors; losses and health stay readable if they have been read. */
  dispose(): void {
    for (const tensor of [...this.gradients, ...Object.values(this.observed)]) tensor.dispose()
  }
}

export interface Views {
  /** [N, H, W, 3], normalised */
  query: Tensor
  key: Tensor
}

/** The caller disposes the result, which no scope owns. */
export function denseclStep(model: DenseCL, views: Views, options: StepOptions): StepResult {
  const { temperature, denseWeight, keyMomentum, normGroups, keyOrder } = options
  const parameters = model.watched()
  model.setLossWeights(denseWeight)
  const mode = { train: true, groups: normGroups } as const

  const made = scope(() => {
    const tape = new Tape().watch(parameters)
    const observed = tape.record(() => {
      const query = model.query.forward(views.query, mode)
      const q = l2Normalize(query.global) // [N, D]
      const qDense = l2Normalize(query.dense) // [N, S, S, D]

      const key = noGrad(() => {
        model.updateKeyEncoder(keyMomentum)
        return keyForward(model, views.key, keyOrder, mode)
      })

      // Each query position's partner: the most similar backbone feature of the key view, then that position's embedding.
      const [n, s, , d] = qDense.shape as [number, number, number, number]
      const { index } = noGrad(() => denseMatch(positions(query.map), positions(key.map)))
      const partners = noGrad(() => gatherRows(positions(key.dense), index)) // [N, P, D]

      const global = infoNce(q, key.global, model.queue.keys, temperature)
      const dense = infoNce(reshape(qDense, [n * s * s, d]), reshape(partners, [n * s * s, d]), model.denseQueue.keys, temperature)
      const single = scale(global.loss, model.lossWeights.single)
      const denseLoss = scale(dense.loss, model.lossWeights.dense)

      model.queue.enqueue(key.global)
      model.denseQueue.enqueue(key.pooled)
      return { single, dense: denseLoss, total: add(single, denseLoss), globalStatistics: global.statistics, denseStatistics: dense.statistics, q, index }
    })
    return { gradients: tape.backward(observed.total, parameters), observed }
  })
  for (const tensor of [...made.gradients, ...Object.values(made.observed)]) tensor.keep()
  return new StepResult(made.gradients, made.observed)
}

/** The normalised outputs of the key encoder, in the order of `view`. */
function keyForward(model: DenseCL, view: Tensor, order: ArrayLike<number>, mode: { train: true; groups: number }) {
  return scope(() => {
    const inverse = new Int32Array(order.length)
    for (let i = 0; i < order.length; ++i) inverse[order[i]!] = i
    const [there, back] = [order, inverse].map((indices) => Tensor.from(indices, [1, order.length], 'i32', view.device)) as [Tensor, Tensor]
    const key = model.key.forward(permuteBatch(view, there), mode)
    return {
      global: l2Normalize(permuteBatch(key.global, back)),
      dense: l2Normalize(permuteBatch(key.dense, back)),
      pooled: l2Normalize(permuteBatch(key.pooled, back)),
      map: permuteBatch(key.map, back),
    }
  })
}

/** [N, S, S, C] as [N, P, C] */
const positions = (map: Tensor): Tensor => reshape(map, [map.shape[0]!, map.shape[1]! * map.shape[2]!, map.shape[3]!])

function statisticsOf(statistics: Tensor): Health['global'] {
  const [positive, negative, accuracy, logSumExp] = statistics.data() as unknown as [number, number, number, number]
  return { positive, negative, accuracy, logSumExp }
}
