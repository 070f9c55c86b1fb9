/**
 * How far convolutions and batch norms of a GPU are fused (docs/fusion.md). Every level computes the same values from the same
 * roundings; sums differ in their order alone.
 */
import { Tensor } from '../tensor/tensor.js'

/**
 * `pointwise`: batch norm, residual and ReLU are one pass over memory, statistics and reductions passes of their own.
 * `epilogue`: statistics come from the convolution's epilogue; the input gradient's adds, masks and reduces; a join applies the
 * shortcut's norm with its own.
 * `full`: a normalised tensor that only convolutions read is never written: they scale, shift and clip what they load, and
 * combine the gradient of the norm as they load that.
 */
export type FusionLevel = 'pointwise' | 'epilogue' | 'full'

export const fusion: { level: FusionLevel } = { level: 'epilogue' }

/** Rows that a row of statistics or sums of the kernels' epilogues covers (native/cuda/conv2d.cuh). */
export const statisticsRows = 64

/** The kernels' epilogues and prologues work on whole accesses of 16 bytes. */
export const wholeVectors = (tensor: Tensor, channels: number): boolean => channels % (tensor.dtype === 'bf16' ? 8 : 4) === 0

/** A normalised tensor that was not written: relu(x * scale + shift), scale and shift [G, C]. */
export interface DeferredNorm {
  x: Tensor
  scale: Tensor
  shift: Tensor
  relu: boolean
  groups: number
}

/** The tensor of `norm`, computed when somebody needs its values. */
export const deferNorm = ({ x, scale, shift, relu, groups }: DeferredNorm): Tensor =>
  Tensor.deferred(x.shape, x.dtype, x.device, {
    op: 'normApply',
    parts: [x.alias(), scale.alias(), shift.alias()],
    numbers: [groups, Number(relu)],
  })

export function deferredNorm(tensor: Tensor): DeferredNorm | undefined {
  if (tensor.deferral?.op !== 'normApply') return undefined
  const [x, scale, shift] = tensor.deferral.parts as [Tensor, Tensor, Tensor]
  const [groups, relu] = tensor.deferral.numbers as [number, number]
  return { x, scale, shift, relu: relu !== 0, groups }
}

/** The gradient of what a batch norm read, not written: a dz + (b (x - mean) + c) with coefficients a, b, c [3, G, C]. */
export interface DeferredNormGradient {
  dz: Tensor
  x: Tensor
  mean: Tensor
  coefficients: Tensor
  groups: number
}

export const deferNormGradient = ({ dz, x, mean, coefficients, groups }: DeferredNormGradient): Tensor =>
  Tensor.deferred(x.shape, x.dtype, x.device, {
    op: 'normGradient',
    parts: [dz.alias(), x.alias(), mean.alias(), coefficients.alias()],
    numbers: [groups],
  })

export function deferredNormGradient(tensor: Tensor): DeferredNormGradient | undefined {
  if (tensor.deferral?.op !== 'normGradient') return undefined
  const [dz, x, mean, coefficients] = tensor.deferral.parts as [Tensor, Tensor, Tensor, Tensor]
  return { dz, x, mean, coefficients, groups: tensor.deferral.numbers[0]! }
}
