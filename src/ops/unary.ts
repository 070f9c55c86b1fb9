/** Functions of one tensor, element by element, by the formulas of native/core/maps.def. */
import { defineOp, expectFloats, type Inputs } from '../autograd/op.js'
import { apply } from '../autograd/tape.js'
import { runNative } from '../tensor/native.js'
import { unaryKinds } from '../tensor/nativeOps.js'
import { Tensor } from '../tensor/tensor.js'

export type UnaryName = keyof typeof unaryKinds

const unaryOp = (name: UnaryName) =>
  defineOp<Inputs & { x: Tensor }>({
    name,
    forward({ x }) {
      const y = Tensor.empty(x.shape, x.dtype)
      runNative('unary', { y, x }, { kind: unaryKinds[name].kind })
      return { outputs: [y], saved: { saved: unaryKinds[name].saved === 'x' ? x : y } }
    },
    // dx = dy f'(x), from x or from y as maps.def says
    backward({ grad, saved }) {
      const dx = Tensor.empty(grad.shape, grad.dtype)
      runNative('unaryBackward', { dx, dy: grad, saved: saved.saved! }, { kind: unaryKinds[name].kind })
      return { x: dx }
    },
  })

export const unaryOps = Object.fromEntries((Object.keys(unaryKinds) as UnaryName[]).map((name) => [name, unaryOp(name)])) as Record<
  UnaryName,
  ReturnType<typeof unaryOp>
>

const elementwise =
  (name: UnaryName) =>
  (x: Tensor): Tensor => {
    expectFloats(name, { x })
    return apply(unaryOps[name], { x }, {})[0]!
  }

/** e to the power x. */
export const exp = elementwise('exp')
/** The natural logarithm: -Infinity at 0, NaN below. */
export const log = elementwise('log')
/** The square root: NaN below 0. */
export const sqrt = elementwise('sqrt')
/** |x|, whose gradient at 0 is 0. */
export const abs = elementwise('abs')
/** x * x. */
export const square = elementwise('square')
/** 1 / x. */
export const reciprocal = elementwise('reciprocal')
/** 1 / (1 + e^-x). */
export const sigmoid = elementwise('sigmoid')
/** The hyperbolic tangent. */
export const tanh = elementwise('tanh')
/** x / (1 + e^-x), the sigmoid linear unit (swish). */
export const silu = elementwise('silu')
/**
 * The Gaussian error linear unit in its exact form, x Phi(x) = x (1 + erf(x / sqrt 2)) / 2 (D. Hendrycks and K. Gimpel, arXiv:1606.08415),
 * not the approximation by tanh.
 */
export const gelu = elementwise('gelu')
