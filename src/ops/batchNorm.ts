import { apply, isRecorded } from '../autograd/tape.js'
import { defineOp, expectFloats, expectRank, expectShape, type Inputs, type Recorded } from '../autograd/op.js'
import { Group } from '../distributed/group.js'
import { currentCompute } from '../tensor/compute.js'
import { fail } from '../tensor/errors.js'
import { runNative } from '../tensor/native.js'
import { called } from '../tensor/settingNames.js'
import { accumulator, describe, Tensor } from '../tensor/tensor.js'
import { backwardAcross, trainAcross } from './batchNormAcross.js'
import { keepsE4m3 } from './e4m3.js'
import { deferNorm, deferNormGradient, deferredNorm, readersCompute, wholeVectors } from './fusion.js'

/** How batchNorm takes its statistics, and what it does in the same pass. */
export interface BatchNormOptions {
  /** Batch statistics (and running ones updated in place) or running statistics. */
  train: boolean
  eps?: number
  momentum?: number
  /** Groups of consecutive images, each with statistics of its own, as on that many devices. */
  groups?: number
  /** The processes whose rows are normalised together, each of which has some: all of them call, and their gradients. One group alone. */
  across?: Group | undefined
  relu?: boolean
  /** Added before ReLU, of x's shape. */
  residual?: Tensor | undefined
  /** Statistics of x from conv2dForNorm, which save a pass over x. */
  statistics?: Tensor | undefined
  /** Only a pooling reads the result: on a GPU it applies scale, shift and ReLU itself (docs/fusion.md). */
  pooled?: boolean
  /** Only convolutions, and joins as a residual, read the result. */
  convolved?: boolean
  /** `e4m3`: what only convolutions read is kept in E4M3 where no gradient is wanted and their kernels take it (src/ops/e4m3.ts). */
  maps?: 'e4m3'
}

export interface BatchNormInputs extends Inputs {
  x: Tensor
  weight: Tensor
  bias: Tensor
  residual: Tensor | undefined
}

export interface BatchNormAttrs {
  train: boolean
  eps: number
  momentum: number
  groups: number
  across: Group
  relu: boolean
  pooled: boolean
  inE4m3: boolean
  runningMean: Tensor
  runningVar: Tensor
  statistics: Tensor | undefined
}

type Saved = Record<'x' | 'weight' | 'mean' | 'invstd', Tensor> & Partial<Record<'y' | 'scale' | 'shift', Tensor>>

export const batchNormOp = defineOp<BatchNormInputs, BatchNormAttrs>({
  name: 'batchNorm',
  // y = relu(weight * (x - mean) / sqrt(var + eps) + bias + residual)
  forward(inputs, attrs, needsGradient) {
    if (!attrs.train) return evaluate(inputs, attrs)
    return attrs.across.size > 1 ? trainAcross(inputs, attrs) : train(inputs, attrs, needsGradient)
  },
  epilogue(saved, { groups, relu, train }) {
    const { x, mean, y, scale, shift } = saved as Saved
    if (!train || scale === undefined) return undefined
    return { x, mean, groups, y, ...(relu && y === undefined ? { scale, shift } : { scale: undefined, shift: undefined }) }
  },
  // With dz = dy where y > 0 and xhat = (x - mean) * invstd:
  //   dweight = sum dz xhat, dbias = sum dz, dresidual = dz
  //   dx = weight invstd (dz - mean(dz) - xhat mean(dz xhat)), and weight invstd dz with running statistics
  backward(context) {
    const { grad, saved, attrs, needs, sums } = context
    if (attrs.train && attrs.across.size > 1) return backwardAcross(context)
    const { x, weight, mean, invstd, y, scale, shift } = saved as Saved
    const dweight = Tensor.empty(weight.shape, weight.dtype)
    const dbias = Tensor.empty(weight.shape, weight.dtype)
    const groups = attrs.train ? attrs.groups : 1
    const masked = attrs.relu && sums === undefined
    // Without a mask to apply, dz is the gradient as it came.
    const dz = needs.residual && masked ? Tensor.empty(x.shape, x.dtype) : undefined
    const defer = currentCompute().fusion === 'full' && attrs.train && wholeVectors(x, x.shape[3]!) && (!masked || dz !== undefined)
    const dx = defer ? undefined : Tensor.empty(x.shape, x.dtype)
    const coefficients = defer ? Tensor.empty([3, groups, x.shape[3]!], mean.dtype) : undefined
    const mask = !masked ? {} : y === undefined ? { scale, shift } : { y }
    // Running statistics have no groups.
    const [groupMean, groupInvstd] = attrs.train ? [mean, invstd] : [mean.alias([1, mean.size]), invstd.alias([1, mean.size])]
    runNative(
      'batchNormBackward',
      { dx, dweight, dbias, dz, dy: grad, x, ...mask, weight, mean: groupMean, invstd: groupInvstd, sums, coefficients },
      { train: attrs.train },
    )
    return {
      x: dx ?? deferNormGradient({ dz: dz ?? grad, x, mean, coefficients: coefficients! }),
      weight: dweight,
      bias: dbias,
      residual: needs.residual ? (dz ?? grad.alias()) : undefined,
    }
  },
})

