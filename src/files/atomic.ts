import {
  closeSync,
  existsSync,
  fstatSync,
  fsyncSync,
  ftruncateSync,
  mkdirSync,
  openSync,
  readdirSync,
  readSync,
  renameSync,
  rmSync,
  statSync,
  writeSync,
} from 'node:fs'
import { dirname, join } from 'node:path'

import { fail } from '../tensor/errors.js'
import { processStart } from './processes.js'

/**
 * Writes a file so that a kill at any moment leaves the old one or the new one: to a temporary name, synced, renamed. On a
 * full disk the old one stays and the error says so. With `verify` the new one is first read back and compared with `parts`.
 */
export function writeAtomic(path: string, parts: readonly Uint8Array[], { verify = false } = {}): void {
  const temporary = `${path}.tmp-${process.pid}`
  try {
    const descriptor = openSync(temporary, 'w+')
    try {
      for (const part of parts) writeAll(descriptor, part)
      fsyncSync(descriptor)
      if (verify) compare(descriptor, parts)
    } finally {
      closeSync(descriptor)
    }
    renameOver(temporary, path)
    syncFolder(dirname(path))
  } catch (error) {
    rmSync(temporary, { force: true })
    fail('WRITE', `${path}: cannot be written (${writeProblem(error)}); what was there before is untouched`)
  }
}

/** How often, and after how many milliseconds, Windows is asked again to replace a file. */
const [retries, pause] = [40, 25]

/**
 * Puts a file in the place of another. Windows refuses that while somebody has either of them open, a reader or a virus scanner, who is
 * mostly done in a moment: it is tried again for a second.
 */
export function renameOver(from: string, to: string): void {
  for (let left = process.platform === 'win32' ? retries : 0; ; --left) {
    try {
      return renameSync(from, to)
    } catch (error) {
      if (left === 0 || !['EPERM', 'EACCES', 'EBUSY'].includes((error as NodeJS.ErrnoException).code ?? '')) throw error
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, pause)
    }
  }
}

/** Makes a rename last through a loss of power, where the system can: Windows opens no folders, and some network disks sync none. */
function syncFolder(path: string): void {
  try {
    const folder = openSync(path, 'r')
    try {
      fsyncSync(folder)
    } finally {
      closeSync(folder)
    }
  } catch (error) {
    if (!['EISDIR', 'EPERM', 'EINVAL', 'ENOTSUP'].includes((error as NodeJS.ErrnoException).code ?? '')) throw error
  }
}

/** Appends all of `bytes`, or writes them at `position`: a write on a disk that fills up takes a part of what it is given. */
export function writeAll(descriptor: number, bytes: Uint8Array, position?: number): void {
  for (let done = 0; done < bytes.length;)
    done += writeSync(descriptor, bytes, done, bytes.length - done, position === undefined ? null : position + done)
}

/** Throws where the file does not hold `parts`, one after the other. */
function compare(descriptor: number, parts: readonly Uint8Array[]): void {
  const read = Buffer.alloc(2 ** 20)
  let position = 0
  for (const part of parts)
    for (let done = 0; done < part.length;) {
      const count = readSync(descriptor, read, 0, Math.min(read.length, part.length - done), position)
      if (count === 0 || read.compare(part, done, done + count, 0, count) !== 0)
        throw new Error(`byte ${position} and what follows are not read back as they were written`)
      done += count
      position += count
    }
}

/** Why a file could not be written, in words where it is a full disk or a folder that is not there. */
export function writeProblem(error: unknown): string {
  const { code, path } = error as NodeJS.ErrnoException
  if (code === 'ENOSPC') return 'the disk is full'
  // Windows says it of names too that it does not take.
  if (code === 'ENOENT' && path !== undefined && !existsSync(dirname(path))) return `there is no folder ${dirname(path)}`
  return code ?? (error instanceof Error ? error.message : String(error))
}

/** Appends to a file, all of `bytes` or, where they do not fit, nothing. Throws WRITE. */
export function appendWhole(path: string, bytes: Uint8Array): void {
  try {
    const descriptor = openSync(path, 'a')
    const { size } = fstatSync(descriptor)
    try {
      writeAll(descriptor, bytes)
    } catch (error) {
      // A part of a row would spoil the one that comes after it.
      ftruncateSync(descriptor, size)
      throw error
    } finally {
      closeSync(descriptor)
    }
  } catch (error) {
    fail('WRITE', `${path}: cannot be written (${writeProblem(error)}); what was there before is untouched`)
  }
}

export const writeTextAtomic = (path: string, text: string): void => writeAtomic(path, [new TextEncoder().encode(text)])

/** Makes a folder and those that it lies in, where they are not there. (Node's own recursion never ends where none can be made: /proc.) */
export function makeFolder(folder: string): void {
  try {
    if (statSync(folder, { throwIfNoEntry: false })?.isDirectory() === true) return
    const above = dirname(folder)
    if (above !== folder) makeFolder(above)
    mkdirSync(folder)
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException
    // Another process was faster.
    if (code === 'EEXIST' && statSync(folder, { throwIfNoEntry: false })?.isDirectory() === true) return
    if (code === 'WRITE') throw error
    fail('WRITE', `${folder}: the folder cannot be made (${code ?? message})`)
  }
}

/** Removes what processes that were killed while they wrote have left in `folder`: files that a living one writes stay. */
export function removeLeftovers(folder: string): void {
  for (const name of readdirSync(folder)) {
    const pid = Number(/\.tmp-(\d+)$/.exec(name)?.[1])
    if (pid > 0 && processStart(pid) === undefined) rmSync(join(folder, name), { force: true })
  }
}
