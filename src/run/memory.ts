/**
 * Whether the memory suffices for what is about to run: an estimate of its parts against what there is, in the machine and on a GPU.
 * Tensors are counted on a dry device (native/core/dry.cpp), which keeps account of them and has none.
 */
import { totalmem } from 'node:os'

import { DenseclError, fail } from '../tensor/errors.js'
import { native } from '../tensor/native.js'
import { deviceTraits } from '../tensor/traits.js'

/** Something that takes memory. */
export interface Part {
  what: string
  bytes: number
}

export interface MemoryEstimate {
  /** In the memory of the host, and in that of a GPU (none for the CPU). */
  host: Part[]
  device: Part[]
}

/** Node with this program, its addon and what draws pictures. Measured. */
export const processBytes = 190 * 2 ** 20

/** A data worker's heap with a photo that is decoded in it. Measured. */
export const workerBytes = 32 * 2 ** 20

/**
 * How many bytes more than now have been in use on a device at one time, from here on until it is asked. The allocator holds little beside
 * them (native/core/heap.h).
 */
export function mostBytes(device: string): () => number {
  native.resetPeakMemory(device)
  const { live } = native.memory(device)
  return () => native.memory(device).peak - live
}

const total = (parts: readonly Part[]): number => parts.reduce((sum, { bytes }) => sum + bytes, 0)

/** What this process may take: the machine's memory, or less where a container has a limit. */
export function hostLimit(): number {
  const constrained = process.constrainedMemory()
  return constrained > 0 && constrained < totalmem() ? constrained : totalmem()
}

/** What a process may take of the machine's memory and of a device's; 0 is not known. */
export interface MemoryLimits {
  host: number
  device: number
}

/** The limits of one of `processes` on this machine that do the same, each on a device of its own where that is a GPU. */
export const hostLimits = (device: string, processes = 1): MemoryLimits => ({
  host: hostLimit() / processes,
  device: deviceTraits(device).memory,
})

const gibibytes = (bytes: number): string => `${(bytes / 2 ** 30).toPrecision(3)} GiB`

/**
 * Throws CONFIG where `what` takes more memory than there is, with what takes it and what to change; returns one line about it otherwise.
 */
export function fitting(
  estimated: () => MemoryEstimate,
  {
    what,
    device,
    limits,
    remedies,
    cacheMegabytes,
  }: { what: string; device: string; limits: MemoryLimits; remedies: string; cacheMegabytes: number },
): string {
  let estimate: MemoryEstimate
  try {
    estimate = estimated()
  } catch (error) {
    // A tensor that no number of bytes is written for.
    if (!(error instanceof DenseclError) || error.code !== 'OUT_OF_MEMORY') throw error
    return fail('CONFIG', `memory: ${error.message}; ${remedies}`)
  }
  const places = [
    { where: 'this machine', needed: estimate.host, limit: limits.host },
    ...(estimate.device.length === 0 ? [] : [{ where: device, needed: estimate.device, limit: limits.device }]),
  ]
  for (const { where, needed, limit } of places) {
    if (total(needed) <= limit || limit === 0) continue
    const list = [...needed].sort((a, b) => b.bytes - a.bytes).map(({ what: part, bytes }) => `  ${gibibytes(bytes).padStart(10)}  ${part}`)
    fail(
      'CONFIG',
      `memory: ${what} takes about ${gibibytes(total(needed))}, and ${where} has ${gibibytes(limit)}:\n${list.join('\n')}\n` +
        `${remedies}; --force tries all the same`,
    )
  }
  const cache = cacheMegabytes === 0 ? '' : `, and up to ${cacheMegabytes} MiB of decoded images that are kept`
  const shares = places.map(({ where, needed, limit }) =>
    limit === 0 ? `${gibibytes(total(needed))} on ${where}` : `${gibibytes(total(needed))} of the ${gibibytes(limit)} of ${where}`,
  )
  return `memory  about ${shares.join(', ')}${cache}`
}
