import { apply } from '../autograd/tape.js'
import { defineOp, expectElements, expectFloats, expectInteger, expectRank, type Inputs } from '../autograd/op.js'
import { calledAs, fail } from '../tensor/errors.js'
import { type OpNumbers, runNative } from '../tensor/native.js'
import { describe, Tensor } from '../tensor/tensor.js'
import { deviceTraits } from '../tensor/traits.js'
import { perAxis, type PerAxis } from './windows.js'
import { deferredNorm, valuesOf } from './fusion.js'

/** Windows of a pooling; a pair is vertical, horizontal, and the stride is the kernel when absent. */
export interface Pool2dOptions {
  kernel: PerAxis
  stride?: PerAxis
  padding?: PerAxis
}

interface PoolInputs extends Inputs {
  x: Tensor
}
interface PoolAttrs<Numbers = OpNumbers<'maxPool2dBackward'>> {
  numbers: Numbers
  inputShape: readonly number[]
  outputShape: readonly number[]
}

export const maxPool2dOp = defineOp<PoolInputs, PoolAttrs>({
  name: 'maxPool2d',
  forward({ x }, { numbers, outputShape }, needsGradient) {
    const y = Tensor.empty(outputShape, x.dtype)
    // The tap of each window is kept, in a byte where it fits, and nothing for a pass without a gradient.
    const taps = numbers.kernelH * numbers.kernelW
    const index = needsGradient ? Tensor.empty(outputShape, taps <= 256 ? 'u8' : 'i32') : undefined
    const norm = deviceTraits(x.device).prologues ? deferredNorm(x) : undefined
    runNative(
      'maxPool2d',
      { y, index, x: norm?.x ?? valuesOf(x), scale: norm?.scale, shift: norm?.shift },
      { ...numbers, relu: norm?.relu ?? false },
    )
    return { outputs: [y], ...(index === undefined ? {} : { saved: { index } }) }
  },
  // dx[the position of each maximum] += dy
  backward({ grad, saved, attrs }) {
    const dx = Tensor.empty(attrs.inputShape, grad.dtype)
    runNative('maxPool2dBackward', { dx, dy: grad, index: saved.index! }, attrs.numbers)
    return { x: dx }
  },
})

export const avgPool2dOp = defineOp<PoolInputs, PoolAttrs<OpNumbers<'avgPool2d'>>>({
  name: 'avgPool2d',
  forward({ x }, { numbers, outputShape }) {
    const y = Tensor.empty(outputShape, x.dtype)
    runNative('avgPool2d', { y, x }, numbers)
    return { outputs: [y] }
  },
  // dx += dy / count over each window
  backward({ grad, attrs }) {
    const dx = Tensor.empty(attrs.inputShape, grad.dtype)
    runNative('avgPool2dBackward', { dx, dy: grad }, attrs.numbers)
    return { x: dx }
  },
})

function windows(op: string, x: Tensor, { kernel, stride = kernel, padding = 0 }: Pool2dOptions): PoolAttrs {
  expectFloats(op, { x })
  expectRank(op, 'x', x, 4)
  expectElements(op, 'x', x, 1)
  const [[kh, kw], [sh, sw], [ph, pw]] = [perAxis(kernel), perAxis(stride), perAxis(padding)]
  for (const value of [kh, kw]) expectInteger(op, 'kernel', value, 1)
  for (const value of [sh, sw]) expectInteger(op, 'stride', value, 1)
  for (const value of [ph, pw]) expectInteger(op, 'padding', value, 0)
  if (2 * ph > kh || 2 * pw > kw)
    fail('ARGUMENT', `${op}: expected padding of at most half the kernel ${kh}x${kw} but received ${ph}x${pw}`)
  const [n, h, w, c] = x.shape as [number, number, number, number]
  const oh = Math.floor((h + 2 * ph - kh) / sh) + 1
  const ow = Math.floor((w + 2 * pw - kw) / sw) + 1
  if (oh < 1 || ow < 1) fail('SHAPE', `${op}: the kernel ${kh}x${kw} is larger than the padded x ${describe(x)}`)
  const numbers = { kernelH: kh, kernelW: kw, strideH: sh, strideW: sw, paddingH: ph, paddingW: pw }
  return { numbers, inputShape: x.shape, outputShape: [n, oh, ow, c] }
}

/** The largest value of each window of x [N, H, W, C]; padding never wins, the first of equals gets the gradient. */
export function maxPool2d(x: Tensor, options: Pool2dOptions): Tensor {
  return apply(maxPool2dOp, { x }, windows('maxPool2d', x, options))[0]!
}

/** The mean of each window of x [N, H, W, C], over the padding too when it is counted (PyTorch's default). */
export function avgPool2d(x: Tensor, options: Pool2dOptions & { countPadding?: boolean }): Tensor {
  const attrs = windows('avgPool2d', x, options)
  const { countPadding = true } = options
  return apply(avgPool2dOp, { x }, { ...attrs, numbers: { ...attrs.numbers, countPadding, adaptive: false } })[0]!
}

/** Windows that follow from the sizes alone. */
export const adaptiveWindows: OpNumbers<'avgPool2d'> = {
  ...{ kernelH: 1, kernelW: 1, strideH: 1, strideW: 1, paddingH: 0, paddingW: 0 },
  countPadding: false,
  adaptive: true,
}

/** The means of `output` x `output` windows that cover x [N, H, W, C]; 1 is global average pooling. */
export function adaptiveAvgPool2d(x: Tensor, output: PerAxis): Tensor {
  expectFloats('adaptiveAvgPool2d', { x })
  expectRank('adaptiveAvgPool2d', 'x', x, 4)
  expectElements('adaptiveAvgPool2d', 'x', x, 1)
  const [oh, ow] = perAxis(output)
  for (const value of [oh, ow]) expectInteger('adaptiveAvgPool2d', 'output', value, 1)
  const outputShape = [x.shape[0]!, oh, ow, x.shape[3]!]
  const attrs = { numbers: adaptiveWindows, inputShape: x.shape, outputShape }
  return calledAs('adaptiveAvgPool2d', new Set(['avgPool2d']), () => apply(avgPool2dOp, { x }, attrs)[0]!)
}
