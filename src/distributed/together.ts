/** What all processes of a run do before they share it. */
import { stopWatching } from './control.js'
import type { Group } from './group.js'
import { ofAll } from './speaker.js'

/**
 * What `body` gives, once it has given the same in all processes, as `describe` tells. Throws where it failed here, or COMM, naming the
 * ranks, where it failed elsewhere or gave something else.
 */
export async function together<R>(group: Group, what: string, body: () => R | Promise<R>, describe: (result: R) => string): Promise<R> {
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
    stopWatching()
    // Those that did not fail all say the same.
    if ('error' in made) throw made.error
    throw ofAll(disagreement)
  }
  if ('error' in made) {
    stopWatching()
    throw ofAll(made.error)
  }
  return made.result
}
