/** kNN of several processes is that of one. */
import * as assert from 'uvu/assert'

import { beside, hasMpi, noMpi, runMpi } from '../support/mpi.js'
import { suite, testWhere } from '../support/suite.js'

const test = suite('kNN of several processes')

/** What each rank says, without its number. */
async function said(processes: number): Promise<string[]> {
  const { code, out, err } = await runMpi(processes, beside(import.meta.url, 'knnProgram'))
  assert.is(code, 0, out + err)
  return Array.from({ length: processes }, (_, rank) =>
    [...out.matchAll(new RegExp(`^rank ${rank}: (.*?)\\s*$`, 'gm'))].map(([, what]) => what).join(', '),
  )
}

testWhere(hasMpi, noMpi, test, 'two and three processes classify as one does, and all know the result', async () => {
  const [one] = (await said(1)) as [string]
  assert.match(one, /^\d+ of 71, \d of 1$/)
  assert.not.match(one, /^(0|71) /)
  for (const processes of [2, 3]) assert.equal(await said(processes), Array<string>(processes).fill(one))
})

test.run()
