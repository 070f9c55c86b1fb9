/**
 * What was fetched of files on other machines, on the disk: blocks of fixed size, one file each, in a folder for each version of a file.
 * Any number of processes share it: files appear whole, by a new name, hold the same whoever wrote them, and may vanish at any time. What
 * is longest unused is removed when all are more than a limit.
 */
import { closeSync, fstatSync, openSync, readFileSync, rmSync, statSync, utimesSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { threadId } from 'node:worker_threads'

import { makeFolder, removeLeftovers, renameOver, writeProblem } from '../files/atomic.js'
import { namesIn } from '../files/look.js'
import { readAt } from '../files/readAt.js'

export const blockBytes = 2 ** 20

/** Where blocks lie, and how many bytes they may have together. */
export interface CacheLimits {
  folder: string
  bytes: number
}

/** Milliseconds after which a file that is used is marked as used once more. */
const markEvery = 600_000

/** Lists cost the whole file to make again: they count as used so many milliseconds later than they were. */
const listGrace = 30 * 24 * 3_600_000

const blockName = (index: number): string => `${String(index).padStart(6, '0')}.block`

/** The blocks of one version of one file. */
export class BlockFolder {
  readonly path: string

  constructor(
    readonly limits: CacheLimits,
    key: string,
  ) {
    this.path = join(limits.folder, key)
  }

  /** Bytes `from` to `to` of a block of `length` bytes; undefined where it is not there, or not of that length. */
  read(index: number, length: number, from: number, to: number): Buffer | undefined {
    const path = join(this.path, blockName(index))
    let descriptor: number | undefined
    try {
      descriptor = openSync(path, 'r')
      const { size, mtimeMs } = fstatSync(descriptor)
      if (size !== length) return undefined
      if (Date.now() - mtimeMs > markEvery) markUsed(path)
      return readAt(descriptor, from, to - from)
    } catch {
      return undefined
    } finally {
      if (descriptor !== undefined) closeSync(descriptor)
    }
  }

  /** Keeps a block. Where that fails it is fetched again when it is wanted, which is said once. */
  write(index: number, bytes: Uint8Array): void {
    this.#put(blockName(index), bytes)
  }

  /** The list of what the file holds. */
  readList(): string | undefined {
    const path = join(this.path, 'list.json')
    try {
      const text = readFileSync(path, 'utf8')
      markUsed(path)
      return text
    } catch {
      return undefined
    }
  }

  writeList(text: string): void {
    this.#put('list.json', Buffer.from(text))
  }

  #put(name: string, bytes: Uint8Array): void {
    const path = join(this.path, name)
    // Threads have the number of their process.
    const temporary = `${path}.${threadId}.tmp-${process.pid}`
    try {
      spend(this.limits, bytes.length)
      makeFolder(this.path)
      writeFileSync(temporary, bytes)
      renameOver(temporary, path)
    } catch (error) {
      warnOnce(this.limits.folder, error)
      remove(temporary)
    }
  }
}

function markUsed(path: string): void {
  const now = new Date()
  try {
    utimesSync(path, now, now)
  } catch {
    // It is another user's, or gone.
  }
}

function remove(path: string): void {
  try {
    rmSync(path, { force: true })
  } catch {
    // What keeps it from being written may keep it from being looked for.
  }
}

const warned = new Set<string>()

function warnOnce(folder: string, error: unknown): void {
  if (warned.has(folder)) return
  warned.add(folder)
  console.error(`densecl: ${folder}: shards cannot be kept (${writeProblem(error)}): they are fetched whenever they are wanted`)
}

/** Bytes that this thread may write before it looks at the folder again. */
const room = new Map<string, number>()

/** Writers that may share what is left, each unknown to the others. */
const writers = 32

function spend({ folder, bytes: most }: CacheLimits, bytes: number): void {
  const left = (room.get(folder) ?? 0) - bytes
  room.set(folder, left < 0 ? Math.floor((most - reduce(folder, most, bytes)) / writers) : left)
}

interface Kept {
  path: string
  size: number
  used: number
}

/** Removes what is longest unused where `folder` and `coming` bytes are more than `most`, to nine tenths of that; the bytes that stay. */
function reduce(folder: string, most: number, coming: number): number {
  const all: Kept[] = []
  for (const key of namesIn(folder))
    for (const name of namesIn(join(folder, key))) {
      const path = join(folder, key, name)
      // Another process may have removed it.
      const status = statSync(path, { throwIfNoEntry: false })
      if (status?.isFile() === true) all.push({ path, size: status.size, used: status.mtimeMs + (name === 'list.json' ? listGrace : 0) })
    }
  let total = all.reduce((sum, { size }) => sum + size, coming)
  if (total <= most) return total
  for (const { path, size } of all.sort((a, b) => a.used - b.used)) {
    if (total <= 0.9 * most) break
    rmSync(path, { force: true })
    total -= size
  }
  return total
}

/** Makes the folder, and removes what processes that were killed have left in it. Throws WRITE. */
export function openCache({ folder }: CacheLimits): void {
  makeFolder(folder)
  for (const key of namesIn(folder))
    if (statSync(join(folder, key), { throwIfNoEntry: false })?.isDirectory() === true) removeLeftovers(join(folder, key))
}