function evaluate(
  { x, weight, bias, residual }: BatchNormInputs,
  { eps, relu, runningMean: mean, runningVar: variance }: BatchNormAttrs,
): Recorded {
  const y = Tensor.empty(x.shape, x.dtype)
  const invstd = Tensor.empty(variance.shape, variance.dtype)
  runNative('batchNormEval', { y, invstd, x, weight, bias, mean, variance, residual }, { eps, relu })
  return { outputs: [y], saved: { x, weight, mean, invstd, ...(relu ? { y } : {}) } }
}

/**
 * Statistics first, then a pass that applies them, unless whoever reads the result does. The mask of a ReLU without a residual is
 * found again from x, which backward reads anyway.
 */
function train(inputs: BatchNormInputs, attrs: BatchNormAttrs, needsGradient: boolean): Recorded {
  const { x, weight, bias, residual } = inputs
  const { eps, momentum, groups, relu, runningMean, runningVar, statistics } = attrs
  const vector = (): Tensor => Tensor.empty([groups, x.shape[3]!], accumulator(x.dtype))
  const [mean, invstd, scale, shift] = [vector(), vector(), vector(), vector()]
  const ofE4m3 = attrs.inE4m3 || residual?.dtype === 'e4m3'
  const y = ofE4m3 || defers(inputs, attrs, needsGradient) ? undefined : Tensor.empty(x.shape, x.dtype)
  const shortcut = residual === undefined ? undefined : deferredNorm(residual)
  const dual = shortcut !== undefined && !shortcut.relu && shortcut.scale.shape[0] === groups
  const added = dual ? { residual: shortcut.x, residualScale: shortcut.scale, residualShift: shortcut.shift } : { residual }
  runNative(
    'batchNormTrain',
    { y, mean, invstd, runningMean, runningVar, x, weight, bias, statistics, scale, shift, ...(ofE4m3 ? {} : added) },
    { eps, momentum, relu },
  )
  if (ofE4m3) {
    const joined = Tensor.empty(x.shape, attrs.inE4m3 ? 'e4m3' : x.dtype)
    runNative('normE4m3', { y: joined, x, scale, shift, ...added }, { relu })
    return { outputs: [joined], saved: {} }
  }
  const saved = { x, weight, mean, invstd, scale, shift, ...(relu && residual !== undefined ? { y: y! } : {}) }
  return { outputs: [y ?? deferNorm({ x, scale, shift, relu })], saved }
}

/** Whether the result is not written, but left to whoever reads it (docs/fusion.md). */
function defers({ x, residual }: BatchNormInputs, { relu, pooled }: BatchNormAttrs, needsGradient: boolean): boolean {
  const { fusion } = currentCompute()
  if (residual !== undefined || fusion === 'pointwise') return false
  // On the CPU a tape then holds x alone. What reads a norm without ReLU is the join, which a tape holds nothing for.
  if (readersCompute(x.device)) return relu && needsGradient
  // A norm without ReLU is a shortcut's, and what reads it is the join: it applies both. Pooling applies the stem's.
  return (fusion === 'full' || !relu || pooled) && wholeVectors(x, x.shape[3]!)
}

/** What is added to variances where nobody says. */
export const defaultEps = 1e-5

/** Batch norm of x [N, H, W, C] by channel, with weight, bias, running mean and variance [C]. */
export function batchNorm(
  x: Tensor,
  weight: Tensor,
  bias: Tensor,
  runningMean: Tensor,
  runningVar: Tensor,
  options: BatchNormOptions,
): Tensor {
  const {
    train,
    eps = defaultEps,
    momentum = 0.1,
    groups = 1,
    relu = false,
    pooled = false,
    convolved = false,
    maps,
    residual,
    statistics,
    across = Group.single,
  } = options
  const recorded = isRecorded({ x, weight, bias, residual })
  const joinsE4m3 = residual?.dtype === 'e4m3' && train && !recorded
  expectFloats('batchNorm', joinsE4m3 ? { x } : { x, residual }, { weight, bias, runningMean, runningVar })
  expectRank('batchNorm', 'x', x, 4)
  if (x.shape[3] === 0) fail('SHAPE', `batchNorm: expected x of one channel or more but received ${describe(x)}`)
  for (const [name, tensor] of Object.entries({ weight, bias, runningMean, runningVar }))
    expectShape('batchNorm', name, tensor, [x.shape[3]!], 'the channels of x')
  if (residual !== undefined) expectShape('batchNorm', 'residual', residual, x.shape, 'the shape of x')
  if (train && (!Number.isSafeInteger(groups) || groups < 1 || x.shape[0]! % groups !== 0)) {
    fail('ARGUMENT', `batchNorm: expected groups to divide the batch of x ${describe(x)} but received ${groups}`)
  }
  if (train && groups > 1 && across.size > 1)
    fail('ARGUMENT', `batchNorm: expected one group of the rows of ${across.size} processes but received ${groups} groups`)
  if (train && across.size === 1 && x.size / x.shape[3]! / groups < 2) {
    fail(
      'SHAPE',
      `batchNorm: expected more than one value per channel and group when training but received x ${describe(x)} in ${groups} ` +
        `${groups === 1 ? 'group' : 'groups'}: take a larger ${called('batchSize')} or ${called('imageSize')}` +
        (groups === 1 ? '' : `, or fewer ${called('normGroups')}`),
    )
  }
  const inE4m3 = maps === 'e4m3' && convolved && train && across.size === 1 && !recorded && keepsE4m3(x)
  return apply(
    batchNormOp,
    { x, weight, bias, residual },
    { train, eps, momentum, groups, across, relu, pooled, inE4m3, runningMean, runningVar, statistics },
  )[0]!
}
