/** How time and memory grow with work: along each axis some sizes, each measured in a process of its own (growthPoint.ts). */
import { spawnSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

import { openSource } from '../data/sources.js'
import { type Features, knnPredict } from '../eval/knn.js'
import { densecl } from '../methods/densecl/method.js'
import { resolveConfig } from '../methods/index.js'
import { resnet } from '../nn/resnet.js'
import { Sgd } from '../optim/sgd.js'
import { embedPictures, page, pageBody } from '../report/page.js'
import { viewRun } from '../report/runView.js'
import { settingsOf } from '../run/options.js'
import { stopIfInterrupted } from '../tensor/interruption.js'
import { native } from '../tensor/native.js'
import { Random } from '../tensor/random.js'
import type { Tensor } from '../tensor/tensor.js'
import { pretrain } from '../train/pretrain.js'
import { Trainer } from '../train/trainer.js'
import { writeRows } from './madeRows.js'
import { normal } from './pool.js'
import { median } from './result.js'

/** What is measured at a size: work that is done once or more, after what it needs was made. */
type Work = (size: number, folder: string) => Measurable | Promise<Measurable>
interface Measurable {
  repeats: number
  body: () => unknown
}

/** A training step of a ResNet-18 of 16 base channels, of 32 images of 64 px with a queue of 4,096 where `more` says nothing else. */
const step =
  (more: (size: number) => Record<string, unknown>): Work =>
  (size) => {
    const usual = { batchSize: 32, imageSize: 64, queueLength: 4096, normGroups: 1, hidden: 64 }
    const config = resolveConfig(settingsOf({ ...usual, ...more(size) }, 'growth'))
    const built = densecl.build(config, { backbone: resnet({ depth: 18, baseChannels: 16 }), compute: 'f32' })
    const { parameters, copies } = built.trained()
    const { batchSize, imageSize } = config
    const views = [0, 1].map(() => normal(new Random(1), [batchSize, imageSize, imageSize, 3], 'f32')) as [Tensor, Tensor]
    const options = { graph: false, compute: {}, views: () => [views[0].alias(), views[1].alias()] as const }
    const trainer = new Trainer(built, new Sgd(parameters, config, copies), options)
    let taken = 0
    return { repeats: 5, body: () => trainer.step(taken++, 0.03).dispose() }
  }

const features = (count: number, classes: number): Features => {
  const random = new Random(count)
  const dim = 128
  const values = Float32Array.from({ length: count * dim }, () => random.uniform(-1, 1))
  return { values, dim, labels: Int32Array.from({ length: count }, (_, i) => i % classes) }
}
const knn =
  (sizes: (size: number) => { bank: number; queries?: number; classes?: number }): Work =>
  (size) => {
    const { bank, queries = 200, classes = 100 } = sizes(size)
    const sets = [features(bank, classes), features(queries, classes)] as const
    return { repeats: 2, body: () => knnPredict(...sets, { k: 20 }) }
  }

/** Writes images of 48 px, bytes that no decoder is needed for, and a list of so many rows that names them over and over. */
function writeList(folder: string, rows: number): string {
  const [side, files] = [48, 64]
  const head = `{'descr': '|u1', 'fortran_order': False, 'shape': (${side}, ${side}, 3), }`.padEnd(117)
  mkdirSync(join(folder, 'images'))
  for (let i = 0; i < files; ++i) {
    const random = new Random(1, i)
    const pixels = Uint8Array.from({ length: side * side * 3 }, () => random.below(256))
    writeFileSync(
      join(folder, 'images', `${i}.npy`),
      Buffer.concat([Buffer.from('\x93NUMPY\x01\x00\x76\x00', 'latin1'), Buffer.from(`${head}\n`), pixels]),
    )
  }
  const path = join(folder, 'list.txt')
  writeRows(path, rows, (i) => `images/${i % files}.npy`)
  return path
}

/** A run on a list of so many images until its first step is done and saved; or the same of one that is resumed. */
const untilFirstStep =
  (resume: boolean): Work =>
  async (images, folder) => {
    const small = { imageSize: 32, batchSize: 8, depth: 18, baseChannels: 4, hidden: 64, queueLength: 64, epochs: 1 }
    const config = resolveConfig(settingsOf({ ...small, data: writeList(folder, images), device: 'cpu', workers: 1 }, 'growth'))
    const run = async (how: { resume?: boolean }): Promise<void> => {
      let asked = 0
      await pretrain({ config, out: join(folder, 'run'), quiet: true, interrupted: () => ++asked > 1, ...how })
    }
    if (resume) await run({})
    return { repeats: 1, body: () => run({ resume }) }
  }

/** What grows, by name. */
export const growthAxes: Readonly<Record<string, { what: string; sizes: readonly number[]; work: Work }>> = {
  batch: { what: 'a step by images of a batch', sizes: [8, 16, 32, 64, 128], work: step((batchSize) => ({ batchSize })) },
  image: { what: 'a step by the side of images, px', sizes: [32, 64, 96, 128, 192], work: step((imageSize) => ({ imageSize })) },
  queue: { what: 'a step by keys of the queues', sizes: [1024, 4096, 16_384, 65_536], work: step((queueLength) => ({ queueLength })) },
  bank: { what: 'kNN of 200 queries by features of the bank', sizes: [1e3, 1e4, 1e5, 1e6], work: knn((bank) => ({ bank })) },
  queries: { what: 'kNN by queries, of 10,000 features', sizes: [1e2, 1e3, 1e4], work: knn((queries) => ({ bank: 1e4, queries })) },
  classes: { what: 'kNN by classes, of 20,000 features', sizes: [10, 1e2, 1e3, 1e4], work: knn((classes) => ({ bank: 2e4, classes })) },
  rows: {
    what: 'opening a list by its rows',
    sizes: [1e3, 1e4, 1e5, 1e6, 1e7],
    work(rows, folder) {
      const path = join(folder, 'list.txt')
      writeRows(path, rows, (i) => `train/n${String(i % 1000).padStart(8, '0')}/n${String(i).padStart(8, '0')}.JPEG ${i % 1000}`)
      return { repeats: 1, body: () => openSource(path) }
    },
  },
  start: { what: 'a run until its first step, by images of its list', sizes: [1e3, 1e4, 1e5, 1e6], work: untilFirstStep(false) },
  resume: { what: 'the same of a run that is resumed', sizes: [1e3, 1e4, 1e5, 1e6], work: untilFirstStep(true) },
  log: {
    what: 'a report by lines of the log',
    sizes: [1e3, 1e4, 1e5, 1e6],
    work(lines, folder) {
      writeFileSync(join(folder, 'config.yaml'), 'method: densecl\nepochs: 100\n')
      writeRows(join(folder, 'metrics.jsonl'), lines, (i) =>
        JSON.stringify({
          globalStep: i + 1,
          epoch: (100 * i) / lines,
          loss: 9 - Math.log1p(i) / 2,
          lr: 0.03,
          imagesPerSecond: 150 + (i % 7),
        }),
      )
      return {
        repeats: 1,
        async body() {
          const run = (await viewRun(folder))!
          return page('growth', pageBody([run], [], await embedPictures([run])))
        },
      }
    },
  },
}

/** What an axis costs at a size. */
export interface GrowthPoint {
  size: number
  milliseconds: number
  /** Largest resident memory of the process, less what it had before the work. */
  mebibytes: number
}

/** What was measured along an axis, and by which powers of the size time and memory grow between the two largest. */
export interface GrowthRow {
  axis: string
  what: string
  points: GrowthPoint[]
  exponents: { time?: number; memory?: number }
  /** Why there are no larger sizes. */
  error?: string
}

/** Measures an axis at a size in this process, in a folder of its own. */
export async function measureGrowth(axis: string, size: number, folder: string): Promise<GrowthPoint> {
  native.setThreads(2)
  const { repeats, body } = await growthAxes[axis]!.work(size, folder)
  const before = process.memoryUsage().rss
  const times: number[] = []
  // What is done several times has been done before.
  for (let i = repeats > 1 ? -1 : 0; i < repeats; ++i) {
    const start = performance.now()
    await body()
    if (i >= 0) times.push(performance.now() - start)
  }
  const most = process.resourceUsage().maxRSS * 1024
  return { size, milliseconds: median(times), mebibytes: Math.max(0, most - before) / 2 ** 20 }
}

const program = fileURLToPath(new URL('growthPoint.js', import.meta.url))

/** What a process of its own measures, or why it did not. */
function pointOf(axis: string, size: number): GrowthPoint | string {
  const folder = mkdtempSync(join(tmpdir(), 'densecl-growth-'))
  try {
    const args = ['--max-old-space-size=20000', program, axis, String(size), folder]
    const { stdout, stderr, status, signal } = spawnSync(process.execPath, args, { encoding: 'utf8' })
    if (status === 0) return JSON.parse(stdout.trimEnd().split('\n').at(-1)!) as GrowthPoint
    const words = stderr.split('\n').findLast((line) => /error|densecl/i.test(line))
    return `${size}: ${(words ?? signal ?? `exit code ${status}`).trim()}`
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
}

/** Measures an axis at its sizes up to `most`, from the smallest on. Throws INTERRUPTED between two of them. */
export function growthOf(axis: string, most: number): GrowthRow {
  const { what, sizes } = growthAxes[axis]!
  const row: GrowthRow = { axis, what, points: [], exponents: {} }
  for (const size of sizes.filter((each) => each <= most)) {
    stopIfInterrupted()
    const point = pointOf(axis, size)
    stopIfInterrupted()
    if (typeof point === 'string') {
      row.error = point
      break
    }
    row.points.push(point)
  }
  const [time, memory] = [exponent(row.points, ({ milliseconds }) => milliseconds), exponent(row.points, ({ mebibytes }) => mebibytes)]
  row.exponents = { ...(time === undefined ? {} : { time }), ...(memory === undefined ? {} : { memory }) }
  return row
}

/** By which power of the size a value grows, between the last two; undefined where there is only one or nothing is seen. */
export function exponent(points: readonly GrowthPoint[], value: (point: GrowthPoint) => number): number | undefined {
  const [a, b] = points.slice(-2)
  if (a === undefined || b === undefined || value(a) < 1 || value(b) < 1) return undefined
  return Math.log(value(b) / value(a)) / Math.log(b.size / a.size)
}
