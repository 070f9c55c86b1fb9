/**
 * One training step of DenseCL (Wang et al., Dense Contrastive Learning, CVPR 2021, arXiv:2011.09157) in the order of the
 * authors' code, from two views to gradients. With `denseWeight` 0 it is MoCo v2 (arXiv:2003.04297).
 *
 * Letters: N images, S grid side, P = S * S positions, C backbone channels, D embedding dimension, K queue length.
 */
import { type GradientReady, noGrad } from '../../autograd/tape.js'
import { add } from '../../ops/arithmetic.js'
import { reshape, scale } from '../../ops/elementwise.js'
import { infoNce } from '../../ops/losses.js'
import { mean } from '../../ops/reduce.js'
import { denseMatch, gatherRows, l2Normalize, permuteBatch } from '../../ops/similarity.js'
import { scope, type Tensor } from '../../tensor/tensor.js'
import { differentiate, type StepResult, type Views } from '../method.js'
import { denseLoss, rows } from './denseLoss.js'
import type { DenseCL, Prepared } from './model.js'

/** What is the same at every step. */
export interface StepConstants {
  temperature: number
  /** Of the dense loss; `temperature` when absent. */
  denseTemperature?: number | null
  /** The share of the dense loss against the positions of the same picture; none when absent. */
  denseInImage?: number
  keyMomentum: number
  /** Groups of the batch with batch statistics of their own, as on that many devices. */
  normGroups: number
}

/** What a step of denseclStep is taken with: the constants, and what the model is prepared with. */
export type StepOptions = StepConstants & Omit<Prepared, 'inImage'>

/**
 * Scalars: both terms already weighted, as the original logs them, their sum, and the part of the dense one against the own picture where
 * there is one. Statistics of each loss as infoNce gives them, the query embeddings q [N, D], the means of the dense ones for each position
 * [P, D] and for each image [N, D], and the matched key positions `index` [N, P] where they were looked for.
 */
export type DenseCLObserved = Record<
  'loss' | 'lossGlobal' | 'lossDense' | 'statisticsGlobal' | 'statisticsDense' | 'q' | 'positionMeans' | 'imageMeans',
  Tensor
> & { lossInImage?: Tensor; index?: Tensor }

/** A step on the query view and the key view. The caller disposes the result, which no scope owns. */
export function denseclStep(model: DenseCL, views: Views, options: StepOptions): StepResult<DenseCLObserved> {
  model.prepare({ ...options, inImage: options.denseInImage ?? 0 })
  return preparedStep(model, views, options)
}

/** denseclStep after model.prepare(): work of the device alone, which may be recorded. `ready` is as of BuiltMethod.step(). */
export function preparedStep(
  model: DenseCL,
  [queryView, keyView]: Views,
  { temperature, denseTemperature, denseInImage = 0, keyMomentum, normGroups }: StepConstants,
  ready?: GradientReady,
): StepResult<DenseCLObserved> {
  const mode = { train: true, groups: normGroups } as const

  const forward = (): DenseCLObserved => {
    const query = model.query.forward(queryView, mode)
    const q = l2Normalize(query.global) // [N, D]
    const qDense = l2Normalize(query.dense) // [N, S, S, D]

    const key = noGrad(() => {
      model.updateKeyEncoder(keyMomentum)
      return keyForward(model, keyView, mode)
    })

    // Each query position's partner: the most similar backbone feature of the key view, unless it is known; then that position's embedding.
    const pairs = { query: positions(qDense), key: positions(key.dense) }
    const found = model.partners === undefined ? noGrad(() => denseMatch(positions(query.map), positions(key.map)).index) : undefined
    const index = found ?? model.partners!.index

    const global = infoNce(q, key.global, model.queue.keys, temperature, { unit: true })
    const lossGlobal = scale(global.loss, model.lossWeights.global)
    const dense = denseLoss(model, { ...pairs, index }, { temperature: denseTemperature ?? temperature, inImage: denseInImage })

    const pooled = model.keyPicks === undefined ? key.pooled : rows(gatherRows(pairs.key, model.keyPicks))
    // Those of all processes, in the order of the whole batch: every process has the same queues.
    model.queue.enqueue(model.group.allGather(key.global))
    model.denseQueue.enqueue(model.group.allGather(pooled))
    return {
      loss: add(lossGlobal, dense.loss),
      lossGlobal,
      lossDense: dense.loss,
      ...(dense.inImage === undefined ? {} : { lossInImage: dense.inImage }),
      statisticsGlobal: global.statistics,
      statisticsDense: dense.statistics,
      q,
      positionMeans: noGrad(() => mean(pairs.query, { axes: [0] })),
      imageMeans: noGrad(() => mean(pairs.query, { axes: [1] })),
      ...(found === undefined ? {} : { index: found }),
    }
  }
  return differentiate(model.query.state(), forward, ready)
}

/** The normalised outputs of the key encoder, in the order of `view`, in whatever order the batch passes it. */
function keyForward(model: DenseCL, view: Tensor, mode: { train: true; groups: number }) {
  return scope(() => {
    const order = model.keyOrder
    const key = model.key.forward(order === undefined ? view : order.send(permuteBatch(view, order.shuffle)), mode)
    const unshuffle = (x: Tensor): Tensor => (order === undefined ? x : permuteBatch(order.bringBack(x), order.unshuffle))
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
