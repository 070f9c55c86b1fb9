/** Which processes of this machine are alive: what a lock or a half-written file was left by may be gone. */
import { readFileSync, readlinkSync } from 'node:fs'
import { hostname } from 'node:os'

/** What Linux tells in a file, empty where it does not and on other systems: under Wine its files are there, with other processes. */
const textOf = (read: () => string): string => {
  try {
    return process.platform === 'linux' ? read().trim() : ''
  } catch {
    return ''
  }
}

/** What numbers of processes count within: the machine, since its start, and on Linux the namespace (each container has its own). */
export const processSpace = (): string =>
  [hostname(), textOf(() => readFileSync('/proc/sys/kernel/random/boot_id', 'utf8')), textOf(() => readlinkSync('/proc/self/ns/pid'))].join(
    ' ',
  )

/**
 * When process `pid` was started, in clock ticks since the machine's own start; undefined where there is no such process, or it has
 * ended and waits for its parent. Empty where the system (not Linux) does not say it.
 */
export function processStart(pid: number): string | undefined {
  try {
    process.kill(pid, 0)
  } catch (error) {
    // Another user's process is alive too.
    if ((error as NodeJS.ErrnoException).code !== 'EPERM') return undefined
  }
  const stat = textOf(() => readFileSync(`/proc/${pid}/stat`, 'utf8'))
  // The name, in parentheses, may hold anything; after it come the state, field 3, and more, of which the start is field 22.
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
  return /^[ZX]/.test(fields[0]!) ? undefined : (fields[19] ?? '')
}
