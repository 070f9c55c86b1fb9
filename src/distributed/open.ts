/** The beginning and the end of running as one of several processes. */
import { fail } from '../tensor/errors.js'
import { mpiBuildCommand } from '../tensor/addon.js'
import { addonPath, native } from '../tensor/native.js'
import { stopWatching, watchTogether } from './control.js'
import { Group } from './group.js'
import { identity } from './launcher.js'
import { pace } from './pace.js'

/**
 * The processes that were started with this one, by whatever started them; Group.single where it was started alone. Throws COMM where they
 * cannot reach each other.
 */
export function openGroup(): Group {
  const { launcher, rank, size } = identity()
  if (size === 1) return Group.single
  if (native.commLibrary() === '')
    fail(
      'COMM',
      `${launcher} started ${size} processes, of which this is rank ${rank}, but the addon ${addonPath()} has no MPI, by which they ` +
        `would exchange tensors: ${mpiBuildCommand}, then start them by densecl launch or mpirun`,
    )
  const world = native.openComm()
  if (world.size !== size || world.rank !== rank)
    fail(
      'COMM',
      `${launcher} says that this is rank ${rank} of ${size} but ${native.commLibrary()} says rank ${world.rank} of ${world.size}: ` +
        'expected the launcher of the MPI that the addon was built with',
    )
  return new Group(rank, size)
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
