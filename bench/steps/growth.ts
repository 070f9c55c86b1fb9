/**
 * How time and memory grow with work: along each axis some sizes, each in a process of its own, and the exponents between the two largest.
 * Usage: growth.js [--axes batch,image,...] [--most N] [--save FILE]. `--most` leaves sizes above it out.
 */
import { spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'

import { normal } from '../../src/bench/pool.js'
import { environmentRow, median, writeResult } from '../../src/bench/result.js'
import { openSource } from '../../src/data/sources.js'
import { type Features, knnPredict } from '../../src/eval/knn.js'
import { densecl } from '../../src/methods/densecl/method.js'
import { resolveConfig } from '../../src/methods/index.js'
import { resnet } from '../../src/nn/resnet.js'
import { Sgd } from '../../src/optim/sgd.js'
import { embedPictures, page, pageBody } from '../../src/report/page.js'
import { viewRun } from '../../src/report/runView.js'
import { settingsOf } from '../../src/run/options.js'
import { native } from '../../src/tensor/native.js'
import { Random } from '../../src/tensor/random.js'
import { Tensor } from '../../src/tensor/tensor.js'
import { Trainer } from '../../src/train/trainer.js'
import { writeRows } from './rows.js'

/** What is measured at a size: work that is done once or more, after what it needs was made. */
type Work = (size: number, folder: string) => { repeats: number; body: () => unknown }

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

const axes: Record<string, { what: string; sizes: number[]; work: Work }> = {
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

interface Point {
  size: number
  milliseconds: number
  /** Largest resident memory of the process, less what it had before the work. */
  mebibytes: number
}

async function measured(axis: string, size: number): Promise<Point> {
  const folder = mkdtempSync(join(tmpdir(), 'densecl-growth-'))
  try {
    native.setThreads(2)
    const { repeats, body } = axes[axis]!.work(size, folder)
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
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
}

/** By which power of the size a value grows, between the last two; undefined where there is only one or nothing is seen. */
function exponent(points: readonly Point[], value: (point: Point) => number): number | undefined {
  const [a, b] = points.slice(-2)
  if (a === undefined || b === undefined || value(a) < 1 || value(b) < 1) return undefined
  return Math.log(value(b) / value(a)) / Math.log(b.size / a.size)
}

const text = { type: 'string' } as const
const { values: flags } = parseArgs({
  options: { axes: { ...text, default: Object.keys(axes).join(',') }, most: { ...text, default: 'Infinity' }, save: text, point: text },
})
if (flags.point !== undefined) {
  const [axis, size] = flags.point.split(',') as [string, string]
  console.log(JSON.stringify(await measured(axis, Number(size))))
} else {
  const rows: Record<string, unknown>[] = []
  for (const axis of flags.axes.split(',')) {
    const { what, sizes } = axes[axis] ?? { what: '', sizes: [] }
    if (sizes.length === 0) throw new Error(`--axes has ${axis}: expected some of ${Object.keys(axes).join(', ')}`)
    const points = sizes
      .filter((size) => size <= Number(flags.most))
      .map((size): Point => {
        const args = ['--max-old-space-size=20000', fileURLToPath(import.meta.url), '--point', `${axis},${size}`]
        const { stdout, stderr, status } = spawnSync(process.execPath, args, { encoding: 'utf8' })
        if (status !== 0) throw new Error(`${axis} ${size}: ${stderr}`)
        return JSON.parse(stdout) as Point
      })
    const powers = { time: exponent(points, ({ milliseconds }) => milliseconds), memory: exponent(points, ({ mebibytes }) => mebibytes) }
    rows.push({ axis, what, points, exponents: powers })
    console.log(`${what}: time by the power ${powers.time?.toFixed(2) ?? '-'}, memory ${powers.memory?.toFixed(2) ?? '-'}`)
    for (const { size, milliseconds, mebibytes } of points)
      console.log(`  ${String(size).padStart(10)}  ${milliseconds.toFixed(1).padStart(10)} ms  ${mebibytes.toFixed(0).padStart(7)} MiB`)
  }
  if (flags.save !== undefined) writeResult(flags.save, { ...environmentRow(), bench: 'growth', rows })
}
