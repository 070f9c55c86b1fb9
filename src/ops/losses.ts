import { apply } from '../autograd/tape.js'
import { defineOp, expectDType, expectFloats, expectRank, expectShape, type Inputs } from '../autograd/op.js'
import { fail } from '../tensor/errors.js'
import { runNative } from '../tensor/native.js'
import { accumulator, describe, scope, Tensor } from '../tensor/tensor.js'
import { div } from './arithmetic.js'
import { reshape } from './elementwise.js'

/** dx = the gradient that the forward pass computed, times the gradient of the loss. */
function scaled(gradient: Tensor, grad: Tensor): Tensor {
  const dx = Tensor.empty(gradient.shape, gradient.dtype)
  runNative('scale', { y: dx, x: gradient, factor: grad }, { number: 1 })
  return dx
}

interface InfoNceInputs extends Inputs {
  query: Tensor
  positive: Tensor
  queue: Tensor
}

export const infoNceOp = defineOp<InfoNceInputs, { temperature: number; unit: boolean }>({
  name: 'infoNce',
  // loss = mean over rows of -log(e^(q.k/T) / (e^(q.k/T) + sum over the queue of e^(q.queue_j/T)))
  forward({ query, positive, queue }, { temperature, unit }, needsGradient) {
    const loss = Tensor.empty([], accumulator(query.dtype))
    const dquery = needsGradient ? Tensor.empty(query.shape, query.dtype) : undefined
    const statistics = Tensor.empty([4], 'f32')
    runNative('infoNce', { loss, dquery, statistics, query, positive, queue }, { temperature, unit })
    return { outputs: [loss, statistics], ...(dquery === undefined ? {} : { saved: { dquery } }) }
  },
  // dquery = ((p_0 - 1) positive + sum p_j queue_j) / (rows T), computed by the forward pass. Keys and queue are constants of
  // the method, so a gradient for them is an error, not a zero.
  backward({ grad, saved, needs }) {
    if (needs.positive || needs.queue)
      fail('TAPE', 'infoNce: positive and queue are constants (stop-gradient); compute them under noGrad()')
    return { query: scaled(saved.dquery!, grad) }
  },
})

/** What infoNce gives. */
export interface InfoNceResult {
  /** scalar of f32 or f64 */
  loss: Tensor
  /** f32 [4]: mean positive similarity, mean negative similarity, contrastive accuracy, mean log-sum-exp */
  statistics: Tensor
}

/**
 * Contrastive loss (van den Oord et al., arXiv:1807.03748) of query [R, D] against positive [R, D] and the K negatives of
 * queue [K, D], which every row shares. The logits are never stored. `unit` promises rows of length 1, whose similarities lie in
 * -1..1: a GPU then needs no running maximum.
 */
export function infoNce(
  query: Tensor,
  positive: Tensor,
  queue: Tensor,
  temperature: number,
  { unit = false }: { unit?: boolean } = {},
): InfoNceResult {
  expectFloats('infoNce', { query, positive, queue })
  expectRank('infoNce', 'query', query, 2)
  expectRank('infoNce', 'queue', queue, 2)
  expectShape('infoNce', 'positive', positive, query.shape, 'the shape of query')
  expectShape('infoNce', 'queue', queue, [queue.shape[0]!, query.shape[1]!], 'the columns of query')
  if (query.shape[0] === 0 || queue.shape[0] === 0)
    fail('SHAPE', `infoNce: expected at least one row but received query ${describe(query)} and queue ${describe(queue)}`)
  if (!(temperature > 0)) fail('ARGUMENT', `infoNce: expected a positive temperature but received ${temperature}`)
  const [loss, statistics] = apply(infoNceOp, { query, positive, queue }, { temperature, unit }) as [Tensor, Tensor]
  return { loss, statistics }
}

interface CrossEntropyInputs extends Inputs {
  logits: Tensor
  target: Tensor
  weight: Tensor | undefined
}

export const crossEntropyOp = defineOp<CrossEntropyInputs, { ignoreIndex: number }>({
  name: 'crossEntropy',
  // loss = sum over counted rows of weight[target] (log(sum e^logits) - logits[target]) / total, the sum of their weights
  forward({ logits, target, weight }, { ignoreIndex }, needsGradient) {
    const loss = Tensor.empty([], accumulator(logits.dtype))
    const dlogits = needsGradient ? Tensor.empty(logits.shape, logits.dtype) : undefined
    const total = Tensor.empty([1], accumulator(logits.dtype))
    runNative('crossEntropy', { loss, dlogits, total, logits, target, weight }, { ignoreIndex })
    return { outputs: [loss], ...(dlogits === undefined ? {} : { saved: { dlogits } }) }
  },
  // dlogits = weight[target] (softmax - onehot) / total
  backward({ grad, saved, needs }) {
    if (needs.weight) fail('TAPE', 'crossEntropy: weight is a constant (stop-gradient); compute it under noGrad()')
    return { logits: scaled(saved.dlogits!, grad) }
  },
})

/** Which rows of a cross-entropy count, and how much. */
export interface CrossEntropyOptions {
  /** The weight of each class [C], in f32 or the dtype of f64 logits; 1 by default. A row weighs what its target does. */
  weight?: Tensor | undefined
  /** Rows of this target do not count; -100 by default. */
  ignoreIndex?: number | undefined
}

