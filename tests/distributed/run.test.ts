/** Whole runs: the folder that several processes leave is the one that one process leaves. */
import { hasMpi, noMpi } from '../support/mpi.js'
import { suite, testWhere } from '../support/suite.js'
import { byMpi, compareWidths } from '../support/widths.js'

const test = suite('run of several processes')

testWhere(hasMpi, noMpi, test, 'two and four processes leave what one leaves, and one run goes on at any width', () => compareWidths(byMpi))

test.run()
