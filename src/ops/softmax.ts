import { defineOp, expectFloats, type Inputs } from '../autograd/op.js'
import { apply } from '../autograd/tape.js'
import { calledAs, fail } from '../tensor/errors.js'
import { runNative } from '../tensor/native.js'
import { describe, type Shape, Tensor } from '../tensor/tensor.js'
import { axisOf } from './axes.js'

interface Lines extends Inputs {
  x: Tensor
}
/** The axis that an op works along. */
export interface AxisOptions {
  /** The axis along which values are normalised or compared, counted from the end where negative; the last one by default. */
  axis?: number | undefined
}

export const softmaxOp = defineOp<Lines, { axis: number; log: boolean }>({
  name: 'softmax',
  forward({ x }, { axis, log }) {
    const y = Tensor.empty(x.shape, x.dtype)
    runNative('softmax', { y, x }, { axis, log })
    return { outputs: [y], saved: { y } }
  },
  // dx = y (dy - sum of y dy); of the logarithm dx = dy - e^y sum of dy
  backward({ grad, saved, attrs }) {
    const dx = Tensor.empty(grad.shape, grad.dtype)
    runNative('softmaxBackward', { dx, dy: grad, y: saved.y! }, attrs)
    return { x: dx }
  },
})

function normalised(op: string, x: Tensor, axis: number, log: boolean): Tensor {
  expectFloats(op, { x })
  return calledAs(op, new Set(['softmax']), () => apply(softmaxOp, { x }, { axis: axisOf(op, x, axis), log })[0]!)
}

/** e^x over its sum along `axis`. The maximum is subtracted first: nothing overflows. */
export const softmax = (x: Tensor, { axis = -1 }: AxisOptions = {}): Tensor => normalised('softmax', x, axis, false)

/** The logarithm of the softmax along `axis`, x - log(sum of e^x), finite for any finite x. */
export const logSoftmax = (x: Tensor, { axis = -1 }: AxisOptions = {}): Tensor => normalised('logSoftmax', x, axis, true)

export const argmaxOp = defineOp<Lines, { axis: number; to: Shape }>({
  name: 'argmax',
  forward({ x }, { axis, to }) {
    const index = Tensor.empty(to, 'i32')
    runNative('argmax', { index, x }, { axis })
    return { outputs: [index] }
  },
  backward: 'notDifferentiable',
})

/**
 * The index of the largest element along `axis` (the last one by default), as i32: the lowest one where several are the largest, and the
 * first NaN where there is one. Not differentiable.
 */
export function argmax(x: Tensor, { axis = -1, keepDims = false }: AxisOptions & { keepDims?: boolean | undefined } = {}): Tensor {
  expectFloats('argmax', { x })
  const along = axisOf('argmax', x, axis)
  if (x.shape[along] === 0) fail('SHAPE', `argmax: expected at least one element along axis ${axis} but received x ${describe(x)}`)
  const to = keepDims ? x.shape.with(along, 1) : x.shape.toSpliced(along, 1)
  return apply(argmaxOp, { x }, { axis: along, to })[0]!
}