/**
 * Mean cross-entropy of logits [..., C] against target i32 [...]: the sum of the rows' losses by their weights over the sum of these
 * weights, as PyTorch defines it; NaN where no row counts. Throws RANGE for a target that is no class, on a GPU when values are read next.
 */
export function crossEntropy(logits: Tensor, target: Tensor, { weight, ignoreIndex = -100 }: CrossEntropyOptions = {}): Tensor {
  expectFloats('crossEntropy', { logits }, { weight })
  expectDType('crossEntropy', 'target', target, 'i32')
  expectShape('crossEntropy', 'target', target, logits.shape.slice(0, -1), 'the rows of logits')
  if (weight !== undefined) expectShape('crossEntropy', 'weight', weight, logits.shape.slice(-1), 'the classes of logits')
  return apply(crossEntropyOp, { logits, target, weight }, { ignoreIndex })[0]!
}

interface PointwiseInputs extends Inputs {
  x: Tensor
  target: Tensor
  weight: Tensor | undefined
}
interface PointwiseAttrs {
  scale: number
  /** What the call has beside `scale`. */
  run: (tensors: { loss: Tensor; dx: Tensor | undefined; x: Tensor; target: Tensor; weight: Tensor | undefined }, scale: number) => void
}

const pointwiseOp = (name: 'smoothL1' | 'binaryCrossEntropy') =>
  defineOp<PointwiseInputs, PointwiseAttrs>({
    name,
    // loss = scale times the sum of weight * l(x, target)
    forward({ x, target, weight }, { scale, run }, needsGradient) {
      const loss = Tensor.empty([], accumulator(x.dtype))
      const dx = needsGradient ? Tensor.empty(x.shape, x.dtype) : undefined
      run({ loss, dx, x, target, weight }, scale)
      return { outputs: [loss], ...(dx === undefined ? {} : { saved: { dx } }) }
    },
    // dx = scale weight dl/dx, computed by the forward pass
    backward({ grad, saved, needs }) {
      if (needs.target || needs.weight)
        fail('TAPE', `${name}: target and weight are constants (stop-gradient); compute them under noGrad()`)
      return { x: scaled(saved.dx!, grad) }
    },
  })

export const smoothL1Op = pointwiseOp('smoothL1')
export const binaryCrossEntropyOp = pointwiseOp('binaryCrossEntropy')

/** What losses of single elements are weighted with and divided by. */
export interface PointwiseLossOptions {
  /**
   * The weight of each element, or of each row of leading axes: of the shape of x, or without some of its last axes, in f32 or the dtype of
   * f64 losses. What weighs 0 counts as 0 whatever it holds, also in the gradient: so elements are ignored. 1 by default.
   */
  weight?: Tensor | undefined
  /** What the sum is divided by: a number, or a tensor of one element, f32 or f64 as the loss. 1 by default. */
  divisor?: number | Tensor | undefined
}

function pointwise(
  op: ReturnType<typeof pointwiseOp>,
  x: Tensor,
  target: Tensor,
  { weight, divisor = 1 }: PointwiseLossOptions,
  run: PointwiseAttrs['run'],
): Tensor {
  const { name } = op
  expectFloats(name, { x, target }, { weight })
  expectShape(name, 'target', target, x.shape, 'the shape of x')
  if (weight !== undefined) expectShape(name, 'weight', weight, x.shape.slice(0, weight.shape.length), 'the leading axes of x')
  if (!(divisor instanceof Tensor)) {
    if (!(divisor > 0)) fail('ARGUMENT', `${name}: expected a positive divisor but received ${divisor}`)
    return apply(op, { x, target, weight }, { scale: 1 / divisor, run })[0]!
  }
  if (divisor.size !== 1) fail('SHAPE', `${name}: expected a divisor of one element but received ${describe(divisor)}`)
  return scope(() => div(apply(op, { x, target, weight }, { scale: 1, run })[0]!, reshape(divisor, [])))
}

/**
 * The smooth L1 loss (Girshick, arXiv:1504.08083) of x against `target` of its shape, summed over all elements: with d = x - target,
 * d^2 / (2 beta) where |d| < beta, else |d| - beta / 2. `beta` is 1 by default; 0 is the L1 loss.
 */
export function smoothL1(x: Tensor, target: Tensor, { beta = 1, ...options }: PointwiseLossOptions & { beta?: number } = {}): Tensor {
  if (!(beta >= 0 && beta < Infinity)) fail('ARGUMENT', `smoothL1: expected a beta of at least 0 but received ${beta}`)
  return pointwise(smoothL1Op, x, target, options, (tensors, scale) => runNative('smoothL1', tensors, { beta, scale }))
}

/**
 * Binary cross-entropy of logits against targets between 0 and 1 of their shape, summed over all elements: -t log(sigmoid(x)) -
 * (1 - t) log(1 - sigmoid(x)). It does not overflow.
 */
export function binaryCrossEntropy(logits: Tensor, target: Tensor, options: PointwiseLossOptions = {}): Tensor {
  return pointwise(binaryCrossEntropyOp, logits, target, options, (tensors, scale) => runNative('binaryCrossEntropy', tensors, { scale }))
}
