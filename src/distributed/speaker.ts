/** Who of several processes says what went wrong. */
import { identity } from './launcher.js'

/** Errors that every process has: rank 0 says them for all. */
const common = new WeakSet<object>()

/** Marks an error as one that every process has. */
export function ofAll(error: unknown): unknown {
  if (typeof error === 'object' && error !== null) common.add(error)
  return error
}

/** Before what this process says of an error: its rank where there are several; undefined where rank 0 says it for all. */
export function speaker(error: unknown): string | undefined {
  let rank = 0
  try {
    rank = identity().rank
  } catch {
    // That this cannot be told is what the error says.
  }
  if (rank === 0) return ''
  return typeof error === 'object' && error !== null && common.has(error) ? undefined : `rank ${rank}: `
}
