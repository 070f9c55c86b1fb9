import type { ComputeOptions } from '../tensor/compute.js'
import { deviceTraits } from '../tensor/traits.js'

/**
 * The settings that an evaluation computes with: those of its options, and where these say nothing the precision that PyTorch's
 * convolutions have on such a device, tf32 where there are tensor cores. Library, commands and studies all take them from here.
 */
export const evaluationCompute = (device: string, options: ComputeOptions = {}): ComputeOptions => ({
  ...options,
  precision: options.precision ?? (deviceTraits(device).tf32 ? 'tf32' : 'f32'),
})
