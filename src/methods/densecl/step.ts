/**
 * One training step of DenseCL (Wang et al., Dense Contrastive Learning, CVPR 2021, arXiv:2011.09157) in the order of the
 * authors' code, from two views to gradients. With `denseWeight` 0 it is MoCo v2 (arXiv:2003.04297).
 *
 * Letters: N images, S grid side, P = S * S positions, C backbone channels, D embedding dimension, K queue length.
 */
import { type GradientReady, noGrad } from '../../autograd/tape.js'
import type { Pending } from '../../distributed/group.js'
import { add } from '../../ops/arithmetic.js'
import { reshape, scale } from '../../ops/elementwise.js'
import { infoNce } from '../../ops/losses.js'
import { mean } from '../../ops/reduce.js'
import { denseMatch, gatherRows, l2Normalize } from '../../ops/similarity.js'
import { scope, type Tensor } from '../../tensor/tensor.js'
import type { NormMode } from '../../nn/layers.js'
import { differentiate, type StepResult, type Views } from '../method.js'
import { denseLoss, type DenseLossOptions, rows } from './denseLoss.js'
import type { Embeddings, Heads, LocalEmbeddings } from './encoder.js'
import type { DenseCL, Prepared } from './model.js'

/** What is the same at every step. */
export interface StepConstants {
  temperature: number
  /** Of the dense loss; `temperature` when absent. */
  denseTemperature?: number | null
  /** The share of the dense loss against the positions of the same picture; none when absent. */
  denseInImage?: number
  keyMomentum: number
  /** `fp8`: the key encoder's maps are kept in E4M3 between its convolutions where the device multiplies it; as the others when absent. */
  keyPrecision?: 'fp8' | null
  /** Groups of the batch with batch statistics of their own, as on that many devices. */
  normGroups: number
  /** `global` takes no dense loss at all, and moves neither its head nor its queue: MoCo v2; `both` when absent. */
  heads?: Heads
}

/** What a step of denseclStep is taken with: the constants, and what the model is prepared with. */
export type StepOptions = StepConstants & Omit<Prepared, 'inImage'>

/**
 * Scalars: both terms already weighted, as the original logs them, their sum, and the part of the dense one against the own picture where
 * there is one. Statistics of each loss as infoNce gives them, the query embeddings q [N, D], the means of the dense ones for each position
 * [P, D] and for each image [N, D], the matched key positions `index` [N, P] where they were looked for, and the share of positions `shown`
 * that have one where they were known. Without the dense head what is of it is absent, and `lossGlobal`, which is the loss.
 */
export type DenseCLObserved = Record<'loss' | 'statisticsGlobal' | 'q', Tensor> &
  Partial<
    Record<'lossGlobal' | 'lossDense' | 'lossInImage' | 'statisticsDense' | 'shown' | 'positionMeans' | 'imageMeans' | 'index', Tensor>
  >

/** A step on the query view and the key view. The caller disposes the result, which no scope owns. */
export function denseclStep(model: DenseCL, views: Views, options: StepOptions): StepResult<DenseCLObserved> {
  model.prepare({ ...options, inImage: options.denseInImage ?? 0 })
  return preparedStep(model, views, options)
}

