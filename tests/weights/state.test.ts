/** States: a file takes the place of the one before only as it was written. */
import fs, { readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { syncBuiltinESMExports } from 'node:module'
import { join } from 'node:path'

import * as assert from 'uvu/assert'

import { writeAtomic } from '../../src/files/atomic.js'
import { Tensor } from '../../src/tensor/tensor.js'
import { readState, saveState } from '../../src/weights/state.js'
import { suite, throwsError, withFolder } from '../support/suite.js'

const test = suite('state')

/** Runs `body` while every write to a file of more than `least` bytes has its last bit turned. */
function withDamagedWrites(least: number, body: () => void): void {
  const { writeSync } = fs
  const damaged = (descriptor: number, bytes: Uint8Array, offset: number, length: number): number => {
    const turned = bytes.slice(offset, offset + length)
    if (length > least) turned[length - 1]! ^= 1
    return writeSync(descriptor, turned, 0, length)
  }
  fs.writeSync = damaged as typeof writeSync
  syncBuiltinESMExports()
  try {
    body()
  } finally {
    fs.writeSync = writeSync
    syncBuiltinESMExports()
  }
}

test('what is not read back as it was written does not replace the state from before', async () => {
  await withFolder((folder) => {
    const path = join(folder, 'state.safetensors')
    const tensor = Tensor.from([1, 2, 3, 4], [4])
    const save = (round: number): void => saveState(path, [['x', tensor]], 'test', { round })
    save(1)
    withDamagedWrites(8, () => throwsError(() => save(2), 'WRITE', 'state.safetensors', /not read back as they were written/))
    assert.equal(readState(path, 'test').record, { round: 1 })
    assert.equal(readdirSync(folder), ['state.safetensors'])
    save(3)
    assert.equal(readState(path, 'test').record, { round: 3 })
    // More than one piece of reading, and parts without bytes.
    const large = new Uint8Array(2 ** 21 + 5).map((_, i) => i)
    writeAtomic(join(folder, 'large'), [new Uint8Array(0), large, large.subarray(0, 3)], { verify: true })
    tensor.dispose()
  })
})

test('a state in which a byte is another is refused, in its tensors and in its record; one without a checksum is taken', async () => {
  await withFolder((folder) => {
    const path = join(folder, 'state.safetensors')
    const tensor = Tensor.from([1, 2, 3, 4], [4])
    saveState(path, [['x', tensor]], 'test', { round: 7 })
    const whole = readFileSync(path)
    for (const at of [whole.length - 1, whole.length - 16, whole.indexOf('round') + 1]) {
      const damaged = Buffer.from(whole)
      damaged[at]! ^= 1
      writeFileSync(path, damaged)
      throwsError(() => readState(path, 'test'), 'FORMAT', 'state.safetensors', /its checksum is not that of what was written/)
    }
    // As it was written before there were checksums: the same name in length, but another.
    writeFileSync(path, Buffer.from(whole.toString('latin1').replace('"sha256"', '"others"'), 'latin1'))
    assert.equal(readState(path, 'test').record, { round: 7 })
    tensor.dispose()
  })
})

test.run()
