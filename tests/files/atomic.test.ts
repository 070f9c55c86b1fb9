/** Files are written whole or not at all, and nothing is left beside them. */
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

import * as assert from 'uvu/assert'

import { appendWhole, writeAtomic, writeTextAtomic } from '../../src/files/atomic.js'
import { suite, throwsError, withFolder } from '../support/suite.js'

const test = suite('atomic writing')
const bytes = (text: string): Uint8Array => new TextEncoder().encode(text)

test('a file is replaced by the parts one after the other, and nothing else is in the folder', () =>
  withFolder((folder) => {
    const path = join(folder, 'file')
    for (const parts of [['one'], ['', 'two', 'three'], []]) {
      for (const verify of [false, true]) {
        writeAtomic(path, parts.map(bytes), { verify })
        assert.is(readFileSync(path, 'utf8'), parts.join(''))
        assert.equal(readdirSync(folder), ['file'])
      }
    }
    writeTextAtomic(path, 'ä')
    assert.equal([...readFileSync(path)], [0xc3, 0xa4])
  }))

test('a write that fails names the file and leaves what was there, and no temporary file', () =>
  withFolder((folder) => {
    // The bytes can be written; what cannot be done is the renaming onto a folder.
    const path = join(folder, 'taken')
    mkdirSync(path)
    writeFileSync(join(path, 'inside'), 'kept')
    throwsError(() => writeAtomic(path, [bytes('lost')]), 'WRITE', path, 'untouched')
    assert.equal(readdirSync(folder), ['taken'])
    assert.is(readFileSync(join(path, 'inside'), 'utf8'), 'kept')
    throwsError(() => writeAtomic(join(folder, 'none', 'file'), [bytes('lost')]), 'WRITE', /none.file: .*\(there is no folder .*none\)/)
    assert.not.ok(existsSync(join(folder, 'none')))
  }))

test('rows are appended; where they cannot be, the error names the file', () =>
  withFolder((folder) => {
    const path = join(folder, 'rows')
    appendWhole(path, bytes('a\n'))
    appendWhole(path, bytes('b\n'))
    assert.is(readFileSync(path, 'utf8'), 'a\nb\n')
    throwsError(() => appendWhole(folder, bytes('c\n')), 'WRITE', folder, process.platform === 'win32' ? 'cannot be written' : 'EISDIR')
  }))

test.run()
