/** What a program may ask of devices, their memory and the CPU's threads without touching the addon. */
import { fail } from './errors.js'
import { type MemoryStats, native } from './native.js'
import { currentDevice } from './tensor.js'

/** Names of the devices that this build and machine offer, such as `cpu` and `cuda:0`. */
export const devices = (): string[] => native.deviceNames()

/** Bytes that tensors and scratch memory take on a device, and the tensors of this thread. */
export const memory = (device = currentDevice()): MemoryStats => native.memory(device)

/** Makes `peak` of memory() begin anew at what is in use now. */
export const resetPeakMemory = (device = currentDevice()): void => native.resetPeakMemory(device)

/** Sets how many bytes a device may have in use, 0 for all it has; what would exceed them throws OUT_OF_MEMORY with the sizes. */
export const setMemoryLimit = (bytes: number, device = currentDevice()): void => native.setMemoryLimit(bytes, device)

/** Gives memory that was freed and kept for reuse back to the system. */
export const trimMemory = (device = currentDevice()): void => native.trimMemory(device)

/** Sets how many threads compute on the CPU; results are the same bits with any number. */
export function setThreads(count: number): void {
  if (!Number.isSafeInteger(count) || count < 1)
    fail('ARGUMENT', `setThreads: expected an integer of at least 1 but received ${String(count)}`)
  native.setThreads(count)
}

/** How many threads compute on the CPU. */
export const threads = (): number => native.threads()

/** Waits until a device has done what it was given; for measuring. */
export const synchronize = (device = currentDevice()): void => native.synchronize(device)
