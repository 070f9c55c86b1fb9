import { apply } from '../autograd/tape.js'
import { defineOp, type Epilogue, type Inputs, type NormEpilogue } from '../autograd/op.js'
import { currentCompute } from '../tensor/compute.js'
import { fail } from '../tensor/errors.js'
import { usesFamily } from '../tensor/families.js'
import { accumulator, describe, scope, Tensor } from '../tensor/tensor.js'
import { deviceTraits } from '../tensor/traits.js'
import { conv2dE4m3 } from './e4m3.js'
import {
  type DeferredNorm,
  deferredNorm,
  type DeferredNormGradient,
  deferredNormGradient,
  roundedWeight,
  valuesOf,
  wholeVectors,
} from './fusion.js'
import { groupedConv2d } from './groupedConv2d.js'
import { hopperTileRows, isAmpereTile } from './kernels.js'
import { sumRows } from './sumRows.js'
import {
  chosenPrologue,
  computeNumbers,
  type ConvolutionNumbers,
  type ConvolutionShape,
  familyOf,
  hopperHas,
  productOf,
  runProduct,
} from './tuning.js'
import { type Conv2dOptions, convolutionGeometry, convolutionSize } from './windows.js'

interface Conv2dInputs extends Inputs {
  x: Tensor
  weight: Tensor
  bias: Tensor | undefined
}

interface Conv2dAttrs {
  numbers: ConvolutionNumbers
  /** Also give statistics of y for the batch norm that follows. */
  statistics: boolean
  inputShape: readonly number[]
  weightShape: readonly number[]
}

export const conv2dOp = defineOp<Conv2dInputs, Conv2dAttrs>({
  name: 'conv2d',
  forward({ x, weight, bias }, { numbers, statistics: wanted }) {
    const [oh, ow] = convolutionSize(x, weight, numbers)
    const [n, o] = [x.shape[0]!, weight.shape[0]!]
    const y = Tensor.empty([n, oh, ow, o], x.dtype)
    const rows = Math.ceil((n * oh * ow) / deviceTraits(x.device).statisticsRows)
    const statistics = wanted ? Tensor.empty([rows, 2, o], 'f32') : undefined
    const { norm } = prologues({ direction: 'forward', input: x.shape, weight: weight.shape, numbers, dtype: x.dtype }, x)
    runProduct(
      'conv2d',
      { y, x: norm?.x ?? valuesOf(x), weight: roundedWeight(weight, x.dtype), bias, statistics, scale: norm?.scale, shift: norm?.shift },
      { ...numbers, relu: norm?.relu ?? false },
    )
    return { outputs: statistics === undefined ? [y] : [y, statistics], saved: { x, weight } }
  },
  // dx = dy convolved with the weights transposed; dw[o, t] = sum of dy[p, o] x[p moved by t]; db = sum of dy
  backward({ grad, saved, attrs, needs, last }) {
    const { x, weight } = saved as { x: Tensor; weight: Tensor }
    const gradients: { x?: Tensor; weight?: Tensor; bias?: Tensor } = {}
    const { numbers, inputShape: input, weightShape } = attrs
    const shape: ConvolutionShape = { direction: 'backward weight', input, weight: weightShape, numbers, dtype: x.dtype }
    const { norm: operand, gradient: norm } = prologues(shape, x, grad)
    const deferred = { gradientX: norm?.x, gradientMean: norm?.mean, coefficients: norm?.coefficients }
    if (needs.weight) {
      gradients.weight = Tensor.empty(weightShape, accumulator(grad.dtype))
      const product = { dweight: gradients.weight, dy: norm?.dz ?? grad, scale: operand?.scale, shift: operand?.shift, ...deferred }
      // Values that are made for this product are freed before the other gradient is.
      scope(() =>
        runProduct(
          'conv2dBackwardWeight',
          { ...product, x: operand?.x ?? valuesOf(x) },
          { ...numbers, relu: operand?.relu ?? false, splits: 0 },
        ),
      )
    }
    if (needs.x) {
      gradients.x = Tensor.empty(input, grad.dtype)
      const epilogue = last.x === undefined ? undefined : backwardEpilogue(last.x, gradients.x, grad, attrs)
      const { add, of, sums } = epilogue ?? {}
      const normBefore = { x: of?.x, y: of?.y, scale: of?.scale, shift: of?.shift, mean: of?.mean, sums }
      const operands = { dx: gradients.x, dy: norm?.dz ?? grad, weight: roundedWeight(weight, x.dtype), add, ...normBefore, ...deferred }
      runProduct('conv2dBackwardInput', operands, numbers)
      if (epilogue !== undefined) last.x!.done(sums)
    }
    if (needs.bias) gradients.bias = sumRows(grad)
    return gradients
  },
})

/** The operands of a convolution that its kernels compute on their way in, of those that are deferred. */
interface Prologues {
  norm?: DeferredNorm | undefined
  gradient?: DeferredNormGradient | undefined
}

/**
 * Kernels with prologues exist for bf16 on tensor cores and exact f32, and for channels that are whole vectors. Those of Hopper have one
 * for the norm of x, with ReLU and with groups that no tile straddles: the gradient of a norm they read as a pass has written it. Each tap
 * normalises the same pixels again, which takes longer than the products of a slice: where nobody has timed it, only one tap does.
 */
