/** What all processes of a run do before they share it, and who says what went wrong. */
import type { Group } from './group.js'
import { identity } from './launcher.js'

/** Errors that every process has: rank 0 says them for all. */
const common = new WeakSet<object>()

/**
 * What `body` gives, once it has given the same in all processes, as `describe` tells. Throws where it failed here, or COMM, naming the
 * ranks, where it failed elsewhere or gave something else.
 */
export async function together<R>(group: Group, what: string, body: () => Promise<R>, describe: (result: R) => string): Promise<R> {
  if (group.size === 1) return body()
  let made: { result: R } | { error: unknown }
  try {
    made = { result: await body() }
  } catch (error) {
    made = { error }
  }
  const said = 'result' in made ? describe(made.result) : String(made.error)
  try {
    group.agree(what, said)
  } catch (disagreement) {
    // Those that did not fail all say the same.
    if ('error' in made) throw made.error
    throw ofAll(disagreement)
  }
  if ('error' in made) throw ofAll(made.error)
  return made.result
}

function ofAll(error: unknown): unknown {
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
