/** Batch norm of rows that several processes have (synchronised batch norm): statistics and gradients are those of all of them. */
import type { BackwardContext, Recorded } from '../autograd/op.js'
import { runNative } from '../tensor/native.js'
import { Tensor } from '../tensor/tensor.js'
import type { BatchNormAttrs, BatchNormInputs } from './batchNorm.js'
import { binary, reduceTo, spread } from './broadcast.js'

type Saved = Record<'x' | 'weight' | 'mean' | 'variance' | 'invstd' | 'total', Tensor> & { y?: Tensor }

const row = (x: Tensor): Tensor => x.alias([1, x.size])
const vector = (x: Tensor): Tensor => x.alias([x.size])

/** Statistics of the rows of all processes, from what each says of its own, and their use. */
export function trainAcross(
  { x, weight, bias, residual }: BatchNormInputs,
  { eps, momentum, relu, runningMean, runningVar, statistics, across }: BatchNormAttrs,
): Recorded {
  const [channels, dtype] = [x.shape[3]!, weight.dtype]
  const count = x.size / channels
  const [mean, variance] = [Tensor.zeros([channels], dtype), Tensor.zeros([channels], dtype)]
  const [ownMean, ownInvstd] = [Tensor.empty([1, channels], dtype), Tensor.empty([1, channels], dtype)]
  // With a momentum of 1 running statistics are those of the batch.
  runNative(
    'batchNormTrain',
    { mean: ownMean, invstd: ownInvstd, runningMean: mean, runningVar: variance, x, weight, bias, statistics },
    { eps, momentum: 1, relu: false },
  )
  const squares = spread(variance, variance.shape, Math.max(1, count - 1))
  const said = [row(mean), row(squares), Tensor.full([1, 1], count, dtype)]
  const [means, deviations, counts] = across.startAllGather(said).join() as [Tensor, Tensor, Tensor]
  const all = merged(means, deviations, counts)
  runNative(
    'ema',
    { averages: [runningMean, runningVar], sources: [all.mean, all.unbiased], copies: [undefined, undefined] },
    { momentum: 1 - momentum },
  )

  const y = Tensor.empty(x.shape, x.dtype)
  const invstd = Tensor.empty([channels], dtype)
  runNative('batchNormEval', { y, invstd, x, weight, bias, mean: all.mean, variance: all.variance, residual }, { eps, relu })
  const { mean: ofAll, variance: spreadOfAll, total } = all
  return { outputs: [y], saved: { x, weight, mean: ofAll, variance: spreadOfAll, total, invstd, ...(relu ? { y } : {}) } }
}

/**
 * Mean and variances [C] of all rows and their number [1, 1], from means and squared deviations [W, C] and numbers of rows [W, 1] of the
 * processes, by T. Chan's formula: sums of squares would cancel.
 */
function merged(means: Tensor, deviations: Tensor, counts: Tensor): Record<'mean' | 'variance' | 'unbiased' | 'total', Tensor> {
  const { dtype } = means
  const columns = [1, means.shape[1]!]
  const total = reduceTo(counts, [1, 1], dtype)
  const mean = reduceTo(binary('mul', means, binary('div', counts, total)), columns, dtype)
  const apart = binary('sub', means, mean)
  const between = binary('mul', binary('mul', apart, apart), counts)
  const squares = reduceTo(binary('add', deviations, between), columns, dtype)
  const one = Tensor.full([1, 1], 1, dtype)
  const others = binary('maximum', binary('sub', total, one), one)
  return { mean: vector(mean), variance: vector(binary('div', squares, total)), unbiased: vector(binary('div', squares, others)), total }
}

/**
 * The gradients of trainAcross(). Those of weight and bias are of the own rows, as every other parameter's; in x's are sums over all rows:
 *   dx = weight invstd (dz - sum(dz) / n - xhat sum(dz xhat) / n) with xhat = (x - mean) invstd
 */
export function backwardAcross({ grad, saved, attrs, needs }: BackwardContext<BatchNormInputs, BatchNormAttrs>) {
  const { x, weight, mean, variance, invstd, total, y } = saved as Saved
  const [dweight, dbias] = [Tensor.empty(weight.shape, weight.dtype), Tensor.empty(weight.shape, weight.dtype)]
  const dz = needs.residual && y !== undefined ? Tensor.empty(x.shape, x.dtype) : undefined
  const direct = Tensor.empty(x.shape, x.dtype)
  const constants = { weight, mean: row(mean), invstd: row(invstd) }
  runNative('batchNormBackward', { dx: direct, dweight, dbias, dz, dy: grad, x, y, ...constants }, { train: false })

  const factor = binary('div', binary('mul', weight, invstd), spread(vector(total), [1], -1))
  const sums = [dweight, dbias].map((own) => binary('mul', own, factor)) as [Tensor, Tensor]
  attrs.across.allReduce(sums, 'sum')
  // A norm of x with these as weight and bias, on what there is already.
  const dx = Tensor.empty(x.shape, x.dtype)
  const unread = Tensor.empty(invstd.shape, invstd.dtype)
  runNative(
    'batchNormEval',
    { y: dx, invstd: unread, x, weight: sums[0], bias: sums[1], mean, variance, residual: direct },
    { eps: attrs.eps, relu: false },
  )
  return { x: dx, weight: dweight, bias: dbias, residual: needs.residual ? (dz ?? grad.alias()) : undefined }
}
