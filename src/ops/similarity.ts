import { apply } from '../autograd/tape.js'
import { defineOp, expectDType, expectFloats, expectRank, expectShape, expectTensor, type Inputs } from '../autograd/op.js'
import { calledAs, fail } from '../tensor/errors.js'
import { nativeOpNames, runNative } from '../tensor/native.js'
import { accumulator, describe, scope, sizeOf, Tensor } from '../tensor/tensor.js'
import { gather } from './gather.js'

interface NormalizeInputs extends Inputs {
  x: Tensor
}

export const l2NormalizeOp = defineOp<NormalizeInputs, { eps: number }>({
  name: 'l2Normalize',
  forward({ x }, { eps }) {
    const y = Tensor.empty(x.shape, x.dtype)
    const norm = Tensor.empty(x.shape.slice(0, -1), accumulator(x.dtype))
    runNative('l2Normalize', { y, norm, x }, { eps })
    return { outputs: [y], saved: { y, norm } }
  },
  // dx = (dy - y (y . dy)) / max(|x|, eps); without the second term where |x| <= eps
  backward({ grad, saved, attrs }) {
    const dx = Tensor.empty(grad.shape, grad.dtype)
    runNative('l2NormalizeBackward', { dx, dy: grad, y: saved.y!, norm: saved.norm! }, { eps: attrs.eps })
    return { x: dx }
  },
})

/** x [..., C] divided by max(|x|, eps) along the last axis. */
export function l2Normalize(x: Tensor, eps = 1e-12): Tensor {
  expectFloats('l2Normalize', { x })
  if (x.shape.length === 0) fail('SHAPE', 'l2Normalize: expected x of rank 1 or more but received a scalar')
  return apply(l2NormalizeOp, { x }, { eps })[0]!
}

interface MatchInputs extends Inputs {
  query: Tensor
  key: Tensor
}

export const denseMatchOp = defineOp<MatchInputs, { cosine: boolean }>({
  name: 'denseMatch',
  forward({ query, key }, { cosine }) {
    const index = Tensor.empty(query.shape.slice(0, 2), 'i32')
    const similarity = Tensor.empty(query.shape.slice(0, 2), accumulator(query.dtype))
    runNative('denseMatch', { index, similarity, query, key }, { cosine })
    return { outputs: [index, similarity] }
  },
  backward: 'notDifferentiable',
})

/**
 * For each position of query [N, P, C] the most similar position of key [N, Q, C] of the same image: index i32 [N, P] and
 * its similarity [N, P]. Cosine similarity unless told otherwise; the lowest index wins a tie.
 */
export function denseMatch(query: Tensor, key: Tensor, { cosine = true } = {}): { index: Tensor; similarity: Tensor } {
  expectFloats('denseMatch', { query, key })
  expectRank('denseMatch', 'query', query, 3)
  expectRank('denseMatch', 'key', key, 3)
  expectShape('denseMatch', 'key', key, [query.shape[0]!, key.shape[1]!, query.shape[2]!], 'images and channels of query')
  if (key.shape[1] === 0) fail('SHAPE', `denseMatch: expected at least one key position but received key ${describe(key)}`)
  const [index, similarity] = apply(denseMatchOp, { query, key }, { cosine }) as [Tensor, Tensor]
  return { index, similarity }
}

/** y[n, i] = x[n, index[n, i]] for x [N, Q, C] and index i32 [N, P]. */
export function gatherRows(x: Tensor, index: Tensor): Tensor {
  expectFloats('gatherRows', { x })
  expectRank('gatherRows', 'x', x, 3)
  expectRank('gatherRows', 'index', index, 2)
  expectDType('gatherRows', 'index', index, 'i32')
  expectShape('gatherRows', 'index', index, [x.shape[0]!, index.shape[1]!], 'the images of x')
  return calledAs('gatherRows', new Set(['gather']), () => gather(x, index, { axis: 1, batchAxes: 1 }))
}

/** The images of x [N, ...] in the order of `order`, N numbers or a tensor i32 [1, N] (not recorded on a tape). */
export function permuteBatch(x: Tensor, order: ArrayLike<number> | Tensor): Tensor {
  expectTensor('permuteBatch', 'x', x)
  if (x.shape.length === 0) fail('SHAPE', 'permuteBatch: expected x of rank 1 or more but received a scalar')
  const n = x.shape[0]!
  return scope(() => {
    const index = order instanceof Tensor ? order : Tensor.from(order, [1, n], 'i32', x.device)
    const y = Tensor.empty(x.shape, x.dtype, x.device)
    const rows = [1, n, sizeOf(x.shape.slice(1))]
    const [to, from] = [y.alias(rows), x.alias(rows)]
    calledAs('permuteBatch', nativeOpNames, () => runNative('gatherRows', { y: to, x: from, index }))
    return y
  })
}
