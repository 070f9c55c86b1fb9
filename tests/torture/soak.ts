/**
 * A run of very many tiny steps, in this process: what grows with steps shows. The whole of training takes part - workers, log,
 * checkpoints - and is looked at between two steps.
 */
import { existsSync, readdirSync } from 'node:fs'
import { join } from 'node:path'

import { resolveConfig } from '../../src/methods/index.js'
import { settingsOf } from '../../src/run/options.js'
import { native } from '../../src/tensor/native.js'
import { pretrain } from '../../src/train/pretrain.js'

export interface Sample {
  step: number
  /** Bytes that are resident, of the heap of JavaScript, and of tensors; tensors; open file descriptors (0 where the system tells none). */
  resident: number
  heap: number
  live: number
  handles: number
  descriptors: number
}

function sample(step: number): Sample {
  const { rss: resident, heapUsed: heap } = process.memoryUsage()
  const { live, handles } = native.memory()
  const descriptors = existsSync('/proc/self/fd') ? readdirSync('/proc/self/fd').length : 0
  return { step, resident, heap, live, handles, descriptors }
}

const batchSize = 4

/** Samples of a run of so many steps, a hundred or so of them. */
export async function soak(steps: number, folder: string, say: (line: string) => void = () => undefined): Promise<Sample[]> {
  // A whole number of epochs, at most two thousand steps each.
  const each = Math.min(steps, 2000)
  const values = {
    ...{ data: `scenes:${batchSize * each}`, imageSize: 32, batchSize, epochs: Math.ceil(steps / each), depth: 18, baseChannels: 2 },
    ...{ hidden: 8, featDim: 8, queueLength: 64, normGroups: 1, workers: 1, cacheMegabytes: 16, knnImages: 40, knnData: 'scenes:20' },
    ...{ checkpointEvery: 1_000_000, stopOnCollapse: false },
  }
  const samples: Sample[] = []
  const every = Math.max(1, Math.floor(steps / 100))
  let step = 0
  const look = (): boolean => {
    if (step++ % every === 0) {
      const made = sample(step - 1)
      samples.push(made)
      if (samples.length % 10 === 1) say(sampleLine(made))
    }
    return false
  }
  await pretrain({ config: resolveConfig(settingsOf(values, 'soak')), out: join(folder, 'run'), quiet: true, interrupted: look })
  return samples
}

const mebibytes = (bytes: number): string => `${(bytes / 2 ** 20).toFixed(1)} MiB`

export const sampleLine = ({ step, resident, heap, live, handles, descriptors }: Sample): string =>
  `step ${String(step).padStart(6)}  resident ${mebibytes(resident)}  heap ${mebibytes(heap)}  tensors ${handles} of ${mebibytes(live)}  ` +
  `${descriptors} descriptors`

/**
 * What has grown behind the first tenth: numbers of things not at all, memory by no more than a tenth and, of the process, 16 MiB. Bytes of
 * tensors are those of the blocks that they lie in, which need not be the same ones all the time.
 */
export function growth(samples: readonly Sample[]): string[] {
  const tenth = Math.ceil(samples.length / 10)
  const [early, late] = [samples.slice(tenth, 2 * tenth), samples.slice(-tenth)]
  const mean = (of: readonly Sample[], key: keyof Sample): number => of.reduce((sum, each) => sum + each[key], 0) / of.length
  const grown: string[] = []
  for (const key of ['handles', 'descriptors'] as const)
    if (mean(late, key) > mean(early, key)) grown.push(`${key}: ${mean(early, key)} to ${mean(late, key)}`)
  for (const [key, more] of [
    ['live', 0],
    ['resident', 2 ** 24],
    ['heap', 2 ** 24],
  ] as const)
    if (mean(late, key) > 1.1 * mean(early, key) + more)
      grown.push(`${key}: ${mebibytes(mean(early, key))} to ${mebibytes(mean(late, key))}`)
  return grown
}
