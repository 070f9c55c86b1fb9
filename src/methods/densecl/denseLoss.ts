/**
 * The dense loss: every position of the query view is told from the queue, or in part from all positions of its own picture. As published
 * its partner is the most similar feature of the key view; with known partners (src/data/partners.ts) those that have none do not count.
 *
 * Letters as in step.ts.
 */
import { noGrad } from '../../autograd/tape.js'
import { add, sub } from '../../ops/arithmetic.js'
import { reshape, scale } from '../../ops/elementwise.js'
import { crossEntropy, infoNce } from '../../ops/losses.js'
import { matmul } from '../../ops/matmul.js'
import { gatherRows } from '../../ops/similarity.js'
import { scope, type Tensor } from '../../tensor/tensor.js'
import type { DenseCL, LossWeights } from './model.js'

/** Unit embeddings of both views [N, P, D], and the key position of each query position, i32 [N, P]. */
export interface DensePairs {
  query: Tensor
  key: Tensor
  index: Tensor
}

export interface DenseLossOptions {
  temperature: number
  /** The share of the loss that is taken against the positions of the same picture. */
  inImage: number
  weights: Omit<LossWeights, 'global'>
}

/** The weighted loss, a scalar; the part of it against the own picture where it is asked for; statistics as infoNce gives them. */
export interface DenseLoss {
  loss: Tensor
  inImage?: Tensor
  statistics: Tensor
}

/** [N, P, D] as [N * P, D] */
export const rows = (x: Tensor): Tensor => reshape(x, [x.shape[0]! * x.shape[1]!, x.shape[2]!])

export function denseLoss(
  model: DenseCL,
  { query, key, index }: DensePairs,
  { temperature, inImage, weights }: DenseLossOptions,
): DenseLoss {
  return scope(() => {
    const { partners } = model
    const chosen = noGrad(() => gatherRows(key, index))
    // A position without a partner becomes zeros, whose loss is ln(K + 1) and whose gradient goes nowhere: the weights leave it out.
    const counted = partners === undefined ? query : gatherRows(query, partners.counted)
    const queued = infoNce(rows(counted), rows(chosen), model.denseQueue.keys, temperature, { unit: true })
    const weighted = scale(queued.loss, weights.dense)
    const loss = partners === undefined ? weighted : sub(weighted, weights.uncounted)
    if (inImage === 0) return { loss, statistics: queued.statistics }

    const similarities = matmul(query, key, { transposeB: true }) // [N, P, P]
    const own = crossEntropy(scale(similarities, 1 / temperature), index, { ignoreIndex: -1 })
    const weightedOwn = scale(own, weights.inImage)
    return { loss: add(loss, weightedOwn), inImage: weightedOwn, statistics: queued.statistics }
  })
}
