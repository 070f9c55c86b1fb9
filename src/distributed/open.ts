/** The beginning and the end of running as one of several processes. */
import { existsSync, fstatSync } from 'node:fs'

import { fail } from '../tensor/errors.js'
import { mpiAddonPath, mpiBuildCommand } from '../tensor/addon.js'
import { addonPath, native } from '../tensor/native.js'
import { deviceTraits } from '../tensor/traits.js'
import { handOverSignals, meet, stopWatching, watchTogether } from './control.js'
import { Group } from './group.js'
import { deviceOfRank, type Identity, identity } from './launcher.js'
import { loadNccl } from './nccl.js'
import { pace } from './pace.js'

/**
 * The processes that were started with this one, by whatever started them; Group.single where it was started alone. `wanted` is the device
 * of the configuration: processes on CPUs exchange tensors by MPI, those on GPUs, each on one of its own, by NCCL. Throws COMM where they
 * cannot reach each other, and CONFIG where there are fewer GPUs than processes.
 */
export function openGroup(wanted = 'auto'): Group {
  const own = identity()
  if (own.size === 1) return Group.single
  const device = deviceOfRank(wanted, own)
  return deviceTraits(device).hostMemory ? openMpi(own) : openNccl(own, device)
}

function openMpi({ launcher, rank, size, localSize }: Identity): Group {
  if (native.commLibrary() === '') {
    const remedy = existsSync(mpiAddonPath) ? `DENSECL_ADDON=${mpiAddonPath} names` : `${mpiBuildCommand} makes`
    fail(
      'COMM',
      `${launcher} started ${size} processes, of which this is rank ${rank}, but the addon ${addonPath()} has no MPI, by which they ` +
        `would exchange tensors: ${remedy} one that has, for processes of densecl launch, mpirun, or srun with --mpi`,
    )
  }
  if (isPmiLost())
    fail(
      'COMM',
      `${launcher} handed this process descriptor ${process.env.PMI_FD} to reach it by (PMI_FD), which something in between has closed, ` +
        'as npx does: let it start node_modules/.bin/densecl itself',
    )
  const world = native.openMpi()
  if (world.size !== size || world.rank !== rank)
    fail(
      'COMM',
      `${launcher} says that this is rank ${rank} of ${size} but ${native.commLibrary()} says rank ${world.rank} of ${world.size}: ` +
        `expected the launcher of the MPI that the addon ${addonPath()} was built with (densecl launch takes what DENSECL_MPIRUN names; ` +
        'srun --mpi=pmix is for Open MPI, --mpi=pmi2 for MPICH)',
    )
  // Between processes of one machine a message is work of its cores, all of which compute.
  return new Group(rank, size, 'cpu', size > localSize)
}

/** Whether the socket by which MPICH reaches its launcher is gone: MPI would end the process over it, with a page that names no cause. */
function isPmiLost(): boolean {
  const descriptor = process.env.PMI_FD
  if (descriptor === undefined) return false
  try {
    return !fstatSync(Number(descriptor)).isSocket()
  } catch {
    return true
  }
}

/** NCCL is told who takes part: its id passes from rank 0 to the others where they meet. */
function openNccl(own: Identity, device: string): Group {
  const { rank, size } = own
  loadNccl()
  const id = meet(own, rank === 0 ? native.ncclId!().toString('base64') : '', native.busId!(device))
  pace.waiting(() => native.openNccl!(Buffer.from(id, 'base64'), rank, size, device))
  handOverSignals()
  return new Group(rank, size, device)
}

/**
 * Makes every end of this process one that the others notice: a good one waits until all have come to theirs, and any other leaves at once
 * with its code; ending the usual way would wait for threads that wait for them. From here on a process that is lost ends the others, which
 * say who it was (docs/distributed.md). All processes call it. Throws COMM where they do not reach each other.
 */
export function leaveTogether(group: Group): void {
  if (group.size === 1) return
  // It is printed after `exit`, and this process does not come to that.
  process.once('uncaughtExceptionMonitor', (error) => console.error(error))
  process.once('exit', (code) => {
    if (code === 0) return finish()
    if (ended) return
    stopWatching(code)
    native.leave(code)
  })
  watchTogether(group)
}

let ended = false

/** Waits until all processes have come to the end of what they share: from then on each may leave with any code. */
export function endTogether(group: Group): void {
  if (group.size === 1) return
  group.barrier()
  finish()
  ended = true
}

function finish(): void {
  pace.waiting(() => native.closeComm())
  stopWatching()
}
