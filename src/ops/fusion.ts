/** Tensors that are not written because whoever reads them computes them: how norms and convolutions are fused (docs/fusion.md). */
import { itemBytes, Tensor } from '../tensor/tensor.js'
import { deviceTraits } from '../tensor/traits.js'

/** Whether accesses of the kernels' prologues and epilogues divide the channels of a tensor. */
export function wholeVectors({ dtype, device }: Tensor, channels: number): boolean {
  const { vectorBytes } = deviceTraits(device)
  return vectorBytes > 0 && (channels * itemBytes(dtype)) % vectorBytes === 0
}

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
