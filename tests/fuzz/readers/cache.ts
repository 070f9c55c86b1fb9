/** What a machine keeps between runs: times and verdicts of the cache, and tables of tiles. */
import { mkdirSync, readdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'

import { cacheFile, cacheFolder } from '../../../src/files/cache.js'
import { indexed, nearestTile, readTable, tuningFile } from '../../../src/ops/tuning.js'
import { partsOf } from '../../../src/selftest/parts.js'
import { trustOf } from '../../../src/selftest/trust.js'
import { keepVerdict } from '../../../src/selftest/verdict.js'
import { fail } from '../../../src/tensor/errors.js'
import { keptTimes, timesFile } from '../../../src/train/tuner.js'
import { editedJson, json } from '../mutate.js'
import { type FuzzedReader, written } from '../reader.js'

/** Makes `folder` the cache of this process, and puts `bytes` there under `name`. */
function cached(folder: string, name: string, bytes: Uint8Array): void {
  process.env.XDG_CACHE_HOME = folder
  mkdirSync(cacheFolder(), { recursive: true })
  writeFileSync(cacheFile(name), bytes)
}

/** A file of the cache is never an error: why it is not used is said, with its name. */
function refused(problem: string, name: string): never {
  return fail('FILE', problem.includes(name) ? `fuzzed: ${problem}` : problem)
}

const identity = { device: 'H100', driver: '1', build: 'b' }
const soundTimes = { ...identity, times: { 'conv 1x1': { '0': 2, '1/2': 0.5 }, other: {} } }
export const times: FuzzedReader = {
  file: 'fuzzed',
  seeds: () => [json(soundTimes), json({ ...soundTimes, driver: '2' })],
  words: ['"times":', 'null', '[', ']', '{', '}', ','],
  structured: () => editedJson([soundTimes]).map(json),
  read(path, bytes) {
    const name = timesFile(identity.device)
    cached(dirname(path), name, bytes)
    const found = keptTimes(identity)
    if (found.problem !== undefined) refused(found.problem, name)
  },
}

/** Keeps a sound verdict in the cache of `folder`: the name of its file. */
function keptVerdict(folder: string): string {
  process.env.XDG_CACHE_HOME = folder
  const problem = keepVerdict(
    'cpu',
    partsOf('cpu').map((part) => ({ part, verdict: 'hangs', seconds: 1 })),
  )
  if (problem !== undefined) throw new Error(problem)
  return readdirSync(cacheFolder())[0]!
}
let verdictName: string | undefined

export const verdict: FuzzedReader = {
  file: 'fuzzed',
  seeds: () => [written('', (path) => renameSync(cacheFile(keptVerdict(dirname(path))), path))],
  words: ['"key":', '"reports":', '"verdict":"agrees"', 'null', '[', ']', '{', '}', ','],
  structured: ([seed]) => editedJson([JSON.parse(Buffer.from(seed!).toString()) as unknown]).map(json),
  read(path, bytes) {
    const folder = join(dirname(path), 'verdict')
    verdictName ??= keptVerdict(folder)
    cached(folder, verdictName, bytes)
    const told = trustOf('cpu')
    if (told.includes('to be checked')) refused(told, told.includes(' was ') ? ' was ' : verdictName)
  },
}

const product = { direction: 'forward', rows: 64, columns: 64, depth: 576 } as const
const soundTiles = {
  architecture: 'sm_90',
  date: '2024-01-01',
  how: 'model',
  entries: [
    { ...product, tile: 1 },
    { ...product, rows: 128, tile: 3 },
  ],
}
export const tiles: FuzzedReader = {
  file: 'fuzzed.json',
  seeds: () => [json(soundTiles), readFileSync(tuningFile('sm_90')).subarray(0, 2000)],
  words: ['"entries":', '"tile":', '"direction":"forward"', 'null', '[', ']', '{', '}', ','],
  structured: () => editedJson([soundTiles]).map(json),
  read(path) {
    const table = readTable(path)!
    const tile = nearestTile(indexed(table), product)
    if (!Number.isInteger(tile)) throw new Error(`tile ${tile}`)
  },
}
