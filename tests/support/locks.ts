/** Locks as killed processes leave them. */
import { readFileSync, utimesSync, writeFileSync } from 'node:fs'

import * as assert from 'uvu/assert'

import { FileLock, type LockHolder } from '../../src/files/lock.js'

/** Leaves the lock of a process of `space` that gave its last sign of life some seconds ago. */
export function leaveLock(path: string, seconds: number, space: string): void {
  const holder = new FileLock(path)
  assert.is(holder.take(), undefined)
  writeFileSync(path, JSON.stringify({ ...(JSON.parse(readFileSync(path, 'utf8')) as LockHolder), space }))
  holder.release()
  const then = Date.now() / 1000 - seconds
  utimesSync(path, then, then)
}
