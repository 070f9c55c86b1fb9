/** What tests of tuning share: a device that is told, a cache of their own, and what costs of a call. */
import type { DeviceIdentity } from '../../src/files/cache.js'
import type { NativeCall } from '../../src/ops/timing.js'
import { withFolder } from './suite.js'

export const identity: DeviceIdentity = { device: 'a GPU', driver: '1.0', build: 'of today' }

/** Runs `body` with a cache folder of its own. */
export async function withCache<R>(body: (folder: string) => R | Promise<R>): Promise<R> {
  return withFolder(async (folder) => {
    const before = process.env.XDG_CACHE_HOME
    process.env.XDG_CACHE_HOME = folder
    try {
      return await body(folder)
    } finally {
      if (before === undefined) delete process.env.XDG_CACHE_HOME
      else process.env.XDG_CACHE_HOME = before
    }
  })
}

/** A pass over a map that is written: of these ops the first result may be left to others. */
const passes = new Set(['normApply', 'normGradient', 'batchNormTrain', 'batchNormBackward', 'add'])
export const writes = ({ op, tensors }: NativeCall): boolean =>
  passes.has(op) && tensors[op.endsWith('Backward') || op === 'normGradient' ? 'dx' : 'y'] !== undefined
