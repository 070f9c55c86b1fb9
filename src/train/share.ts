/** What of a run each of its processes does: batch size and groups are numbers of the run, of which all have equal parts. */
import { availableParallelism } from 'node:os'

import { workersFor } from '../data/workerPool.js'
import type { Group } from '../distributed/group.js'
import type { Method } from '../methods/method.js'
import { allTensors, type State } from '../nn/module.js'
import type { Config } from '../run/config.js'
import { fail } from '../tensor/errors.js'
import { called } from '../tensor/settingNames.js'
import { deviceTraits } from '../tensor/traits.js'

/** A configuration in which the groups of batch norms are a number, as runs are begun with and record it. */
export type BegunConfig = Config & { normGroups: number }

/**
 * `config` as `size` processes begin a run with it, or go on with one that was begun with `before`: where it leaves the groups of batch
 * norms open, one a process. Throws CONFIG where these have no equal parts of the batch.
 */
export function begunConfig(config: Config, size: number, before?: Config): BegunConfig {
  const { batchSize, normGroups } = config
  if (normGroups === null && typeof before?.normGroups !== 'number' && batchSize % size !== 0)
    fail('CONFIG', `${called('batchSize')} is ${batchSize} but there are ${size} processes: expected a multiple of ${size}`)
  return { ...config, normGroups: normGroups ?? before?.normGroups ?? size }
}

/**
 * The configuration of what one process does, of `here` on this machine, which share its cores and what is kept of decoded images; the
 * configuration itself for one process.
 */
export function shareOf(config: BegunConfig, { size }: Group, here: number): BegunConfig {
  if (size === 1) return config
  const part = (all: number): number => Math.max(1, Math.floor(all / here))
  return {
    ...config,
    batchSize: config.batchSize / size,
    normGroups: config.normGroups / size,
    threads: config.threads === 0 ? part(availableParallelism()) : config.threads,
    workers: config.workers === 0 ? part(workersFor(0)) : config.workers,
    cacheMegabytes: config.cacheMegabytes / here,
  }
}

/** Throws CONFIG for a run that these processes cannot share. */
export function checkShare(
  { normGroups, device: wanted }: BegunConfig,
  { name, distributed }: Method,
  { size, device: shared }: Group,
  device: string,
): void {
  if (size === 1) return
  if (distributed !== true)
    fail('CONFIG', `${called('method')} is ${name}: expected one that several processes can train together (Method.distributed)`)
  if (normGroups % size !== 0)
    fail(
      'CONFIG',
      `${called('normGroups')} is ${normGroups} but there are ${size} processes: expected a multiple of ${size}, since batch statistics ` +
        `are of one process (--norm-groups ${size * Math.max(1, Math.round(normGroups / size))})`,
    )
  if (deviceTraits(device).kind !== deviceTraits(shared).kind)
    fail('CONFIG', `${called('device')} is ${wanted}: expected ${shared}, by which these ${size} processes exchange tensors`)
}

/** Running statistics: what each process has of its own groups, and no other. */
const ofGroups = /(^|\.)running_(mean|var)$/

/**
 * Makes the state of a run the same in all of its processes, before somebody reads it: running statistics become means over all groups,
 * which they then stay, since the update is linear. Throws COMM, naming the ranks, where anything else is not the same already.
 */
export function agreeOnState(state: State, group: Group): void {
  if (group.size === 1) return
  const tensors = [...allTensors(state)]
  const statistics = tensors.filter(([name]) => ofGroups.test(name)).map(([, tensor]) => tensor)
  group.allReduce(statistics, 'mean')
  group.agreeOn('what was learnt', tensors)
}
