/** Work that is told to end, at every place where it asks: what it goes on with gives what it would have given. */
import { existsSync, readFileSync, readdirSync } from 'node:fs'
import { join } from 'node:path'

import sharp from 'sharp'
import * as assert from 'uvu/assert'

import { packSource } from '../../src/data/pack.js'
import { openSource } from '../../src/data/sources.js'
import { evaluateLinear } from '../../src/eval/linear.js'
import { linearProtocols, stretched } from '../../src/eval/linearProtocols.js'
import { resolveConfig } from '../../src/methods/index.js'
import { resnet } from '../../src/nn/resnet.js'
import { readMetrics } from '../../src/run/runLog.js'
import { files } from '../../src/run/runFolder.js'
import { isInterruption, untilInterrupted, unlessInterrupted, withInterruption } from '../../src/tensor/interruption.js'
import { Random } from '../../src/tensor/random.js'
import { pretrain } from '../../src/train/pretrain.js'
import { writeBackbone } from '../../src/weights/export.js'
import { rejectsError, suite, throwsError, withFolder } from '../support/suite.js'

const test = suite('interruption')

/**
 * What `body` gives when it is told to end at the question of this number; of each round it goes on to ask, it is told later. Questions
 * that come by the clock, while something is awaited, are not counted: a busy machine asks more of them, and the ends would be others.
 */
const endedAt = <R>(question: number, body: () => Promise<R>): Promise<R> => {
  let asked = 0
  return withInterruption((awaiting) => (awaiting ? asked : ++asked) > question, body)
}

const config = resolveConfig(
  Object.entries({
    ...{ data: 'scenes:40', imageSize: 32, batchSize: 8, epochs: 2, depth: 18, baseChannels: 4, featDim: 8, hidden: 16, queueLength: 16 },
    ...{ logEvery: 1, workers: 1, knnEvery: 1, checkpointEvery: 1, knnImages: 40, knnData: 'scenes:20' },
  }).map(([key, value]) => ({ key, value, from: 'test' })),
)

test('pre-training ends anywhere - before, between and in steps and kNN - and gives the same bits and rows when it goes on', async () => {
  await withFolder(async (folder) => {
    const whole = join(folder, 'whole')
    await pretrain({ config, out: whole, quiet: true })
    const numbers = (out: string): unknown[] =>
      readMetrics(files(out).metrics).map(({ globalStep, epoch, loss, knn }) => ({ globalStep, epoch, loss, knn }))
    const ends = new Set<number>()
    for (const first of [3, 8]) {
      const out = join(folder, `cut${first}`)
      for (let round = 0, done = false; !done; ++round) {
        assert.ok(round < 60, 'it never ends')
        const resume = existsSync(files(out).last)
        try {
          const result = await endedAt(first + 4 * round, () => pretrain({ config, out, quiet: true, resume, overwrite: !resume }))
          done = !result.interrupted
          ends.add(result.globalStep)
          if (!done) assert.is(result.savedStep, result.globalStep)
        } catch (error) {
          assert.ok(isInterruption(error), String(error))
        }
      }
      assert.equal(numbers(out), numbers(whole))
      for (const path of [files(out).last, files(out).backbone])
        assert.ok(readFileSync(path).equals(readFileSync(path.replace(out, whole))), path)
    }
    assert.ok(ends.size > 3, `it ended at the steps ${[...ends].join(', ')}`)
  })
})

test('linear classifiers end while features are read, in training and in tests, and give the same when they go on', async () => {
  await withFolder(async (folder) => {
    const { items: train } = await openSource('scenes:40')
    const { items: val } = await openSource('scenes:30', { split: 'val' })
    const backbone = resnet({ depth: 18, baseChannels: 4 })({ random: new Random(1), dtype: 'f32' })
    const weights = join(folder, 'weights.safetensors')
    writeBackbone(weights, backbone, 'torchvision')
    const protocol = { ...stretched(linearProtocols['imagenet-avgpool']!, 3), batchSize: 16 }
    const evaluate = (name: string, resume: boolean, pipeline: 'crop' | 'centre') => {
      const out = join(folder, name)
      const options = { weights, train, val, classes: 10, imageSize: 32, workers: 1, quiet: true, out, resume }
      return evaluateLinear(backbone, { ...options, protocol: { ...protocol, pipeline } })
    }
    try {
      for (const pipeline of ['crop', 'centre'] as const) {
        const whole = await evaluate(`whole-${pipeline}`, false, pipeline)
        let interruptions = 0
        const name = `cut-${pipeline}`
        for (let round = 0; ; ++round) {
          assert.ok(round < 60, 'it never ends')
          const resume = existsSync(join(folder, name, 'state.safetensors'))
          const result = await endedAt(2 + 4 * round, () => evaluate(name, resume, pipeline))
          if (!result.interrupted) {
            assert.equal(result, whole)
            break
          }
          interruptions += 1
        }
        assert.ok(interruptions > 1, String(interruptions))
        const state = (which: string): Buffer => readFileSync(join(folder, `${which}-${pipeline}`, 'state.safetensors'))
        assert.ok(state('cut').equals(state('whole')))
      }
    } finally {
      backbone.dispose()
    }
  })
})

test('packing ends between images, and goes on behind its whole shards to the same shards', async () => {
  await withFolder(async (folder) => {
    for (let i = 0; i < 30; ++i)
      await sharp({ create: { width: 64, height: 48, channels: 3, background: `rgb(${i}, 90, ${8 * i})` } })
        .png()
        .toFile(join(folder, `${String(i).padStart(2, '0')}.png`))
    const source = await openSource(folder)
    const options = { mostPixels: 2 ** 16, quality: 92, shardBytes: 6000 }
    const whole = await packSource(source, join(folder, 'whole'), options)
    assert.ok(whole.shards.length > 3, String(whole.shards.length))
    const out = join(folder, 'cut')
    for (let round = 0; ; ++round) {
      assert.ok(round < 60, 'it never ends')
      const report = await endedAt(12, () => packSource(source, out, { ...options, resume: round > 0 }))
      assert.is(report.shards.length, readdirSync(out).filter((name) => name.endsWith('.tar')).length)
      if (report.interruptedAt === undefined) {
        const { shards, ...numbers } = report
        const { shards: expected, ...others } = whole
        assert.equal(numbers, others)
        for (const [i, path] of shards.entries()) assert.ok(readFileSync(path).equals(readFileSync(expected[i]!)), path)
        break
      }
    }
    await rejectsError(() => packSource(source, out, options), 'WRITE', /holds shards already/, /--resume/)
    await rejectsError(() => packSource(source, out, { ...options, quality: 90, resume: true }), 'CONFIG', /other images or options/)
  })
})

test('rows and promises are left at the first question that is answered with yes, and not without one', async () => {
  const rows = Array.from({ length: 5000 }, (_, i) => i)
  assert.equal([...untilInterrupted(rows)], rows)
  assert.is(await unlessInterrupted(Promise.resolve(7)), 7)
  let seen = 0
  throwsError(
    () =>
      withInterruption(
        () => seen > 2000,
        () => {
          for (const row of untilInterrupted(rows)) seen = row
        },
      ),
    'INTERRUPTED',
  )
  assert.ok(seen > 2000 && seen < 4000, String(seen))
  const never = new Promise(() => undefined)
  let ends = false
  setTimeout(() => (ends = true), 50)
  await rejectsError(
    () =>
      withInterruption(
        () => ends,
        () => unlessInterrupted(never),
      ),
    'INTERRUPTED',
  )
})

test.run()
