import { apply } from '../autograd/tape.js'
import { defineOp, expectFloats, expectRank, expectShape, type Inputs } from '../autograd/op.js'
import { fail } from '../tensor/errors.js'
import { runNative } from '../tensor/native.js'
import { accumulator, describe, Tensor } from '../tensor/tensor.js'

export interface BatchNormOptions {
  /** Batch statistics (and running ones updated in place) or running statistics. */
  train: boolean
  eps?: number
  momentum?: number
  /** Groups of consecutive images, each with statistics of its own, as on that many devices. */
  groups?: number
  relu?: boolean
  /** Added before ReLU, of x's shape. */
  residual?: Tensor | undefined
  /** Of x, from conv2dForNorm: saves a pass over x. */
  statistics?: Tensor | undefined
}

interface BatchNormInputs extends Inputs {
  x: Tensor
  weight: Tensor
  bias: Tensor
  residual: Tensor | undefined
}

interface BatchNormAttrs {
  train: boolean
  eps: number
  momentum: number
  groups: number
  relu: boolean
  runningMean: Tensor
  runningVar: Tensor
  statistics: Tensor | undefined
}

export const batchNormOp = defineOp<BatchNormInputs, BatchNormAttrs>({
  name: 'batchNorm',
  // y = relu(weight * (x - mean) / sqrt(var + eps) + bias + residual)
  forward({ x, weight, bias, residual }, { train, eps, momentum, groups, relu, runningMean, runningVar, statistics }) {
    const channels = x.shape[3]!
    const y = Tensor.empty(x.shape, x.dtype)
    let mean: Tensor
    let invstd: Tensor
    if (train) {
      mean = Tensor.empty([groups, channels], accumulator(x.dtype))
      invstd = Tensor.empty([groups, channels], accumulator(x.dtype))
      runNative('batchNormTrain', [y, mean, invstd, runningMean, runningVar, x, weight, bias, residual, statistics], [groups, eps, momentum, Number(relu)])
    } else {
      mean = runningMean
      invstd = Tensor.from(runningVar.data().map((variance) => 1 / Math.sqrt(variance + eps)), [channels], runningVar.dtype)
      runNative('batchNormEval', [y, x, weight, bias, mean, invstd, residual], [Number(relu)])
    }
    return { outputs: [y], saved: { x, weight, mean, invstd, ...(relu ? { y } : {}) } }
  },
  // With dz = dy where y > 0 and xhat = (x - mean) * invstd:
  //   dweight = sum dz xhat, dbias = sum dz, dresidual = dz
  //   dx = weight invstd (dz - mean(dz) - xhat mean(dz xhat)), and weight invstd dz with running statistics
  backward({ grad, saved, attrs, needs }) {
    const { x, weight, mean, invstd, y } = saved as { x: Tensor; weight: Tensor; mean: Tensor; invstd: Tensor; y?: Tensor }
    const dx = Tensor.empty(x.shape, x.dtype)
    const dweight = Tensor.empty(weight.shape, weight.dtype)
    const dbias = Tensor.empty(weight.shape, weight.dtype)
    const dresidual = needs.residual ? Tensor.empty(x.shape, x.dtype) : undefined
    const groups = attrs.train ? attrs.groups : 1
    runNative('batchNormBackward', [dx, dweight, dbias, dresidual, grad, x, y, weight, mean, invstd], [groups, Number(attrs.train)])
    return { x: dx, weight: dweight, bias: dbias, residual: dresidual }
  },
})

/** Batch norm of x [N, H, W, C] by channel, with weight, bias, running mean and variance [C]. */
export function batchNorm(x: Tensor, weight: Tensor, bias: Tensor, runningMean: Tensor, runningVar: Tensor, options: BatchNormOptions): Tensor {
  const { train, eps = 1e-5, momentum = 0.1, groups = 1, relu = false, residual, statistics } = options
  expectFloats('batchNorm', { x, residual }, { weight, bias, runningMean, runningVar })
  expectRank('batchNorm', 'x', x, 4)
  for (const [name, tensor] of Object.entries({ weight, bias, runningMean, runningVar })) expectShape('batchNorm', name, tensor, [x.shape[3]!], 'the channels of x')
  if (residual !== undefined) expectShape('batchNorm', 'residual', residual, x.shape, 'the shape of x')
  if (train && (!Number.isSafeInteger(groups) || groups < 1 || x.shape[0]! % groups !== 0)) {
    fail('ARGUMENT', `batchNorm: expected groups to divide the batch of x ${describe(x)} but received ${groups}`)
  }
  if (train && (x.size / x.shape[3]!) / groups < 2) {
    fail('SHAPE', `batchNorm: expected more than one value per channel and group when training but received x ${describe(x)} in ${groups} groups`)
  }
  return apply(batchNormOp, { x, weight, bias, residual }, { train, eps, momentum, groups, relu, runningMean, runningVar, statistics })[0]!
}
