import * as assert from 'uvu/assert'

import { Group } from '../../src/distributed/group.js'
import { native } from '../../src/tensor/native.js'
import { Tensor } from '../../src/tensor/tensor.js'
import { beside, hasMpi, noMpi, runMpi } from '../support/mpi.js'
import { hasNccl, noNccl, runNccl } from '../support/nccl.js'
import { suite, testWhere, throwsError } from '../support/suite.js'

const test = suite('collectives')

for (const processes of [1, 2, 3, 4])
  testWhere(hasMpi, noMpi, test, `${processes} processes have from each other what each has said`, async () => {
    const { code, out, err } = await runMpi(processes, beside(import.meta.url, processes === 1 ? 'aloneProgram' : 'collectivesProgram'), [
      '5',
    ])
    assert.is(code, 0, out + err)
    const ranks = Array.from({ length: processes }, (_, rank) => `rank ${rank} of ${processes} ok`)
    assert.equal(out.trim().split('\n').sort(), ranks)
  })

for (const processes of [2, 3, 4])
  testWhere(
    hasNccl,
    noNccl,
    test,
    `${processes} processes on simt have the same by NCCL, and what a recorded step holds of it`,
    async () => {
      for (const [rank, { code, out, err }] of (await runNccl(processes, beside(import.meta.url, 'collectivesProgram'), ['5'])).entries()) {
        assert.is(code, 0, out + err)
        assert.is(out, `rank ${rank} of ${processes} ok\n`)
      }
    },
  )

test('a process that is alone asks nobody', () => {
  const group = Group.single
  const x = Tensor.from([1, 2])
  group.allReduce([x], 'mean')
  group.broadcast([x])
  group.barrier()
  group.agree('all', 'this')
  assert.is(group.allGather(x), x)
  assert.is(group.exchange(x, { sends: [], receives: [] }), x)
  assert.equal(group.sum([3]), [3])
  assert.equal([group.any(true), group.any(false)], [true, false])
  assert.equal([...x.data()], [1, 2])
  x.dispose()
})

test('an addon without MPI says how to get one that has it', () => {
  if (native.commLibrary() === '') throwsError(() => native.openMpi(), 'COMM', /no MPI/, /npm run build:mpi/)
})

test.run()
