/**
 * How far convolutions and batch norms of a GPU are fused (docs/fusion.md). Every level computes the same values from the same
 * roundings; sums differ in their order alone.
 */
import type { Tensor } from '../tensor/tensor.js'

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

export const normOp = 'normApply'
export function deferredNorm(tensor: Tensor): DeferredNorm | undefined {
  if (tensor.deferral?.op !== normOp) return undefined
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

export const normGradientOp = 'normGradient'
export function deferredNormGradient(tensor: Tensor): DeferredNormGradient | undefined {
  if (tensor.deferral?.op !== normGradientOp) return undefined
  const [dz, x, mean, coefficients] = tensor.deferral.parts as [Tensor, Tensor, Tensor, Tensor]
  return { dz, x, mean, coefficients, groups: tensor.deferral.numbers[0]! }
}
