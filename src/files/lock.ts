/** A lock file: one process at a time has it, and one that was killed does not keep it. */
import { linkSync, readFileSync, rmSync, statSync, utimesSync, writeFileSync } from 'node:fs'
import { hostname } from 'node:os'
import { setTimeout as sleep } from 'node:timers/promises'

import { fail } from '../tensor/errors.js'
import { unlessInterrupted } from '../tensor/interruption.js'
import { renameOver, writeProblem } from './atomic.js'
import { statAt } from './look.js'
import { processSpace, processStart } from './processes.js'

/** What a lock file holds, as JSON. */
export interface LockHolder {
  pid: number
  /** processStart of that process: its number may be another's by now. */
  start: string
  host: string
  /** processSpace: whether `pid` can be asked for from here. */
  space: string
  since: string
}

/** Milliseconds between two signs of life, and how long the lock of another machine or container counts without one. */
const [touchEvery, patience] = [20_000, 120_000]

export class FileLock {
  #text: string | undefined
  #timer: NodeJS.Timeout | undefined

  constructor(readonly path: string) {}

  /** Takes the lock, also from a holder that is gone; returns the holder that is alive instead, if there is one. */
  take(): LockHolder | undefined {
    const start = processStart(process.pid) ?? ''
    const own: LockHolder = { pid: process.pid, start, host: hostname(), space: processSpace(), since: new Date().toISOString() }
    const text = `${JSON.stringify(own)}\n`
    for (;;) {
      if (this.#create(text)) break
      const seen = readIfThere(this.path)
      if (seen === undefined) continue
      const holder = parseHolder(seen)
      if (holder !== undefined && isAlive(holder, this.path)) return holder
      this.#remove(seen)
    }
    this.#text = text
    this.#timer = setInterval(() => this.#touch(), touchEvery).unref()
    return undefined
  }

  release(): void {
    clearInterval(this.#timer)
    if (this.#text !== undefined && readIfThere(this.path) === this.#text) rmSync(this.path, { force: true })
    this.#text = undefined
  }

  /** The file appears with all that it holds, or not at all: false where there is one. */
  #create(text: string): boolean {
    const temporary = `${this.path}.tmp-${process.pid}`
    try {
      writeFileSync(temporary, text)
      try {
        linkSync(temporary, this.path)
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code === 'EEXIST') return false
        // A file system without links.
        writeFileSync(this.path, text, { flag: 'wx' })
      }
      return true
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException
      if (code === 'EEXIST') return false
      return fail('WRITE', `${this.path}: cannot be written (${writeProblem(error)})`)
    } finally {
      rmSync(temporary, { force: true })
    }
  }

  /** Removes the file as it was `seen`: one that another process has put there meanwhile is put back. */
  #remove(seen: string): void {
    const aside = `${this.path}.tmp-${process.pid}`
    try {
      renameOver(this.path, aside)
      if (readFileSync(aside, 'utf8') !== seen) linkSync(aside, this.path)
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException
      // Somebody else was faster: the next look tells.
      if (code !== 'ENOENT' && code !== 'EEXIST') fail('WRITE', `${this.path}: cannot be replaced (${code ?? String(error)})`)
    } finally {
      rmSync(aside, { force: true })
    }
  }

  #touch(): void {
    const now = new Date()
    try {
      utimesSync(this.path, now, now)
    } catch {
      // The folder was removed: there is nothing left to hold.
    }
  }
}

/**
 * Waits while a lock is of a process of another machine or container, which may have been killed, until that gives a sign of life or
 * counts as gone: take() then knows. `say` is told of the wait.
 */
export async function untilSure(path: string, say = (line: string): void => console.error(line)): Promise<void> {
  const sign = (): number | undefined => statAt(path)?.mtimeMs
  const first = sign()
  for (let said = false; sign() === first; said = true) {
    const holder = parseHolder(readIfThere(path) ?? '')
    if (holder === undefined || holder.space === processSpace() || !isAlive(holder, path)) return
    if (!said) say(`lock    ${path}: waits for a sign of life of process ${holder.pid} on ${holder.host}, ${patience / 1000} s at most`)
    await unlessInterrupted(sleep(1000))
  }
}

function readIfThere(path: string): string | undefined {
  try {
    return readFileSync(path, 'utf8')
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    // ENOTDIR: a file lies where the folder would be, which the making of the folder says.
    return code === 'ENOENT' || code === 'ENOTDIR' ? undefined : fail('FILE', `${path}: cannot be read (${code ?? String(error)})`)
  }
}

function parseHolder(text: string): LockHolder | undefined {
  try {
    const holder = JSON.parse(text) as LockHolder
    const words = [holder.start, holder.host, holder.space, holder.since]
    return Number.isSafeInteger(holder.pid) && holder.pid > 0 && words.every((word) => typeof word === 'string') ? holder : undefined
  } catch {
    return undefined // no lock of ours, or damaged: nobody holds it
  }
}

function isAlive({ pid, start, space }: LockHolder, path: string): boolean {
  if (space === processSpace()) {
    if (processStart(pid) !== start) return false
    if (start !== '') return true
  }
  // Of another machine, or where the system does not say whether the process of that number is still the same.
  const touched = statSync(path, { throwIfNoEntry: false })?.mtimeMs
  return touched !== undefined && Date.now() - touched < patience
}
