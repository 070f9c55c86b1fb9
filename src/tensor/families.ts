/**
 * Families of kernels: kinds of kernels of one op that others can stand in for (native/cuda/families.def). Those of Hopper (wgmma)
 * fall back to tensor cores by mma.sync, and these to exact FMAs; of convolutions with tiles of 128x256 (wgmma.widest) or stored by bulk
 * copies (wgmma.bulkStores) the tuner takes others instead.
 */
import { native } from './native.js'
import { deviceTraits, forgetTraits } from './traits.js'

export const kernelFamilyNames = [
  'wgmma.conv2d',
  'wgmma.conv2dBackwardInput',
  'wgmma.conv2dBackwardWeight',
  'wgmma.conv2dE4m3',
  'wgmma.infoNce',
  'wgmma.widest',
  'wgmma.bulkStores',
  'mma.conv2d',
  'mma.conv2dBackwardInput',
  'mma.conv2dBackwardWeight',
  'mma.infoNce',
  'mma.denseMatch',
  'mma.matmul',
] as const
export type KernelFamily = (typeof kernelFamilyNames)[number]

/** The families that a device would choose: what its capability and the build have, without those it avoids. None on the CPU. */
export const kernelFamilies = (device: string): readonly string[] => deviceTraits(device).families

export const usesFamily = (device: string, family: KernelFamily): boolean => kernelFamilies(device).includes(family)

/** Makes `names` the families that a device does not use from now on, in this process; throws ARGUMENT for a name that is none. */
export function avoidFamilies(device: string, names: readonly KernelFamily[]): void {
  native.avoidFamilies(device, names)
  forgetTraits()
}
