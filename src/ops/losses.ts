import { apply } from '../autograd/tape.js'
import { defineOp, expectDType, expectFloats, expectRank, expectShape, type Inputs } from '../autograd/op.js'
import { fail } from '../tensor/errors.js'
import { runNative } from '../tensor/native.js'
import { accumulator, describe, Tensor } from '../tensor/tensor.js'

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
}

export const crossEntropyOp = defineOp<CrossEntropyInputs, { ignoreIndex: number }>({
  name: 'crossEntropy',
  // loss = mean over counted rows of log(sum e^logits) - logits[target]
  forward({ logits, target }, { ignoreIndex }, needsGradient) {
    const loss = Tensor.empty([], accumulator(logits.dtype))
    const dlogits = needsGradient ? Tensor.empty(logits.shape, logits.dtype) : undefined
    const count = Tensor.empty([1], 'f32')
    runNative('crossEntropy', { loss, dlogits, count, logits, target }, { ignoreIndex })
    return { outputs: [loss, count], ...(dlogits === undefined ? {} : { saved: { dlogits } }) }
  },
  // dlogits = (softmax - onehot) / rows counted
  backward({ grad, saved }) {
    return { logits: scaled(saved.dlogits!, grad) }
  },
})

/** Mean cross-entropy of logits [..., C] against target i32 [...]; rows whose target is `ignoreIndex` do not count. */
export function crossEntropy(logits: Tensor, target: Tensor, ignoreIndex = -100): Tensor {
  expectFloats('crossEntropy', { logits })
  expectDType('crossEntropy', 'target', target, 'i32')
  expectShape('crossEntropy', 'target', target, logits.shape.slice(0, -1), 'the rows of logits')
  return apply(crossEntropyOp, { logits, target }, { ignoreIndex })[0]!
}
