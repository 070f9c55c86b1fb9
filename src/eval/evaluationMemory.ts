/** What estimates of the memory of evaluations share: a network on the dry device, and the parts that all have (src/run/memory.ts). */
import { availableParallelism } from 'node:os'

import { workersFor } from '../data/workerPool.js'
import type { Backbone } from '../nn/backbone.js'
import { mostBytes, type MemoryEstimate, type Part } from '../run/memory.js'
import { native } from '../tensor/native.js'
import { withDevice } from '../tensor/tensor.js'
import { Random } from '../tensor/random.js'
import { deviceTraits } from '../tensor/traits.js'

/** Node with this program and its addon, and what is read and drawn beside the computing. Measured: 90 and 130 MiB on two machines. */
const programBytes = 110 * 2 ** 20

/** The network of a backbone where nothing is computed, and how many bytes it and what is made with it take at one time. */
export interface DryNetwork {
  twin: Backbone
  random: Random
  most: () => number
}

/** What `body` gives with the network of `backbone` on a dry device, which is left as it was. */
export function onDryDevice<R>(backbone: Backbone, seed: number, body: (network: DryNetwork) => R): R {
  const device = `dry:${backbone.device}`
  const most = mostBytes(device)
  return withDevice(device, () => {
    const random = new Random(seed)
    const twin = backbone.kind.build({ random, dtype: 'f32', compute: backbone.compute }, backbone.options, {
      outputStride: backbone.stride,
    })
    try {
      return body({ twin, random, most })
    } finally {
      twin.dispose()
      native.trimMemory(device)
    }
  })
}

/** By how many processes an evaluation is shared. */
export interface Sharing {
  /** That share the batches, of which the memory of one is meant; 1 when absent. */
  processes?: number
}

/** The most images that one process has of a batch of all, or of a part of it. */
export const ownImages = (images: number, { processes = 1 }: Sharing): number => Math.ceil(images / processes)

/** The parts of an evaluation, where its device has them; those without bytes are left out. */
export function evaluationEstimate(device: string, { onDevice, onHost }: { onDevice: Part[]; onHost: Part[] }): MemoryEstimate {
  const host = [{ what: 'the program', bytes: programBytes }, ...onHost].filter(({ bytes }) => bytes > 0)
  const own = onDevice.filter(({ bytes }) => bytes > 0)
  return deviceTraits(device).hostMemory ? { host: [...own, ...host], device: [] } : { host, device: own }
}

/** What to say of the number of workers where fewer of them would help. */
export const workersRemedy = (workers: number): string[] =>
  workersFor(workers) > 1 ? [`fewer --workers (${workersFor(workers)} of ${availableParallelism()} cores)`] : []
