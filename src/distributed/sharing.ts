/** Work that several processes share, from its first step to its end. */
import { AsyncLocalStorage } from 'node:async_hooks'

import { type Ask, currentAsk } from '../tensor/interruption.js'
import type { Group } from './group.js'
import { withPace } from './pace.js'
import { Poll } from './poll.js'

/** What the process that shares work is asked beside it. */
const own = new AsyncLocalStorage<Ask>()

/** Runs `body`, in shared work too, as work of this process that it may leave by itself: a signal ends it. */
export function hearing<R>(body: () => R): R {
  const ask = own.getStore()
  return ask === undefined ? body() : withPace(ask, body)
}

/**
 * Runs `body`, the same in all processes. It asks what it is given before each of its steps, as often in one process as in any other, and
 * ends where that says so: at one step of all, when any of them is told to end, by `interrupted` or as the work that this call belongs to.
 * A process that left for a signal of its own would be waited for by the others, so that nothing else in `body` is told of one.
 */
export async function sharing<R>(group: Group, interrupted: () => boolean, body: (interrupted: () => boolean) => Promise<R>): Promise<R> {
  if (group.size === 1) return body(interrupted)
  const asked = currentAsk()
  const poll = new Poll(group)
  const deaf = (): Promise<R> =>
    withPace(
      () => false,
      () => body(() => poll.ask(interrupted() || asked(false))),
    )
  const result = await own.run(asked, deaf)
  poll.close()
  return result
}
