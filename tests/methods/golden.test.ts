/** Parity with PyTorch in float64: a small selection in every clone, all golden files where they are. */
import { existsSync } from 'node:fs'
import { join } from 'node:path'

import * as assert from 'uvu/assert'

import { packageRoot } from '../../src/tensor/addon.js'
import { writeGoldenDetector } from '../support/detectionGolden.js'
import { goldenRows } from '../support/golden.js'
import { hasTorch, noTorch } from '../support/python.js'
import { suite, testWhere, withFolder } from '../support/suite.js'

const test = suite('golden')

function check(folder: string): void {
  let rows = 0
  for (const { name, dtype, error, tolerance } of goldenRows(folder)) {
    assert.ok(error <= tolerance, `${name} ${dtype}: relative error ${error}, allowed ${tolerance}`)
    rows += 1
  }
  assert.ok(rows > 10, `${rows} rows`)
}

test('the fixtures of this repository', () => check(join(packageRoot, 'tests', 'fixtures', 'golden')))

const shared = join(packageRoot, '..', 'shared', 'golden')
testWhere(existsSync(shared), 'the large golden files are not here', test, 'the large golden files', () => check(shared))
const detectors = join(shared, 'detection')
testWhere(existsSync(detectors), 'the golden detectors are not here', test, 'golden detectors', () => check(detectors))

testWhere(hasTorch, noTorch, test, 'detectors that PyTorch draws by other seeds', () =>
  withFolder((folder) => {
    for (const seed of [2, 5]) writeGoldenDetector(folder, 'c4', seed)
    for (const seed of [1, 2, 3]) writeGoldenDetector(folder, 'fpn', seed)
    check(folder)
  }),
)

test.run()
