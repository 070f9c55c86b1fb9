/** The only rank of collectives.test.ts, which is told so by mpirun. */
import * as assert from 'uvu/assert'

import { Group } from '../../src/distributed/group.js'
import { openGroup } from '../../src/distributed/open.js'

assert.is(openGroup(), Group.single)
console.log('rank 0 of 1 ok')
