/** Whole runs of several processes, compared with that of one. */
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { stripVTControlCharacters } from 'node:util'

import * as assert from 'uvu/assert'

import { densecl } from '../../src/methods/densecl/method.js'
import { files } from '../../src/run/runFolder.js'
import { readMetrics } from '../../src/run/runLog.js'
import { readCheckpoint } from '../../src/train/checkpoint.js'
import { readSafetensors, storedValues } from '../../src/weights/safetensors.js'
import { type Ended, runMpi } from './mpi.js'
import { runNccl, together } from './nccl.js'
import { withFolder } from './suite.js'

type Runner = (processes: number, program: string, args: readonly string[]) => Promise<Ended>

/** Processes that exchange tensors by `run`, how many steps their runs have, and what more the configuration says. */
interface Kind {
  run: Runner
  steps: number
  more: object
  /** How far values may be apart, over the largest of each tensor. */
  within: number
  /** When a run that changes its width is interrupted. */
  stops: readonly [number, number]
}
export const byMpi: Kind = { run: runMpi, steps: 10, more: {}, within: 1e-5, stops: [3, 4] }
// Kernels on the host are slow: fewer and smaller steps, of which all from the third on are replays of a recorded one.
export const byNccl: Kind = {
  run: async (...given) => together(await runNccl(...given)),
  steps: 6,
  more: {
    ...{ device: 'simt', precision: 'f32', data: 'scenes:48', imageSize: 32, batchSize: 16, epochs: 2, knnEvery: 1, queueLength: 64 },
    // As few as whole accesses of 16 bytes take.
    baseChannels: 4,
    // Positions that count are summed over the processes, in the recorded step too.
    denseMatch: 'geometry',
  },
  // Norms over as little as four values: one process whose rate is changed by 1e-7 parts from itself by 6e-5.
  within: 1e-3,
  stops: [2, 1],
}

const program = fileURLToPath(new URL('../distributed/runProgram.js', import.meta.url))

interface Leg {
  processes: number
  until?: number
}

/** Runs, all of which must end well; what they said. */
async function train({ run, steps, more }: Kind, out: string, ...legs: Leg[]): Promise<string> {
  let said = ''
  for (const [i, { processes, until }] of legs.entries()) {
    const args = [out, String(until ?? 'all'), i === 0 ? 'new' : 'resume', JSON.stringify(more)]
    const { code, out: text, err } = await run(processes, program, args)
    assert.is(code, 0, text + err)
    for (let rank = 0; rank < processes; ++rank)
      assert.match(text, new RegExp(`^rank ${rank} ${until === undefined ? `done at ${steps}` : `interrupted at \\d+`}$`, 'm'))
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
function apart(out: string, other: string, steps: number): { losses: number; values: number } {
  const [a, b] = [losses(out), losses(other)]
  assert.equal([...a.keys()], [...b.keys()])
  assert.is(a.size, steps)
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

/** Two and four processes leave the folder that one leaves, and so does a run whose processes change in number. */
export async function compareWidths(kind: Kind): Promise<void> {
  await withFolder(async (folder) => {
    const folders = ['one', 'two', 'four', 'changing'].map((each) => join(folder, each))
    const [one, two, four, changing] = folders as [string, string, string, string]
    await train(kind, one, { processes: 1 })
    const said = await train(kind, two, { processes: 2 })
    await train(kind, four, { processes: 4 })
    const [first, second] = kind.stops
    await train(kind, changing, { processes: 2, until: first }, { processes: 4, until: second }, { processes: 1 })
    for (const other of [two, four, changing]) {
      const { losses: byLoss, values } = apart(other, one, kind.steps)
      assert.ok(byLoss < 1e-5, `${other}: losses ${byLoss} apart`)
      assert.ok(values < kind.within, `${other}: values ${values} apart`)
    }
    // What a run was begun with names no processes: a folder is that of any number.
    for (const other of [two, four]) {
      assert.is(readFileSync(files(other).config, 'utf8'), readFileSync(files(one).config, 'utf8'))
      assert.equal(readCheckpoint(files(other).last, densecl).config, readCheckpoint(files(one).last, densecl).config)
    }
    assert.equal(
      readdirSync(two).filter((each) => !each.startsWith('events')),
      readdirSync(one).filter((each) => !each.startsWith('events')),
    )
    // One log; the live line of a terminal may be before what is printed.
    assert.is(said.match(/^group {3}2 processes by .*: \d+ images in 2 groups each a step$/gm)?.length, 1)
    const looks = knn(one).length
    assert.ok(looks > 2)
    assert.is(said.match(/knn {5}\d/g)?.length, looks + 1)
    for (const other of [two, four]) assert.equal(knn(other), knn(one))
  })
}
