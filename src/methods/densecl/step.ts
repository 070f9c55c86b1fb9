/**
 * One training step of DenseCL (Wang et al., Dense Contrastive Learning, CVPR 2021, arXiv:2011.09157) in the order of the
 * authors' code, from two views to gradients. With `denseWeight` 0 it is MoCo v2 (arXiv:2003.04297).
 *
 * Letters: N images, S grid side, P = S * S positions, C backbone channels, D embedding dimension, K queue length.
 */
import { noGrad, Tape } from '../../autograd/tape.js'
import { add } from '../../ops/arithmetic.js'
import { reshape, scale } from '../../ops/elementwise.js'
import { infoNce } from '../../ops/losses.js'
import { denseMatch, gatherRows, l2Normalize, permuteBatch } from '../../ops/similarity.js'
import { scope, type Tensor, type TypedArray } from '../../tensor/tensor.js'
import { embeddingSpread, type Health, matchHealth } from './health.js'
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
  /** The order in which the key batch passes the key encoder, undone behind it (shuffle-BN); absent for its own order. */
  keyOrder?: ArrayLike<number> | undefined
}

/** Scalars, and what health is computed from. */
export type Observed = Record<'single' | 'dense' | 'total' | 'globalStatistics' | 'denseStatistics' | 'q' | 'index', Tensor>

/** What a step has computed. Losses and health are still on the device: reading one waits for it. */
export class StepResult {
  #reads: Record<keyof Observed, () => TypedArray> | undefined
  #losses: { single: number; dense: number; total: number } | undefined
  #health: Health | undefined

  constructor(
    /** One f32 (f64) gradient per parameter of model.parameters(), in its order. */
    readonly gradients: Tensor[],
    readonly observed: Observed,
    /** Of what the tape kept for the backward pass. */
    readonly savedBytes: number,
  ) {}

  /** Starts the copies that losses and health are read from, beside the work that follows. */
  startRead(): this {
    this.#reads ??= Object.fromEntries(Object.entries(this.observed).map(([name, tensor]) => [name, tensor.startRead()])) as Record<
      keyof Observed,
      () => TypedArray
    >
    return this
  }

  /** Both terms already weighted, as the original logs them, and their sum. */
  get losses(): { single: number; dense: number; total: number } {
    const { single, dense, total } = this.startRead().#reads!
    return (this.#losses ??= { single: single()[0]!, dense: dense()[0]!, total: total()[0]! })
  }

  get health(): Health {
    const { globalStatistics, denseStatistics, q, index } = this.startRead().#reads!
    const { q: embeddings, index: matches } = this.observed
    return (this.#health ??= {
      global: statisticsOf(globalStatistics()),
      dense: statisticsOf(denseStatistics()),
      spread: embeddingSpread(q(), embeddings.shape[1]!),
      ...matchHealth(index(), matches.shape[1]!),
    })
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
  model.prepare(options)
  return preparedStep(model, views, options)
}

/** denseclStep after model.prepare(): work of the device alone, which may be recorded. */
export function preparedStep(model: DenseCL, views: Views, { temperature, keyMomentum, normGroups }: StepConstants): StepResult {
  const parameters = model.trainable()
  const mode = { train: true, groups: normGroups } as const

  const made = scope(() => {
    const tape = new Tape().watch(parameters)
    const observed = tape.record(() => {
      const query = model.query.forward(views.query, mode)
      const q = l2Normalize(query.global) // [N, D]
      const qDense = l2Normalize(query.dense) // [N, S, S, D]

      const key = noGrad(() => {
        model.updateKeyEncoder(keyMomentum)
        return keyForward(model, views.key, mode)
      })

      // Each query position's partner: the most similar backbone feature of the key view, then that position's embedding.
      const [n, s, , d] = qDense.shape as [number, number, number, number]
      const { index } = noGrad(() => denseMatch(positions(query.map), positions(key.map)))
      const partners = noGrad(() => gatherRows(positions(key.dense), index)) // [N, P, D]

      const global = infoNce(q, key.global, model.queue.keys, temperature, { unit: true })
      const dense = infoNce(reshape(qDense, [n * s * s, d]), reshape(partners, [n * s * s, d]), model.denseQueue.keys, temperature, {
        unit: true,
      })
      const single = scale(global.loss, model.lossWeights.single)
      const denseLoss = scale(dense.loss, model.lossWeights.dense)

      model.queue.enqueue(key.global)
      model.denseQueue.enqueue(key.pooled)
      return {
        single,
        dense: denseLoss,
        total: add(single, denseLoss),
        globalStatistics: global.statistics,
        denseStatistics: dense.statistics,
        q,
        index,
      }
    })
    const { savedBytes } = tape
    return { gradients: tape.backward(observed.total, parameters), observed, savedBytes }
  })
  for (const tensor of [...made.gradients, ...Object.values(made.observed)]) tensor.keep()
  return new StepResult(made.gradients, made.observed, made.savedBytes)
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

function statisticsOf(statistics: TypedArray): Health['global'] {
  const [positive, negative, accuracy, logSumExp] = statistics as unknown as [number, number, number, number]
  return { positive, negative, accuracy, logSumExp }
}
