/**
 * One training step of DenseCL (Wang et al., Dense Contrastive Learning, CVPR 2021, arXiv:2011.09157) in the order of the
 * authors' code, from two views to gradients. With `denseWeight` 0 it is MoCo v2 (arXiv:2003.04297).
 *
 * Letters: N images, S grid side, P = S * S positions, C backbone channels, D embedding dimension, K queue length.
 */
import { noGrad } from '../../autograd/tape.js'
import { add } from '../../ops/arithmetic.js'
import { reshape, scale } from '../../ops/elementwise.js'
import { infoNce } from '../../ops/losses.js'
import { denseMatch, gatherRows, l2Normalize, permuteBatch } from '../../ops/similarity.js'
import { scope, type Tensor } from '../../tensor/tensor.js'
import { differentiate, type StepResult, type Views } from '../method.js'
import type { DenseCL } from './model.js'

/** What is the same at every step. */
export interface StepConstants {
  temperature: number
  keyMomentum: number
  /** Groups of the batch with batch statistics of their own, as on that many devices. */
  normGroups: number
}

export interface StepOptions extends StepConstants {
  /** lambda: the loss is (1 - lambda) * global + lambda * dense. */
  denseWeight: number
  /** The order in which the key batch passes the key encoder, undone after it (shuffle-BN); absent for its own order. */
  keyOrder?: ArrayLike<number> | undefined
}

/**
 * Scalars: both terms already weighted, as the original logs them, and their sum. Statistics of each loss as infoNce gives them, the
 * query embeddings q [N, D], and the matched key positions `index` [N, P].
 */
export type DenseCLObserved = Record<'loss' | 'lossGlobal' | 'lossDense' | 'statisticsGlobal' | 'statisticsDense' | 'q' | 'index', Tensor>

/** A step on the query view and the key view. The caller disposes the result, which no scope owns. */
export function denseclStep(model: DenseCL, views: Views, options: StepOptions): StepResult<DenseCLObserved> {
  model.prepare(options)
  return preparedStep(model, views, options)
}

/** denseclStep after model.prepare(): work of the device alone, which may be recorded. */
export function preparedStep(
  model: DenseCL,
  [queryView, keyView]: Views,
  { temperature, keyMomentum, normGroups }: StepConstants,
): StepResult<DenseCLObserved> {
  const mode = { train: true, groups: normGroups } as const

  return differentiate(model.query.state(), () => {
    const query = model.query.forward(queryView, mode)
    const q = l2Normalize(query.global) // [N, D]
    const qDense = l2Normalize(query.dense) // [N, S, S, D]

    const key = noGrad(() => {
      model.updateKeyEncoder(keyMomentum)
      return keyForward(model, keyView, mode)
    })

    // Each query position's partner: the most similar backbone feature of the key view, then that position's embedding.
    const [n, s, , d] = qDense.shape as [number, number, number, number]
    const { index } = noGrad(() => denseMatch(positions(query.map), positions(key.map)))
    const partners = noGrad(() => gatherRows(positions(key.dense), index)) // [N, P, D]

    const global = infoNce(q, key.global, model.queue.keys, temperature, { unit: true })
    const dense = infoNce(reshape(qDense, [n * s * s, d]), reshape(partners, [n * s * s, d]), model.denseQueue.keys, temperature, {
      unit: true,
    })
    const lossGlobal = scale(global.loss, model.lossWeights.global)
    const lossDense = scale(dense.loss, model.lossWeights.dense)

    model.queue.enqueue(key.global)
    model.denseQueue.enqueue(key.pooled)
    return {
      loss: add(lossGlobal, lossDense),
      lossGlobal,
      lossDense,
      statisticsGlobal: global.statistics,
      statisticsDense: dense.statistics,
      q,
      index,
    }
  })
}

/** The normalised outputs of the key encoder, in the order of `view`, in whatever order the batch passes it. */
function keyForward(model: DenseCL, view: Tensor, mode: { train: true; groups: number }) {
  return scope(() => {
    const order = model.keyOrder
    const key = model.key.forward(order === undefined ? view : permuteBatch(view, order.shuffle), mode)
    const unshuffle = (x: Tensor): Tensor => (order === undefined ? x : permuteBatch(x, order.unshuffle))
    return {
      global: l2Normalize(unshuffle(key.global)),
      dense: l2Normalize(unshuffle(key.dense)),
      pooled: l2Normalize(unshuffle(key.pooled)),
      map: unshuffle(key.map),
    }
  })
}

/** [N, S, S, C] as [N, P, C] */
const positions = (map: Tensor): Tensor => reshape(map, [map.shape[0]!, map.shape[1]! * map.shape[2]!, map.shape[3]!])
