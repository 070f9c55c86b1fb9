/** The compute capability that `simt` chooses kernels for; a GPU keeps its own. */
import { native } from '../../src/tensor/native.js'
import { deviceTraits, forgetTraits } from '../../src/tensor/traits.js'
import { device } from './devices.js'

/** Whether the device of this process is one whose capability a test may set. */
export const simulated = deviceTraits(device).simulated

const usual = 80

export function setCapability(value: number): void {
  native.simtCapability?.(value)
  forgetTraits()
}

/** Runs `body` on a device of this compute capability, times 10. */
export function withCapability<R>(value: number, body: () => R): R {
  setCapability(value)
  try {
    return body()
  } finally {
    setCapability(usual)
  }
}