function prologues(shape: ConvolutionShape, x: Tensor, grad?: Tensor): Prologues {
  const { device, dtype } = x
  const { direction, numbers } = shape
  if (numbers.tf32 && dtype !== 'bf16') return {}
  const operands = grad === undefined ? [x] : [x, grad]
  if (!deviceTraits(device).prologues || !operands.every((operand) => wholeVectors(operand, operand.shape[3]!))) return {}
  // The gradients of one convolution take the same operands, both as they come or neither.
  const both = direction === 'forward' ? (['forward'] as const) : (['backward input', 'backward weight'] as const)
  if (dtype === 'bf16' && !both.every((each) => usesFamily(device, familyOf('mma', each)))) return {}
  const chosen = chosenPrologue(shape)
  const norm = deferredNorm(x)
  const hopper = hopperHas(shape) && usesFamily(device, familyOf('wgmma', direction)) && !isAmpereTile(numbers.tile)
  if (!(chosen ?? (!hopper || shape.weight[1]! * shape.weight[2]! === 1))) return {}
  if (!hopper) return { norm, gradient: grad && deferredNormGradient(grad) }
  const groups = norm?.scale.shape[0] ?? 1
  const { rows, depth } = productOf(shape)
  const pixels = direction === 'forward' ? rows : depth
  return norm?.relu === true && (groups === 1 || (pixels / groups) % hopperTileRows === 0) ? { norm } : {}
}

/** What the input gradient's kernels can do of `last`: add, and mask and sum for a norm; undefined when nothing is left or they cannot. */
function backwardEpilogue(
  last: Epilogue,
  dx: Tensor,
  grad: Tensor,
  { numbers }: Conv2dAttrs,
): { add: Tensor | undefined; of: NormEpilogue | undefined; sums: Tensor | undefined } | undefined {
  const [n, h, w, c] = dx.shape as [number, number, number, number]
  const { epilogues, statisticsRows } = deviceTraits(dx.device)
  if (currentCompute().fusion === 'pointwise' || !epilogues || !wholeVectors(dx, c) || !wholeVectors(grad, grad.shape[3]!)) return undefined
  const { add, norm } = last
  if (add !== undefined && add.dtype !== dx.dtype) return undefined
  const chunks = norm === undefined ? undefined : chunksOf([n, h, w], numbers, norm.groups, statisticsRows)
  if (norm === undefined || chunks === undefined) return add === undefined ? undefined : { add, of: undefined, sums: undefined }
  return { add, of: norm, sums: Tensor.empty([norm.groups * chunks, 2, c], 'f32') }
}

/**
 * Rows of sums a group, each of `statisticsRows` pixels, over the residue classes of the input pixels; undefined where one would
 * reach into the next group.
 */
function chunksOf(
  [n, h, w]: readonly [number, number, number],
  { strideH, strideW }: ConvolutionNumbers,
  groups: number,
  statisticsRows: number,
): number | undefined {
  let chunks = 0
  for (let a = 0; a < Math.min(strideH, h); ++a)
    for (let b = 0; b < Math.min(strideW, w); ++b) {
      const rows = (n * Math.ceil((h - a) / strideH) * Math.ceil((w - b) / strideW)) / groups
      if (groups > 1 && rows % statisticsRows !== 0) return undefined
      chunks += Math.ceil(rows / statisticsRows)
    }
  return chunks
}

function prepare(x: Tensor, weight: Tensor, bias: Tensor | undefined, options: Conv2dOptions, statistics: boolean): Conv2dAttrs {
  const numbers = { ...convolutionGeometry(x, weight, bias, options), ...computeNumbers() }
  if (x.shape[3] !== weight.shape[3])
    fail('SHAPE', `conv2d: expected weight of ${x.shape[3]} channels, as x ${describe(x)}, but received ${describe(weight)}`)
  return { numbers, statistics, inputShape: x.shape, weightShape: weight.shape }
}

/**
 * x [N, H, W, C] with weight [O, KH, KW, C / groups] and bias [O] to [N, OH, OW, O]: cross-correlation with zero padding. Output o sees the
 * channels of its group, which is o / (O / groups) rounded down. With x in bf16 a weight in f32 is rounded on its way, and its gradient
 * is of f32.
 */
export function conv2d(x: Tensor, weight: Tensor, bias?: Tensor, options: Conv2dOptions = {}): Tensor {
  if (options.groups !== undefined && options.groups !== 1) return groupedConv2d(x, weight, bias, options)
  return apply(conv2dOp, { x, weight, bias }, prepare(x, weight, bias, options, false))[0]!
}

export interface ConvolutionForNorm {
  y: Tensor
  /**
   * f32 [rows / statisticsRows, 2, O]: mean and squared deviations of each channel over so many rows (a trait of the device); absent
   * where a pass over y is needed.
   */
  statistics: Tensor | undefined
}

/**
 * conv2d without bias, and the statistics of y that kernels with epilogues make on the way. The CPU has y in its cache anyway. x may be in
 * E4M3 (conv2dE4m3).
 */
export function conv2dForNorm(x: Tensor, weight: Tensor, options: Conv2dOptions, groups: number): ConvolutionForNorm {
  const { epilogues, statisticsRows } = deviceTraits(x.device)
  const wanted = epilogues && currentCompute().fusion !== 'pointwise'
  const convolve = (): Tensor[] => apply(conv2dOp, { x, weight, bias: undefined }, prepare(x, weight, undefined, options, wanted))
  const [y, statistics] = (x.dtype === 'e4m3' ? conv2dE4m3(x, weight, options, wanted) : convolve()) as [Tensor, Tensor | undefined]
  // A row of the statistics must not reach into the next group.
  const whole = groups === 1 || (y.size / y.shape[3]! / groups) % statisticsRows === 0
  if (whole) return { y, statistics }
  statistics?.dispose()
  return { y, statistics: undefined }
}
