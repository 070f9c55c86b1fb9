/** What a run leaves in its folder, and what is read of it: configuration, report, tuning, lock. */
import { writeFileSync } from 'node:fs'
import { dirname } from 'node:path'

import fc from 'fast-check'
import { stringify } from 'yaml'

import { readCodeTable } from '../../../src/bench/code/table.js'
import { configure } from '../../../src/methods/index.js'
import { readResult } from '../../../src/bench/result.js'
import { embedPictures, page, pageBody } from '../../../src/report/page.js'
import { viewRun } from '../../../src/report/runView.js'
import { readConfigFile } from '../../../src/run/options.js'
import { files, lockRun } from '../../../src/run/runFolder.js'
import { RunLog } from '../../../src/run/runLog.js'
import { readScores } from '../../../src/study/measures.js'
import { readTuning } from '../../../src/train/tuningFile.js'
import { editedJson, json, markup } from '../mutate.js'
import { bundle, type FuzzedReader, unbundle } from '../reader.js'

const settings = {
  data: 'scenes:64',
  imageSize: 32,
  batchSize: 16,
  lr: 0.03,
  cropScale: [0.2, 1],
  optimizer: 'sgd',
  milestones: [3, 5],
  tune: true,
}
const yamlWords = [
  ': ',
  '\n',
  '- ',
  '&a ',
  '*a',
  '<<: ',
  '!!map ',
  '!!binary ',
  '!!js/function ',
  '|',
  '>',
  '{',
  '}',
  '[',
  ']',
  '"',
  "'",
  '#',
  '---\n',
  '? ',
  '%YAML 1.2\n',
  '~',
]
const yamlKeys = fc.constantFrom(
  'lr',
  'epochs',
  'data',
  '__proto__',
  'constructor',
  'crop-scale',
  'backboneOptions',
  '<<',
  '? a',
  '&a b',
  '1',
  '[1]',
  '',
)
const yamlValues = fc.constantFrom(
  '1',
  '[0.2, 1]',
  '*a',
  '&a [*a]',
  '{a: *a}',
  '!!set {a}',
  '.inf',
  '.nan',
  '0x10',
  '1e999',
  '"\\u2028"',
  '|\n  x',
  '',
  'null',
  '2001-01-01',
  '&a 1',
  '- 1',
)

export const config: FuzzedReader = {
  file: 'fuzzed.yaml',
  // Options that contradict each other may come from two places: what is named is the options.
  names: /^(\w+) is /,
  seeds: () => [
    Buffer.from(stringify(settings)),
    Buffer.from('# mine\nlr: 0.1\ncropScale: [0.2, 1]\nbackboneOptions: {depth: &d 18, other: *d}\n'),
  ],
  words: [...yamlWords, ...Object.keys(settings)],
  structured: () =>
    fc.oneof(
      fc
        .array(fc.tuple(fc.constantFrom('', '', '', '  ', '- '), yamlKeys, yamlValues), { maxLength: 8 })
        .map((rows) => Buffer.from(rows.map(([indent, key, value]) => `${indent}${key}: ${value}\n`).join(''))),
      editedJson([settings]).map((value) => Buffer.from(stringify(value))),
      editedJson([settings]).map(json),
    ),
  read: async (path) => {
    const read = readConfigFile(path)
    // A method may be a module: its code is run, and is not what is fuzzed here.
    await configure(read.filter(({ key }) => key !== 'method'))
  },
}

const row = {
  globalStep: 1,
  epoch: 0.5,
  step: 1,
  loss: 2.5,
  lossGlobal: 1,
  lossDense: 1.5,
  lr: 0.03,
  imagesPerSecond: 100,
  knn: 0.2,
  waitShare: 0.1,
}
const environment = { densecl: '0.1.0', device: 'cpu', backbone: 'ResNet-18', cores: 2, started: '2024-01-01T00:00:00Z' }
const table = {
  name: 'knn',
  date: '2024-01-01T00:00:00Z',
  table: {
    title: 'kNN',
    columns: ['k', '%'],
    rows: [
      ['20', 1.5],
      [1, null],
    ],
    notes: ['n'],
  },
}
const runFiles = {
  config: 'config.yaml',
  metrics: 'metrics.jsonl',
  environment: 'environment.json',
  table: 'eval/knn.json',
  report: 'report.json',
} as const
const metricsOf = (rows: readonly unknown[]): string => rows.map((each) => `${JSON.stringify(each)}\n`).join('')
const soundRun = {
  [runFiles.config]: stringify({ ...settings, epochs: 2 }),
  [runFiles.metrics]: metricsOf([row, { ...row, globalStep: 2, epoch: 1, loss: null }, { globalStep: 2, epoch: 1, knn: 0.4 }]),
  [runFiles.environment]: JSON.stringify(environment),
  [runFiles.table]: JSON.stringify(table),
}

