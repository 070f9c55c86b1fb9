/** Whole runs: the folder that several processes leave is the one that one process leaves. */
import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import { stripVTControlCharacters } from 'node:util'

import * as assert from 'uvu/assert'

import { files } from '../../src/run/runFolder.js'
import { readMetrics } from '../../src/run/runLog.js'
import { readSafetensors, storedValues } from '../../src/weights/safetensors.js'
import { beside, type Ended, hasMpi, noMpi, runMpi } from '../support/mpi.js'
import { suite, testWhere, withFolder } from '../support/suite.js'

const test = suite('run of several processes')

const run = (processes: number, ...args: string[]): Promise<Ended> => runMpi(processes, beside(import.meta.url, 'runProgram'), args)

/** Runs, all of which must end well; what they said. */
async function train(out: string, ...legs: { processes: number; until?: number; more?: object }[]): Promise<string> {
  let said = ''
  for (const [i, { processes, until, more = {} }] of legs.entries()) {
    const { code, out: text, err } = await run(processes, out, String(until ?? 'all'), i === 0 ? 'new' : 'resume', JSON.stringify(more))
    assert.is(code, 0, text + err)
    for (let rank = 0; rank < processes; ++rank)
      assert.match(text, new RegExp(`^rank ${rank} ${until === undefined ? 'done at 20' : `interrupted at \\d+`}$`, 'm'))
    // Of a terminal, which mpirun makes of each output.
    said += stripVTControlCharacters(text).replaceAll('\r', '')
  }
  return said
}

const losses = (out: string): Map<number, number> => {
  const rows = readMetrics(files(out).metrics).filter((row) => row.loss !== undefined)
  return new Map(rows.map((row) => [row.globalStep!, row.loss!]))
}

/** What kNN said, by steps. */
const knn = (out: string): (readonly [number, number])[] =>
  readMetrics(files(out).metrics).flatMap(({ globalStep, knn: share }) => (share === undefined ? [] : [[globalStep!, share] as const]))

/** How far two runs are apart: by losses, and by the values of their checkpoints, momenta too, over the largest of each tensor. */
function apart(out: string, other: string): { losses: number; values: number } {
  const [a, b] = [losses(out), losses(other)]
  assert.equal([...a.keys()], [...b.keys()])
  assert.is(a.size, 20)
  const lossesApart = Math.max(...[...a].map(([step, loss]) => Math.abs(loss - b.get(step)!)))
  const [x, y] = [readSafetensors(files(out).last), readSafetensors(files(other).last)]
  assert.equal([...x.tensors.keys()], [...y.tensors.keys()])
  let values = 0
  for (const [name, stored] of x.tensors) {
    const otherStored = y.tensors.get(name)!
    assert.equal(stored.shape, otherStored.shape, name)
    const [data, otherData] = [storedValues(stored), storedValues(otherStored)]
    let [most, difference] = [1e-2, 0]
    for (let i = 0; i < data.length; ++i) {
      most = Math.max(most, Math.abs(data[i]!))
      difference = Math.max(difference, Math.abs(data[i]! - otherData[i]!))
    }
    values = Math.max(values, difference / most)
  }
  return { losses: lossesApart, values }
}

testWhere(hasMpi, noMpi, test, 'two and four processes leave what one leaves, and one run goes on at any width', async () => {
  await withFolder(async (folder) => {
    const [one, two, four, changing] = ['one', 'two', 'four', 'changing'].map((name) => join(folder, name)) as [
      string,
      string,
      string,
      string,
    ]
    await train(one, { processes: 1 })
    const said = await train(two, { processes: 2 })
    await train(four, { processes: 4 })
    await train(changing, { processes: 2, until: 7 }, { processes: 4, until: 8 }, { processes: 1 })
    for (const other of [two, four, changing]) {
      const { losses: byLoss, values } = apart(other, one)
      assert.ok(byLoss < 1e-5, `${other}: losses ${byLoss} apart`)
      assert.ok(values < 1e-5, `${other}: values ${values} apart`)
    }
    assert.equal(
      readdirSync(two).filter((name) => !name.startsWith('events')),
      readdirSync(one).filter((name) => !name.startsWith('events')),
    )
    // One log; the live line of a terminal may be before what is printed.
    assert.is(said.match(/^group {3}2 processes by .*: 32 images in 2 groups each a step$/gm)?.length, 1)
    assert.is(said.match(/knn {5}\d/g)?.length, 5)
    assert.is(knn(one).length, 4)
    for (const other of [two, four]) assert.equal(knn(other), knn(one))
  })
})

test.run()
