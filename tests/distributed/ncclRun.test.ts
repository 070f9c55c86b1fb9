/** Whole runs: the folder that several processes leave is the one that one process leaves. */
import { hasNccl, noNccl } from '../support/nccl.js'
import { suite, testWhere } from '../support/suite.js'
import { byNccl, compareWidths } from '../support/widths.js'

const test = suite('run of several processes by NCCL')

testWhere(hasNccl, noNccl, test, 'two and four processes leave what one leaves, and one run goes on at any width', () =>
  compareWidths(byNccl),
)

test.run()