/** A run folder: its page, and the log that a resumed run goes on with. */
export const run: FuzzedReader = {
  file: 'fuzzed',
  seeds: () => [bundle(soundRun), bundle({ ...soundRun, [runFiles.report]: '{}' })],
  words: [
    'null',
    '"epoch":',
    '"globalStep":',
    '"loss":',
    '1e999',
    '[',
    ']',
    '{',
    '}',
    '\n',
    markup,
    '"rows":',
    '"columns":',
    'method: ',
    ...yamlWords.slice(0, 6),
  ],
  structured: () =>
    fc
      .record({
        config: editedJson([{ ...settings, method: 'densecl' }]).map((value) => stringify(value)),
        metrics: fc.array(editedJson([row]), { maxLength: 4 }).map(metricsOf),
        environment: editedJson([environment]).map((value) => JSON.stringify(value)),
        table: editedJson([table]).map((value) => JSON.stringify(value)),
      })
      .map((texts) => bundle(Object.fromEntries(Object.entries(texts).map(([key, text]) => [runFiles[key as keyof typeof texts], text])))),
  async read(path, bytes) {
    const folder = `${path}-run`
    unbundle(bytes, folder, Object.values(runFiles))
    const view = await viewRun(folder)
    if (view === undefined) return
    const html = page(view.name, pageBody([view], [], await embedPictures([view])))
    if (html.includes(markup)) throw new Error('text of a file is markup of the page')
    pageBody([view, view], ['other'], await embedPictures([view]))
    new RunLog(folder, 1, true)
  },
}

const kept = {
  version: 1,
  device: 'H100',
  driver: '1',
  build: 'b',
  level: 'full',
  milliseconds: { table: 2, chosen: 1 },
  products: [{ shape: '1x1', prologue: false, tile: 1, splits: 0, count: 3, table: 1, chosen: 1 }],
}
export const tuning: FuzzedReader = {
  file: 'fuzzed.json',
  seeds: () => [json(kept)],
  words: ['"version":1', '"products":', 'null', '[', ']', '{', '}', ','],
  structured: () => editedJson([kept]).map(json),
  read: (path) => readTuning(path),
}

const holder = { pid: 1, start: '5', host: 'h', space: 'other', since: '2024-01-01T00:00:00Z' }
/** A lock that is held names its folder, one that is damaged is nobody's. */
export const lock: FuzzedReader = {
  file: 'fuzzed',
  seeds: () => [json(holder), json({ ...holder, pid: process.pid })],
  words: ['"pid":', '"space":', 'null', '{', '}', ','],
  structured: () => editedJson([holder]).map(json),
  read(path, bytes) {
    const folder = dirname(path)
    writeFileSync(files(folder).lock, bytes)
    try {
      lockRun(folder).release()
    } catch (error) {
      // The folder of the test has another name than its files.
      if (error instanceof Error && error.message.includes(folder)) error.message += ' (fuzzed)'
      throw error
    }
  },
}

const work = { instructions: 4, kinds: { FFMA: 2 } }
const kernels = {
  bench: 'code',
  architecture: 'sm_90a',
  nvcc: '12',
  kernels: [{ file: 'a.cu', name: 'k', ...work, registers: 8, shared: 0, spills: 0, loops: [{ ...work, from: 0, to: 4 }] }],
}
export const codeTable: FuzzedReader = {
  file: 'fuzzed.json',
  seeds: () => [json(kernels)],
  words: ['"kernels":', '"loops":', 'null', '[', ']', '{', '}', ','],
  structured: () => editedJson([kernels]).map(json),
  read: (path) => readCodeTable(path),
}

const soundResult = {
  bench: 'ops',
  device: 'cpu',
  dtype: 'f32',
  batch: 8,
  rows: [{ op: 'relu', name: 'a', milliseconds: 1, spread: [1, 2], gigabytesPerSecond: 3, teraflops: 0.1, floor: 0.5, peakMegabytes: 4 }],
}
export const benchResult: FuzzedReader = {
  file: 'fuzzed.json',
  seeds: () => [json(soundResult)],
  words: ['"rows":', 'null', '[', ']', '{', '}', ','],
  structured: () => editedJson([soundResult]).map(json),
  read: (path) => readResult(path),
}

const soundScores = { what: { epochs: 2 }, scores: { 'kNN top-1': 31.5 }, seconds: 3 }
export const scores: FuzzedReader = {
  file: 'fuzzed.json',
  seeds: () => [json(soundScores)],
  words: ['"what":', '"scores":', 'null', '{', '}', ','],
  structured: () => editedJson([soundScores]).map(json),
  read: (path) => readScores(path),
}
