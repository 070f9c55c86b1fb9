/** The parts of the check of a device, in their order: what can be missing is compared with what cannot. */
import { kernelFamilies, type KernelFamily, kernelFamilyNames } from '../tensor/families.js'
import type { Finding } from './compare.js'
import { checkE4m3, checkWidestE4m3 } from './e4m3.js'
import { checkOther, others } from './others.js'
import { checkBulkStores, checkProduct, checkWidest, type ProductOp, productOps } from './products.js'

/** A family of kernels, `fma.<op>`, or a name of `others`. */
export type Part = string

/** Every part that a device has. */
export function partsOf(device: string): Part[] {
  const present = kernelFamilies(device)
  return [
    ...Object.keys(others),
    ...productOps.map((op) => `fma.${op}`),
    ...kernelFamilyNames.filter((name) => name.startsWith('mma.') && present.includes(name)),
    ...kernelFamilyNames.filter((name) => name.startsWith('wgmma.') && present.includes(name)),
  ]
}

export const isFamily = (part: Part): part is KernelFamily => (kernelFamilyNames as readonly string[]).includes(part)

export function runPart(device: string, part: Part): Finding[] {
  if (part === 'wgmma.conv2dE4m3') return checkE4m3(device)
  if (part === 'wgmma.widest') return [...checkWidest(device), ...checkWidestE4m3(device)]
  if (part === 'wgmma.bulkStores') return checkBulkStores(device)
  const [kind, op] = part.split('.') as ['wgmma' | 'mma' | 'fma', ProductOp | undefined]
  return op === undefined ? checkOther(device, part) : checkProduct(device, op, kind)
}
