/** Whole training steps on the device under test, against PyTorch in float64. */
import { existsSync } from 'node:fs'
import { join } from 'node:path'

import * as assert from 'uvu/assert'

import { packageRoot } from '../../src/tensor/native.js'
import { device, thorough } from '../support/devices.js'
import { goldenRows } from '../support/golden.js'
import { suite, testWhere } from '../support/suite.js'

const test = suite(`steps on ${device}`, device)

function check(folder: string): void {
  let rows = 0
  for (const { name, dtype, error, tolerance } of goldenRows(folder, device)) {
    assert.ok(error <= tolerance, `${name} ${dtype}: relative error ${error}, allowed ${tolerance}`)
    rows += 1
  }
  assert.ok(rows >= 4, `${rows} rows`)
}

test('the golden step of this repository', () => check(join(packageRoot, 'tests', 'fixtures', 'golden')))

const shared = join(packageRoot, '..', 'shared', 'golden')
if (thorough) testWhere(existsSync(shared), 'the large golden files are not here', test, 'the large golden files', () => check(shared))

test.run()
