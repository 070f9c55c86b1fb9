import { availableParallelism } from 'node:os'

import type { ComputeOptions } from '../tensor/compute.js'
import { fail } from '../tensor/errors.js'
import { called } from '../tensor/settingNames.js'
import type { FloatDType } from '../tensor/tensor.js'
import { deviceTraits } from '../tensor/traits.js'
import type { Config } from './config.js'
import { namedDevice } from './device.js'

/** Where a run computes, and in which dtype. */
export interface Placement {
  device: string
  compute: FloatDType
}

/**
 * The device and dtype that a configuration means on this machine. Throws CONFIG for a word that is no device, and for a
 * precision that the device has not.
 */
export function resolvePlacement({ device: wanted, precision }: Pick<Config, 'device' | 'precision'>): Placement {
  const device = namedDevice(wanted)
  const { dtypes, tf32, usualDType } = deviceTraits(device)
  if ((precision === 'bf16' && !dtypes.includes('bf16')) || (precision === 'tf32' && !tf32))
    fail('CONFIG', `${called('precision')} is ${precision}: expected ${dtypes.includes('bf16') ? 'f32 or bf16' : 'f32'} on ${device}`)
  return { device, compute: precision === 'auto' ? usualDType : precision === 'bf16' ? 'bf16' : 'f32' }
}

/**
 * Where a run decodes JPEGs: on the GPU if it is told to, as long as nobody has timed that. Throws CONFIG where its views are not made on
 * a GPU.
 */
export function decodePlace({ decode, channels }: Pick<Config, 'decode' | 'channels'>, device: string): 'cpu' | 'gpu' {
  if (decode === 'gpu' && (channels !== 3 || !deviceTraits(device).rendersViews))
    fail('CONFIG', `${called('decode')} is gpu: expected cpu, as the workers make the views of images of ${channels} channels on ${device}`)
  return decode === 'gpu' ? 'gpu' : 'cpu'
}

/** The settings that a run computes with, apart from what its convolutions are tuned to (src/train/chooseTuning.ts). */
export const computeSettings = ({ precision, threads }: Pick<Config, 'precision' | 'threads'>): ComputeOptions => ({
  precision: precision === 'tf32' ? 'tf32' : 'f32',
  threads: threads === 0 ? availableParallelism() : threads,
})

/** How far the steps of a run are fused where nothing is timed: as the configuration says. */
export const fusionLevel = ({ fusion }: Pick<Config, 'fusion'>): Exclude<Config['fusion'], 'auto'> =>
  fusion === 'auto' ? 'epilogue' : fusion
