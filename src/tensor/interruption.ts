/**
 * Ending early: who starts some work says how to ask whether it is to end (a command: whether a signal was heard), and whatever takes
 * long asks where nothing is half done. What was asked for is not an error of the work, but leaves it like one, with the code INTERRUPTED.
 */
import { AsyncLocalStorage } from 'node:async_hooks'

import { DenseclError } from './errors.js'

/** Whether the work is to end; `awaiting` where nothing was done since the last question. */
export type Ask = (awaiting: boolean) => boolean

const asks = new AsyncLocalStorage<Ask>()

/** Runs `body`, in which, whatever it awaits, interrupted() is what `ask` says. */
export const withInterruption = <R>(ask: Ask, body: () => R): R => asks.run(ask, body)

/** What interrupted() asks here, for whoever asks it elsewhere. */
export const currentAsk = (): Ask => asks.getStore() ?? (() => false)

/** Whether the work that this call belongs to is to end. */
export const interrupted = (): boolean => currentAsk()(false)

/** The error that work leaves with when it was told to end. */
export const interruption = (): DenseclError => new DenseclError('INTERRUPTED', 'interrupted')

export const isInterruption = (error: unknown): boolean => error instanceof DenseclError && error.code === 'INTERRUPTED'

/** Throws INTERRUPTED when the work is to end. */
export function stopIfInterrupted(): void {
  if (interrupted()) throw interruption()
}

/** Items between two questions: a question takes as long as reading a few rows. */
const stride = 1024

/** The items one by one; throws INTERRUPTED between two of them when the work is to end. */
export function* untilInterrupted<T>(items: Iterable<T>): Generator<T> {
  let count = 0
  for (const item of items) {
    if (count++ % stride === 0) stopIfInterrupted()
    yield item
  }
}

/** Milliseconds between two questions while something is awaited. */
const patience = 100

/** What `promise` gives; throws INTERRUPTED when the work is to end before, and leaves the promise to itself. */
export async function unlessInterrupted<R>(promise: Promise<R>): Promise<R> {
  const ask = asks.getStore()
  if (ask === undefined) return promise
  stopIfInterrupted()
  let clock: NodeJS.Timeout | undefined
  const ended = new Promise<never>((_, reject) => {
    clock = setInterval(() => {
      if (ask(true)) reject(interruption())
    }, patience)
  })
  try {
    return await Promise.race([promise, ended])
  } finally {
    clearInterval(clock)
  }
}
