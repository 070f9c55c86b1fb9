/**
 * What a device is and what it can do. Nothing outside of native code asks for a device's name to find out: each backend says it
 * (native/core/device.h), and code asks for the one trait that it depends on.
 */
import { type DeviceTraits, native } from './native.js'

export type { DeviceKind, DeviceTraits } from './native.js'

const known = new Map<string, DeviceTraits>()

/**
 * The traits of the device `name` (`cpu`, `cuda:0`, ...). They are asked for once; the first time starts the device. Throws DEVICE
 * where there is no such device or it cannot be used, and ARGUMENT for a DENSECL_CAPABILITY or DENSECL_MULTIPROCESSORS that is no
 * number.
 */
export function deviceTraits(name: string): DeviceTraits {
  let traits = known.get(name)
  if (traits === undefined) known.set(name, (traits = native.deviceTraits(name)))
  return traits
}

/** Asks for the traits of all devices again, after something that changes them: families to avoid, a variable of the environment. */
export function forgetTraits(): void {
  known.clear()
}
