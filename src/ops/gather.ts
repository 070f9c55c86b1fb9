import { apply } from '../autograd/tape.js'
import { defineOp, expectDType, expectFloats, expectInteger, type Inputs } from '../autograd/op.js'
import { calledAs, fail } from '../tensor/errors.js'
import { nativeOpNames, runNative } from '../tensor/native.js'
import { describe, type FloatDType, scope, type Shape, sizeOf, Tensor } from '../tensor/tensor.js'
import { axisOf } from './axes.js'

interface GatherInputs extends Inputs {
  x: Tensor
  index: Tensor
}

interface GatherAttrs {
  shape: Shape
  from: Shape
  /** x as [N, Q, C] and the index as [M, P]. */
  blocks: readonly [number, number, number]
  picks: readonly [number, number]
}

export const gatherOp = defineOp<GatherInputs, GatherAttrs>({
  name: 'gather',
  forward({ x, index }, { shape, blocks, picks }) {
    const y = Tensor.empty(shape, x.dtype)
    runNative('gatherRows', { y: y.alias([blocks[0], picks[1], blocks[2]]), x: x.alias(blocks), index: index.alias(picks) })
    return { outputs: [y], saved: { index } }
  },
  // dx[.., index[i], ..] += dy[.., i, ..]
  backward({ grad, saved, attrs: { from, blocks, picks } }) {
    const dx = Tensor.empty(from, grad.dtype)
    const dy = grad.alias([blocks[0], picks[1], blocks[2]])
    runNative('gatherRowsBackward', { dx: dx.alias(blocks), dy, index: saved.index!.alias(picks) })
    return { x: dx }
  },
})

/**
 * What `index`, i32 of any shape, picks along an axis of x: y[.., i, .., ..] = x[.., index[i], ..], where the axes of `index` stand in the
 * place of `axis` (NumPy's `take`). The first `batchAxes` axes are shared: x and `index` have them in common, and each picks from its own.
 * -1 picks nothing, as nms fills up with: zeros, which have no gradient. Throws RANGE for another index outside of the axis, on a GPU when
 * values are read next.
 */
export function gather(x: Tensor, index: Tensor, { axis = 0, batchAxes = 0 } = {}): Tensor {
  expectDType('gather', 'index', index, 'i32')
  const along = axisOf('gather', x, axis)
  expectInteger('gather', 'batchAxes', batchAxes, 0)
  if (batchAxes > along || batchAxes > index.shape.length)
    fail('ARGUMENT', `gather: expected batchAxes of at most ${Math.min(along, index.shape.length)} but received ${batchAxes}`)
  const [shared, own] = [x.shape.slice(0, batchAxes), index.shape.slice(batchAxes)]
  if (shared.some((size, i) => index.shape[i] !== size))
    fail('SHAPE', `gather: expected index [${shared.join(',')},..] (the batch of x ${describe(x)}) but received ${describe(index)}`)
  const [before, rows, after] = [x.shape.slice(0, along), x.shape[along]!, x.shape.slice(along + 1)]
  if (rows === 0 && index.size > 0) fail('SHAPE', `gather: expected an axis ${along} that is not empty but received x ${describe(x)}`)
  const attrs = {
    shape: [...before, ...own, ...after],
    from: x.shape,
    blocks: [sizeOf(before), rows, sizeOf(after)] as const,
    picks: [sizeOf(shared), sizeOf(own)] as const,
  }
  return apply(gatherOp, { x, index }, attrs)[0]!
}

interface ScatterInputs extends Inputs {
  x: Tensor
  index: Tensor
}

export const scatterAddOp = defineOp<ScatterInputs, GatherAttrs>({
  name: 'scatterAdd',
  // y[.., index[i], ..] += x[.., i, ..], in the order of i; `from` is the shape of the result here, `shape` that of x
  forward({ x, index }, { from, blocks, picks }) {
    const y = Tensor.empty(from, x.dtype)
    const dy = x.alias([blocks[0], picks[1], blocks[2]])
    runNative('gatherRowsBackward', { dx: y.alias(blocks), dy, index: index.alias(picks) })
    return { outputs: [y], saved: { index } }
  },
  // dx[.., i, ..] = dy[.., index[i], ..]
  backward({ grad, saved, attrs: { shape, blocks, picks } }) {
    const dx = Tensor.empty(shape, grad.dtype)
    runNative('gatherRows', { y: dx.alias([blocks[0], picks[1], blocks[2]]), x: grad.alias(blocks), index: saved.index!.alias(picks) })
    return { x: dx }
  },
})

/**
 * The adjoint of gather: zeros with `size` places along `axis`, to which each part of x is added where `index`, i32 of any shape, says:
 * y[.., index[i], .., ..] += x[.., i, .., ..]. The axes of `index` stand in x in the place of `axis`; the first `batchAxes` axes are
 * shared. Parts that meet are added in their order, so the result is the same bits every time; those of index -1 are left out. Throws
 * RANGE for another index outside of `size`, on a GPU when values are read next.
 */
export function scatterAdd(x: Tensor, index: Tensor, size: number, { axis = 0, batchAxes = 0 } = {}): Tensor {
  expectFloats('scatterAdd', { x })
  expectDType('scatterAdd', 'index', index, 'i32')
  expectInteger('scatterAdd', 'size', size, 0)
  expectInteger('scatterAdd', 'axis', axis, 0)
  expectInteger('scatterAdd', 'batchAxes', batchAxes, 0)
  if (batchAxes > axis || batchAxes > index.shape.length)
    fail('ARGUMENT', `scatterAdd: expected batchAxes of at most ${Math.min(axis, index.shape.length)} but received ${batchAxes}`)
  const [shared, own] = [index.shape.slice(0, batchAxes), index.shape.slice(batchAxes)]
  const [before, taken, after] = [x.shape.slice(0, axis), x.shape.slice(axis, axis + own.length), x.shape.slice(axis + own.length)]
  if (axis > x.shape.length || shared.some((d, i) => d !== before[i]) || own.some((d, i) => d !== taken[i]))
    fail('SHAPE', `scatterAdd: expected the axes of index ${describe(index)} in x, from axis ${axis}, but received x ${describe(x)}`)
  if (size === 0 && index.size > 0) fail('SHAPE', `scatterAdd: expected a size of at least 1 for index ${describe(index)} but received 0`)
  const attrs = {
    shape: x.shape,
    from: [...before, size, ...after],
    blocks: [sizeOf(before), size, sizeOf(after)] as const,
    picks: [sizeOf(shared), sizeOf(own)] as const,
  }
  return apply(scatterAddOp, { x, index }, attrs)[0]!
}

/**
 * 1 at each index, 0 elsewhere and for -1: index i32 [...] below `depth` to [..., depth]. Not recorded on a tape: an index has no
 * gradient.
 */
export function oneHot(index: Tensor, depth: number, dtype: FloatDType = 'f32'): Tensor {
  expectDType('oneHot', 'index', index, 'i32')
  expectInteger('oneHot', 'depth', depth, 1)
  return scope(() => {
    const y = Tensor.empty([...index.shape, depth], dtype, index.device)
    const ones = Tensor.full([index.size, 1, 1], 1, dtype, index.device)
    const tensors = { dx: y.alias([index.size, depth, 1]), dy: ones, index: index.alias([index.size, 1]) }
    calledAs('oneHot', nativeOpNames, () => runNative('gatherRowsBackward', tensors))
    return y
  })
}
