/** The host execution of kernels must catch what it exists for: each alarm kernel has one mistake, its twin none. */
import { spawnSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

import * as assert from 'uvu/assert'

import { packageRoot } from '../../src/tensor/addon.js'
import { sanitized, variants } from '../support/devices.js'
import { suite, testWhere } from '../support/suite.js'

const test = suite('alarms')
const runner = join(fileURLToPath(new URL('.', import.meta.url)), 'alarm.js')
const [plain] = variants(packageRoot)

/** Runs an alarm in a process of its own, which it may kill. */
function run(
  name: string,
  options: { at?: number; shuffle?: number; env?: Record<string, string> } = {},
): { values: number[]; error: string } {
  const { stdout, stderr } = spawnSync(process.execPath, [runner, name, String(options.at ?? 0), String(options.shuffle ?? 0)], {
    encoding: 'utf8',
    env: { ...process.env, ...(options.env ?? plain!.env) },
  })
  const values = stdout.startsWith('[') ? (JSON.parse(stdout) as number[]) : []
  return { values, error: stderr }
}

const has = plain!.missing === undefined
const reversed = Array.from({ length: 128 }, (_, t) => 127 - t)

testWhere(has, plain!.missing ?? '', test, 'a missing barrier shows when threads run in shuffled order, a present one never', () => {
  for (const shuffle of [0, 1, 2, 3]) assert.equal(run('barrier', { shuffle }).values.slice(0, 128), reversed)
  for (const shuffle of [1, 2, 3]) assert.not.equal(run('missingBarrier', { shuffle }).values.slice(0, 128), reversed)
})

testWhere(has, plain!.missing ?? '', test, 'a barrier or warp operation that some threads never reach is named', () => {
  assert.match(run('divergentBarrier').error, /7 of 128 threads wait at a barrier/)
  assert.match(run('divergentShuffle').error, /warp operation that the others never reach/)
})

testWhere(has, plain!.missing ?? '', test, 'a vector access off its alignment is named', () => {
  assert.is(run('misaligned', { at: 8 }).values[11], 0)
  assert.match(run('misaligned', { at: 9 }).error, /access of 16 bytes at an address that is 4 bytes off/)
})

testWhere(has, plain!.missing ?? '', test, 'asynchronous copies arrive when they are waited for, not before', () => {
  const expected = Array.from({ length: 512 }, (_, i) => i)
  assert.equal(run('copy').values, expected)
  assert.not.equal(run('missingWait').values, expected)
})

testWhere(
  has,
  plain!.missing ?? '',
  test,
  'bulk copies arrive when their barrier is waited for, and a barrier that counts other bytes is named',
  () => {
    const expected = Array.from({ length: 32 }, (_, i) => i)
    assert.equal(run('bulkCopy').values.slice(0, 32), expected)
    assert.not.equal(run('missingBulkWait').values.slice(0, 32), expected)
    assert.match(run('bulkCopyTooShort').error, /a barrier or a copy that never comes/)
    assert.match(run('bulkCopyTooLong').error, /expects 512 bytes but copies of 1024 arrive/)
  },
)

testWhere(
  has,
  plain!.missing ?? '',
  test,
  'bulk stores read when they are waited for, and one that misses a fence or its end is named',
  () => {
    // Seven lines of 56 elements of a box that has eight of 64; behind them nothing is written.
    const stored = Array.from({ length: 7 * 56 }, (_, i) => i % 56)
    const run7 = (name: string, shuffle: number): number[] => {
      const words = new Uint32Array(Float32Array.from(run(name, { shuffle }).values).buffer)
      const halves = [...new Uint16Array(words.buffer)]
      return [...new Float32Array(Uint32Array.from(halves, (half) => half << 16).buffer)]
    }
    for (const shuffle of [0, 1, 2, 3]) {
      const values = run7('bulkStore', shuffle)
      assert.equal(values.slice(0, stored.length), stored)
      assert.ok(values.slice(stored.length).every((value) => value === 0))
      assert.match(run('unfencedBulkStore', { shuffle }).error, /a bulk store of what 1 threads of its warpgroup wrote without a fence/)
      assert.match(run('unfinishedBulkStore', { shuffle }).error, /a thread ends before its bulk stores are done/)
    }
    assert.not.equal(run7('overwrittenBulkStore', 0).slice(0, stored.length), stored)
  },
)

testWhere(has, plain!.missing ?? '', test, 'guard bytes around a tensor show a store on either side of it', () => {
  assert.is(run('store', { at: 511 }).values[511], 1)
  for (const at of [-1, 512, 600]) assert.match(run('store', { at }).error, /wrote outside of f32\[512\]/)
})

const asan = existsSync(sanitized(packageRoot).DENSECL_ADDON!)
testWhere(
  asan,
  'build-simt-asan is not built: npm run build:simt -- --sanitize',
  test,
  'AddressSanitizer stops at the store itself, in global and in shared memory',
  () => {
    const env = sanitized(packageRoot)
    assert.is(run('store', { at: 511, env }).values[511], 1)
    for (const at of [-1, 512])
      assert.match(run('store', { at, env }).error, /AddressSanitizer: .*use-after-poison|AddressSanitizer: heap-buffer-overflow/)
    assert.equal(
      run('sharedStore', { at: 127, env })
        .values.slice(0, 127)
        .every((value) => value === 0),
      true,
    )
    assert.match(run('sharedStore', { at: 128, env }).error, /AddressSanitizer/)
  },
)

test.run()
