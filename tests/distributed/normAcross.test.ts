/** A batch norm of the rows of several processes is that of one that has them all: output, gradients, running statistics. */
import * as assert from 'uvu/assert'

import { beside, hasMpi, noMpi, runMpi } from '../support/mpi.js'
import { hasNccl, noNccl, runNccl, together } from '../support/nccl.js'
import { suite, testWhere } from '../support/suite.js'

const test = suite('normAcross')
const program = beside(import.meta.url, 'normAcrossProgram')

/** How far the ranks are from one process. */
function differences({ code, out, err }: { code: number | null; out: string; err: string }, processes: number): number[] {
  assert.is(code, 0, out + err)
  const said = [...out.matchAll(/^rank \d: (\S+)/gm)].map(([, text]) => Number(text))
  assert.is(said.length, processes, out)
  return said
}

for (const processes of [2, 4])
  testWhere(hasMpi, noMpi, test, `${processes} processes with unequal shares of rows`, async () => {
    for (const apart of differences(await runMpi(processes, program), processes)) assert.ok(apart < 1e-12, `${apart} apart`)
  })

testWhere(hasNccl, noNccl, test, 'two processes on simt, in f32', async () => {
  for (const apart of differences(together(await runNccl(2, program)), 2)) assert.ok(apart < 1e-5, `${apart} apart`)
})

// Norms of each process alone, and gradients of weights that nobody has added up.
for (const mistake of ['alone', 'ownSums'])
  testWhere(hasMpi, noMpi, test, `is not met with the mistake ${mistake}`, async () => {
    for (const apart of differences(await runMpi(2, program, [mistake]), 2)) assert.ok(apart > 1e-3, `${apart} apart`)
  })

test.run()
