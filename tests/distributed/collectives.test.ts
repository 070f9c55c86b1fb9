import * as assert from 'uvu/assert'

import { Group } from '../../src/distributed/group.js'
import { native } from '../../src/tensor/native.js'
import { Tensor } from '../../src/tensor/tensor.js'
import { launch, tiny } from '../support/launch.js'
import { beside, type Mpi, mpis, runMpi } from '../support/mpi.js'
import { hasNccl, noNccl, runNccl } from '../support/nccl.js'
import { suite, testWhere, throwsError } from '../support/suite.js'

const test = suite('collectives')

for (const mpi of mpis)
  for (const processes of [1, 2, 3, 4])
    testWhere(mpi.missing === undefined, mpi.missing!, test, `${processes} processes have by ${mpi.name} what each has said`, async () => {
      const program = beside(import.meta.url, processes === 1 ? 'aloneProgram' : 'collectivesProgram')
      const { code, out, err } = await runMpi(processes, program, ['5'], {}, mpi)
      assert.is(code, 0, out + err)
      const ranks = Array.from({ length: processes }, (_, rank) => `rank ${rank} of ${processes} ok`)
      assert.equal(out.trim().split('\n').sort(), ranks)
    })

for (const [launcher, other] of [mpis, mpis.toReversed()] as [Mpi, Mpi][])
  testWhere(
    mpis.every(({ missing }) => missing === undefined),
    mpis.find(({ missing }) => missing !== undefined)?.missing ?? '',
    test,
    `the launcher of ${launcher.name} with the addon of ${other.name} is refused by names`,
    async () => {
      const wrong = { DENSECL_ADDON: other.addon, DENSECL_MPIRUN: launcher.mpirun!.program }
      const { code, err } = await launch(['--processes', '2', '--', 'pretrain', ...tiny, '--out', '/nonexistent/run'], wrong).ended
      assert.is(code, 1, err)
      assert.match(err, new RegExp(`^densecl: rank \\d: .* says that this is rank \\d of 2 but .* says rank 0 of 1: .*${other.addon}`, 'm'))
    },
  )

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
