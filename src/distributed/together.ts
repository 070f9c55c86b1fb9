/** What all processes of a run do before they share it. */
import { interruption, isInterruption } from '../tensor/interruption.js'
import { stopWatching } from './control.js'
import type { Group } from './group.js'
import { hearing } from './sharing.js'
import { ofAll } from './speaker.js'

/**
 * What `body` gives, once it has given the same in all processes: `describe` tells what is compared, by names. Throws where it failed here,
 * or COMM, naming the ranks, where it failed elsewhere or gave something else. Where a signal ends it in one process it ends in all.
 */
export async function together<R>(
  group: Group,
  what: string,
  body: () => R | Promise<R>,
  describe: (result: R) => Record<string, unknown> = () => ({}),
): Promise<R> {
  if (group.size === 1) return body()
  let made: { result: R } | { error: unknown }
  try {
    made = { result: await hearing(body) }
  } catch (error) {
    made = { error }
  }
  const said = 'result' in made ? describe(made.result) : {}
  const failed = group.any('error' in made)
  if (failed && group.any('error' in made && isInterruption(made.error))) made = { error: ofAll(interruption()) }
  try {
    group.agree(what, 'error' in made ? String(made.error) : Object.keys(said).join())
    // One by one, for the name of what differs.
    if (!failed) for (const [name, value] of Object.entries(said)) group.agree(name, JSON.stringify(value ?? null))
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
