/** The training command's work on the device under test. */
import { existsSync, mkdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'

import sharp from 'sharp'
import * as assert from 'uvu/assert'

import type { DenseCLConfig } from '../../src/methods/densecl/options.js'
import { resolveConfig } from '../../src/methods/index.js'
import { dryRun, pretrain, type PretrainOptions } from '../../src/train/pretrain.js'
import { readMetrics } from '../../src/run/runLog.js'
import { Random } from '../../src/tensor/random.js'
import { deviceTraits } from '../../src/tensor/traits.js'
import { device, thorough } from '../support/devices.js'
import { rejectsError, suite, withFolder } from '../support/suite.js'

const test = suite(`training on ${device}`, device)

const config = (more: Partial<DenseCLConfig>): DenseCLConfig =>
  resolveConfig(
    Object.entries({
      data: 'scenes:8',
      knnData: 'scenes:4',
      depth: 18,
      baseChannels: 8,
      imageSize: 32,
      batchSize: 4,
      epochs: 2,
      queueLength: 32,
      featDim: 16,
      hidden: 16,
      normGroups: 2,
      lr: 0.05,
      knnImages: 4,
      logEvery: 1,
      workers: 1,
      tune: false,
      device,
      ...more,
    }).map(([key, value]) => ({ key, value, from: 'test' })),
  )

const lossesOf = (out: string): number[] =>
  readMetrics(join(out, 'metrics.jsonl'))
    .filter((row) => row.loss !== undefined)
    .map((row) => row.loss!)

if (thorough)
  test('f32 follows the CPU, mixed precision follows f32, and each writes its backbone', async () => {
    await withFolder(async (folder) => {
      // Crops so small that scenes keep their size on the way to a GPU: both sides then see the same crops.
      const cropScale: [number, number] = [0.1, 1]
      const run = async (name: string, more: Partial<DenseCLConfig>): Promise<number[]> => {
        // Norms over 32 values or more: over a handful they amplify the last bit to whole percents within two steps.
        const { files } = await pretrain({
          config: config({ data: 'scenes:16', batchSize: 8, cropScale, imageSize: 48, normGroups: 1, ...more }),
          out: join(folder, name),
          quiet: true,
          pictures: false,
        })
        assert.ok(existsSync(files.backbone!))
        return lossesOf(join(folder, name))
      }
      const [cpu, f32, bf16] = [
        await run('cpu', { device: 'cpu' }),
        await run('f32', { precision: 'f32' }),
        await run('bf16', { precision: 'bf16' }),
      ]
      assert.is(cpu.length, 4)
      // Sums differ in their last bits, and steps amplify that: later a ReLU or match that flips changes a loss by 0.5 % (two of
      // four seeds, whichever way sums are ordered).
      const bounds = [1e-4, 1e-3, 1e-2, 5e-2]
      cpu.forEach((loss, i) =>
        assert.ok(Math.abs(f32[i]! - loss) < bounds[i]! * loss, `step ${i}: ${f32[i]} on ${device}, ${loss} on the CPU`),
      )
      f32.forEach((loss, i) => assert.ok(Math.abs(bf16[i]! - loss) < 0.2 * loss, `step ${i}: ${bf16[i]} in bf16, ${loss} in f32`))
    })
  })

if (thorough)
  test('a recorded step gives the bits of one that is run op by op, also where the run was interrupted, in mixed precision', async () => {
    await withFolder(async (folder) => {
      let asked = 0
      const run = async (name: string, graph: boolean, more: Partial<PretrainOptions> = {}): Promise<boolean> =>
        (
          await pretrain({
            config: config({ graph, epochs: 3, warmupSteps: 4, denseWarmup: 4 }),
            out: join(folder, name),
            quiet: true,
            pictures: false,
            ...more,
          })
        ).interrupted
      await run('recorded', true)
      await run('eager', false)
      assert.ok(await run('parts', true, { interrupted: () => ++asked > 3 }))
      await run('parts', true, { resume: true })
      // The whole state: both encoders with the counters of their norms, queues, momenta. The configuration at the head differs.
      const tensors = (name: string): Buffer => {
        const file = readFileSync(join(folder, name, 'checkpoints', 'last.safetensors'))
        return file.subarray(8 + Number(file.readBigUInt64LE(0)))
      }
      const losses = lossesOf(join(folder, 'recorded'))
      assert.is(losses.length, 6)
      for (const name of ['eager', 'parts']) {
        assert.equal(lossesOf(join(folder, name)), losses, name)
        assert.ok(tensors(name).equals(tensors('recorded')), name)
      }
      const backbone = (name: string): Buffer => readFileSync(join(folder, name, 'backbone.safetensors'))
      assert.ok(backbone('parts').equals(backbone('recorded')))
    })
  })

if (thorough)
  test('a recorded step reads the views that workers make of images of one channel: the bits of one that is run op by op', async () => {
    await withFolder(async (folder) => {
      const data = join(folder, 'grey')
      mkdirSync(data)
      const [random, side] = [new Random(3), 40]
      for (let i = 0; i < 8; ++i) {
        const values = Uint8Array.from({ length: side * side }, () => random.below(256))
        const image = sharp(values, { raw: { width: side, height: side, channels: 1 } })
        await image
          .toColourspace('b-w')
          .png()
          .toFile(join(data, `${i}.png`))
      }
      const losses = async (graph: boolean): Promise<number[]> => {
        const out = join(folder, String(graph))
        const settings = config({
          data,
          graph,
          channels: 1,
          mean: [0.5],
          deviation: [0.25],
          epochs: 3,
          knnEvery: 0,
          knnData: null,
          denseEvery: 0,
        })
        await pretrain({ config: settings, out, quiet: true, pictures: false })
        return lossesOf(out)
      }
      const recorded = await losses(true)
      assert.is(recorded.length, 6)
      assert.is(new Set(recorded).size, 6)
      assert.equal(recorded, await losses(false))
    })
  })

test('numbers that are not finite stop the run at the next line, and the last checkpoint is from before', async () => {
  await withFolder(async (folder) => {
    await rejectsError(
      () => pretrain({ config: config({ lr: 1e30, logEvery: 2 }), out: folder, quiet: true, pictures: false }),
      'NAN',
      /steps 1 to 2/,
      /not a number/,
      /last\.safetensors/,
    )
  })
})

if (thorough)
  test('what differs from published runs on a GPU is said before the first step, with the flag that turns it off', async () => {
    const linesOf = async (more: Partial<DenseCLConfig>): Promise<string> => (await dryRun({ config: config(more) })).lines.join('\n')
    const usual = await linesOf({})
    // 32 x 32 pixels of a crop of a fifth.
    assert.match(usual, /^images {2}of more than 5120 pixels are reduced before crops are cut .*--most-pixels N\)$/m)
    const exact = await linesOf({ precision: 'f32', mostPixels: 20_000 })
    assert.match(exact, 'of more than 20000 pixels')
    assert.not.match(exact, 'published runs were f32')
    const { dtypes } = deviceTraits(device)
    if (dtypes.includes('bf16')) assert.match(await linesOf({ precision: 'bf16' }), 'published runs were f32: --precision f32')
  })

test.run()