/** denseclStep after model.prepare(): work of the device alone, which may be recorded. `ready` is as of BuiltMethod.step(). */
export function preparedStep(
  model: DenseCL,
  [queryView, keyView]: Views,
  { temperature, denseTemperature, denseInImage = 0, keyMomentum, keyPrecision, normGroups, heads = 'both' }: StepConstants,
  ready?: GradientReady,
): StepResult<DenseCLObserved> {
  const mode = { train: true, groups: normGroups } as const
  // Gathered from all processes while the backward pass goes on: the next step is the first to read the queues.
  let keys: Pending<readonly Tensor[]> | undefined
  const enqueue = (): void => {
    const [ofGlobal, ofDense] = keys!.join()
    model.queue.enqueue(ofGlobal!)
    if (ofDense !== undefined) model.denseQueue.enqueue(ofDense)
  }

  const forward = (): DenseCLObserved => {
    const weighing = model.startLossWeights()
    // Key images are on their way to the processes that encode them while the queries are encoded.
    const sent = noGrad(() => model.keyOrder?.send(keyView))
    const query = model.query.forward(queryView, mode, heads)
    const q = l2Normalize(query.global) // [N, D]

    const key = noGrad(() => {
      model.updateKeyEncoder(keyMomentum)
      return keyForward(model, () => sent?.join() ?? keyView, keyPrecision === 'fp8' ? { ...mode, maps: 'e4m3' } : mode, heads)
    })

    const global = infoNce(q, key.global, model.queue.keys, temperature, { unit: true })
    const { shown, ...weights } = weighing.join()
    const lossGlobal = scale(global.loss, weights.global)
    const ofGlobal = { statisticsGlobal: global.statistics, q }
    // Those of all processes, in the order of the whole batch: every process has the same queues.
    const gather = (...own: Tensor[]): void => void (keys = model.group.startAllGather(own))
    if (query.local === undefined || key.local === undefined) {
      gather(key.global)
      return { loss: lossGlobal, ...ofGlobal }
    }

    const { queued, ...ofDense } = denseTerm(model, query.local, key.local, {
      temperature: denseTemperature ?? temperature,
      inImage: denseInImage,
      weights,
    })
    gather(key.global, queued)
    return { loss: add(lossGlobal, ofDense.lossDense), lossGlobal, ...ofGlobal, ...ofDense, ...(shown === undefined ? {} : { shown }) }
  }
  return differentiate(model.query.state(), forward, ready, enqueue)
}

/** The dense loss, the keys for the queue, and what describes it; `key` is normalised, `query` not yet. */
function denseTerm(model: DenseCL, query: LocalEmbeddings, key: LocalEmbeddings, options: DenseLossOptions) {
  const pairs = { query: positions(l2Normalize(query.dense)), key: positions(key.dense) }
  // Each query position's partner: the most similar backbone feature of the key view, unless it is known; then that position's embedding.
  const found = model.partners === undefined ? noGrad(() => denseMatch(positions(query.map), positions(key.map)).index) : undefined
  const dense = denseLoss(model, { ...pairs, index: found ?? model.partners!.index }, options)

  return {
    queued: model.keyPicks === undefined ? key.pooled : rows(gatherRows(pairs.key, model.keyPicks)),
    lossDense: dense.loss,
    ...(dense.inImage === undefined ? {} : { lossInImage: dense.inImage }),
    statisticsDense: dense.statistics,
    positionMeans: noGrad(() => mean(pairs.query, { axes: [0] })),
    imageMeans: noGrad(() => mean(pairs.query, { axes: [1] })),
    ...(found === undefined ? {} : { index: found }),
  }
}

/** The normalised outputs of the key encoder, in the order of the batch, in whatever order its images `arrive`. */
function keyForward(model: DenseCL, arrive: () => Tensor, mode: NormMode, heads: Heads): Embeddings {
  return scope(() => {
    const { global, local } = model.key.forward(arrive(), mode, heads)
    const outputs = local === undefined ? [global] : [global, local.dense, local.pooled, local.map]
    const [own, dense, pooled, map] = (model.keyOrder?.bringBack(outputs) ?? outputs) as [Tensor, Tensor?, Tensor?, Tensor?]
    if (dense === undefined || pooled === undefined || map === undefined) return { global: l2Normalize(own) }
    return { global: l2Normalize(own), local: { dense: l2Normalize(dense), pooled: l2Normalize(pooled), map } }
  })
}

/** [N, S, S, C] as [N, P, C] */
const positions = (map: Tensor): Tensor => reshape(map, [map.shape[0]!, map.shape[1]! * map.shape[2]!, map.shape[3]!])
