/** Reductions along axes: sum, mean, max, variance. */
import { defineOp, expectFloats, type Inputs } from '../autograd/op.js'
import { apply } from '../autograd/tape.js'
import { calledAs, fail } from '../tensor/errors.js'
import { accumulator, describe, type DType, type FloatDType, type Shape, sizeOf, Tensor } from '../tensor/tensor.js'
import { axisOf } from './axes.js'
import { asDType, binary, reduceTo, spread } from './broadcast.js'

/** What a reduction goes over. */
export interface ReduceOptions {
  /** The axes that are reduced, counted from the end where negative; all of them by default. */
  axes?: number | readonly number[] | undefined
  /** Keeps the reduced axes with one element, so that the result broadcasts against x. False by default. */
  keepDims?: boolean | undefined
}
/** What a sum goes over. */
export interface SumOptions extends ReduceOptions {
  /** The dtype of the result: that of x by default, or f32, in which bf16 is summed anyway. */
  dtype?: FloatDType | undefined
}

interface Reduced extends Inputs {
  x: Tensor
}
interface ReduceAttrs {
  /** The shape of x, and that with one element along the reduced axes. */
  from: Shape
  kept: Shape
  /** The shape of the result. */
  to: Shape
  dtype: FloatDType
  /** That of x. */
  source: DType
  scale: number
}

function attrsOf(op: string, x: Tensor, { axes, keepDims = false, dtype }: SumOptions): ReduceAttrs {
  expectFloats(op, { x })
  const list =
    axes === undefined ? x.shape.map((_, axis) => axis) : (typeof axes === 'number' ? [axes] : axes).map((axis) => axisOf(op, x, axis))
  const reduced = new Set(list)
  if (reduced.size !== list.length) fail('ARGUMENT', `${op}: expected each axis once but received [${(axes as number[]).join(',')}]`)
  if (dtype !== undefined && dtype !== x.dtype && dtype !== accumulator(x.dtype))
    fail('DTYPE', `${op}: expected a result of ${x.dtype} or ${accumulator(x.dtype)} but received ${dtype}`)
  const kept = x.shape.map((d, axis) => (reduced.has(axis) ? 1 : d))
  const to = keepDims ? kept : x.shape.filter((_, axis) => !reduced.has(axis))
  return { from: x.shape, kept, to, dtype: dtype ?? (x.dtype as FloatDType), source: x.dtype, scale: 1 }
}

export const sumOp = defineOp<Reduced, ReduceAttrs>({
  name: 'sum',
  forward({ x }, { kept, to, dtype, scale }) {
    return { outputs: [reduceTo(x, kept, dtype, { scale }).alias(to)] }
  },
  // dx = scale dy, repeated along the reduced axes
  backward({ grad, attrs: { from, kept, source, scale } }) {
    return { x: spread(asDType(grad.alias(kept), source), from, scale) }
  },
})

/** The sum of x along `axes`, 0 over no elements. bf16 is summed in f32. */
export function sum(x: Tensor, options: SumOptions = {}): Tensor {
  return apply(sumOp, { x }, attrsOf('sum', x, options))[0]!
}

/** The mean of x along `axes`, NaN over no elements. bf16 is summed in f32. */
export function mean(x: Tensor, options: SumOptions = {}): Tensor {
  const attrs = attrsOf('mean', x, options)
  return calledAs('mean', new Set(['sum']), () => apply(sumOp, { x }, { ...attrs, scale: sizeOf(attrs.kept) / x.size })[0]!)
}

export const maxOp = defineOp<Reduced, ReduceAttrs>({
  name: 'max',
  forward({ x }, { kept, to, dtype }) {
    const largest = reduceTo(x, kept, dtype, { maximum: true })
    return { outputs: [largest.alias(to)], saved: { x, largest } }
  },
  // dx = dy / n at each of the n elements that are the largest, else 0
  backward({ grad, saved, attrs: { kept } }) {
    const matches = binary('matches', saved.x!, saved.largest!)
    const share = binary('div', grad.alias(kept), reduceTo(matches, kept, accumulator(matches.dtype)))
    return { x: binary('mul', matches, asDType(share, matches.dtype)) }
  },
})

/**
 * The largest element along `axes`, and NaN where one of them is NaN. Where several are the largest they share the gradient equally (as
 * PyTorch's amax). Throws SHAPE over no elements.
 */
export function max(x: Tensor, options: ReduceOptions = {}): Tensor {
  const attrs = attrsOf('max', x, options)
  if (x.size === 0 && sizeOf(attrs.kept) > 0)
    fail('SHAPE', `max: expected at least one element along the axes but received x ${describe(x)}`)
  return apply(maxOp, { x }, attrs)[0]!
}

interface VarianceAttrs extends ReduceAttrs {
  /** 1 / n for n elements, which makes a sum a mean. */
  share: number
}

export const varianceOp = defineOp<Reduced, VarianceAttrs>({
  name: 'variance',
  // y = scale sum of (x - mean)^2
  forward({ x }, { kept, to, dtype, scale, share }) {
    const center = reduceTo(x, kept, accumulator(x.dtype), { scale: share })
    const deviation = binary('sub', asDType(x, center.dtype), center)
    const y = reduceTo(binary('mul', deviation, deviation), kept, center.dtype, { scale })
    return { outputs: [asDType(y, dtype).alias(to)], saved: { x, center } }
  },
  // dx = 2 scale dy (x - mean), whose terms through the mean add up to 0
  backward({ grad, saved, attrs: { kept, scale } }) {
    const { x, center } = saved as Record<'x' | 'center', Tensor>
    const deviation = binary('sub', asDType(x, center.dtype), center)
    const factor = spread(asDType(grad.alias(kept), center.dtype), kept, 2 * scale)
    return { x: asDType(binary('mul', deviation, factor), x.dtype) }
  },
})

/**
 * The variance of x along `axes`: the mean of the squared deviations from the mean, in two passes, so that a large mean does not cancel.
 * The sum is divided by n - `correction` for n elements, or by 0 where that is negative: 0 by default, 1 for the unbiased estimate. bf16 is
 * computed in f32. Throws ARGUMENT for a correction that is no number.
 */
export function variance(x: Tensor, { correction = 0, ...options }: ReduceOptions & { correction?: number } = {}): Tensor {
  const attrs = attrsOf('variance', x, options)
  if (!Number.isFinite(correction)) fail('ARGUMENT', `variance: expected correction to be a number but received ${correction}`)
  const count = x.size / sizeOf(attrs.kept)
  return apply(varianceOp, { x }, { ...attrs, share: 1 / count, scale: 1 / Math.max(0, count - correction) })[0]!
}
