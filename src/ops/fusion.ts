/** Tensors that are not written because whoever reads them computes them: how norms and convolutions are fused (docs/fusion.md). */
import { currentCompute } from '../tensor/compute.js'
import { type DType, itemBytes, Tensor } from '../tensor/tensor.js'
import { deviceTraits } from '../tensor/traits.js'

/** Whether accesses of the kernels' prologues and epilogues divide the channels of a tensor. */
export function wholeVectors({ dtype, device }: Tensor, channels: number): boolean {
  const { vectorBytes } = deviceTraits(device)
  return vectorBytes > 0 && (channels * itemBytes(dtype)) % vectorBytes === 0
}

/** A normalised tensor that was not written: relu(x * scale + shift), with a row of scale and shift [G, C] for each group of the batch. */
export interface DeferredNorm {
  x: Tensor
  scale: Tensor
  shift: Tensor
  relu: boolean
}

/** The tensor of `norm`, computed when somebody needs its values. */
export const deferNorm = ({ x, scale, shift, relu }: DeferredNorm): Tensor =>
  Tensor.deferred(x.shape, x.dtype, x.device, {
    op: 'normApply',
    output: 'y',
    parts: { x: x.alias(), scale: scale.alias(), shift: shift.alias() },
    numbers: { relu },
  })

export function deferredNorm(tensor: Tensor): DeferredNorm | undefined {
  if (tensor.deferral?.op !== 'normApply') return undefined
  return { ...tensor.deferral.parts, ...tensor.deferral.numbers } as unknown as DeferredNorm
}

/**
 * What an op reads that cannot take a tensor's parts. On a GPU that is the tensor, which has its values from then on; on the CPU values
 * for this op alone, so that a tape holds the parts, and backward makes the values again: one pass, where a product reads them anyway.
 */
export const valuesOf = (tensor: Tensor): Tensor =>
  tensor.deferral === undefined || deviceTraits(tensor.device).epilogues ? tensor : tensor.alias()

/**
 * Whether an op of a device may leave its result to convolutions that read it, each of which computes it by valuesOf() for as long as it
 * runs: a tape then holds the parts. On a GPU its kernels take the parts of norms alone.
 */
export const readersCompute = (device: string): boolean => currentCompute().fusion !== 'pointwise' && !deviceTraits(device).epilogues

/** A weight as products with a tensor of `dtype` read it: itself, or one of f32 rounded to bf16, which the enclosing scope frees. */
export const roundedWeight = (weight: Tensor, dtype: DType): Tensor => (weight.dtype === dtype ? weight : weight.to(dtype))

/** The gradient of what a batch norm read, not written: a dz + (b (x - mean) + c) with coefficients a, b, c [3, G, C]. */
export interface DeferredNormGradient {
  dz: Tensor
  x: Tensor
  mean: Tensor
  coefficients: Tensor
}

export const deferNormGradient = ({ dz, x, mean, coefficients }: DeferredNormGradient): Tensor =>
  Tensor.deferred(x.shape, x.dtype, x.device, {
    op: 'normGradient',
    output: 'dx',
    parts: { dz: dz.alias(), x: x.alias(), mean: mean.alias(), coefficients: coefficients.alias() },
    numbers: {},
  })

export function deferredNormGradient(tensor: Tensor): DeferredNormGradient | undefined {
  if (tensor.deferral?.op !== 'normGradient') return undefined
  return tensor.deferral.parts as unknown as DeferredNormGradient
}
