import { expectShape } from '../autograd/op.js'
import { isRecorded } from '../autograd/tape.js'
import { runNative } from '../tensor/native.js'
import { scope, Tensor } from '../tensor/tensor.js'
import { deviceTraits } from '../tensor/traits.js'
import { batchNorm, type BatchNormOptions, defaultEps } from './batchNorm.js'
import { conv2d } from './conv2d.js'
import { roundedWeight } from './fusion.js'
import { type Conv2dOptions, convolutionGeometry, convolutionSize } from './windows.js'

/** The parameters and running statistics of a batch norm, each [C]. */
export interface RunningNorm {
  weight: Tensor
  bias: Tensor
  runningMean: Tensor
  runningVar: Tensor
}

/**
 * conv2d(x, weight) and batchNorm() of it by running statistics, with residual and ReLU. Where nothing asks for gradients and the device
 * can, the result is normalised before it leaves the cache, to the same bits, and weights stay as the device wants them until they are
 * written.
 */
export function conv2dNorm(
  x: Tensor,
  weight: Tensor,
  norm: RunningNorm,
  { relu = false, residual, pooled, ...windows }: Conv2dOptions & Pick<BatchNormOptions, 'relu' | 'residual' | 'pooled'> = {},
): Tensor {
  const { weight: normWeight, bias: normBias, runningMean: mean, runningVar: variance } = norm
  const numbers = convolutionGeometry(x, weight, undefined, windows)
  const fused = deviceTraits(x.device).normsResults && (windows.groups ?? 1) === 1
  if (!fused || isRecorded({ x, weight, normWeight, normBias, residual })) {
    const y = conv2d(x, weight, undefined, windows)
    return batchNorm(y, normWeight, normBias, mean, variance, { train: false, relu, residual, pooled: pooled === true })
  }
  const [oh, ow] = convolutionSize(x, weight, numbers)
  const y = Tensor.empty([x.shape[0]!, oh, ow, weight.shape[0]!], x.dtype)
  if (residual !== undefined) expectShape('conv2dNorm', 'residual', residual, y.shape, 'the shape of the result')
  const operands = { y, x, normWeight, normBias, mean, variance, residual }
  scope(() => {
    runNative('conv2dNorm', { ...operands, weight: roundedWeight(weight, x.dtype) }, { ...numbers, eps: defaultEps, relu })
  })
  return y
}
