/** Whole runs that tune: what they say, what they keep, and that a run is continued with what it began with. */
import { cpSync, existsSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

import * as assert from 'uvu/assert'

import type { DeviceIdentity } from '../../src/files/cache.js'
import type { DenseCLConfig } from '../../src/methods/densecl/options.js'
import { resolveConfig } from '../../src/methods/index.js'
import type { Time } from '../../src/ops/timing.js'
import { readMetrics } from '../../src/run/runLog.js'
import { currentCompute } from '../../src/tensor/compute.js'
import { fail } from '../../src/tensor/errors.js'
import { pretrain, type PretrainOptions } from '../../src/train/pretrain.js'
import { device, thorough } from '../support/devices.js'
import { rejectsError, suite, testWhere } from '../support/suite.js'
import { identity, withCache, writes } from '../support/tuning.js'

const test = suite(`runs that tune on ${device}`, device)

const elsewhere = 'whole runs belong to simt as it is, and to GPUs'

const config = (more: Partial<DenseCLConfig> = {}): DenseCLConfig =>
  resolveConfig(
    Object.entries({
      data: 'scenes:8',
      knnData: 'scenes:8',
      depth: 18,
      baseChannels: 8,
      imageSize: 32,
      batchSize: 8,
      epochs: 3,
      queueLength: 32,
      featDim: 16,
      hidden: 16,
      normGroups: 2,
      lr: 0.05,
      knnImages: 8,
      logEvery: 1,
      workers: 1,
      device,
      ...more,
    }).map(([key, value]) => ({ key, value, from: 'test' })),
  )

/** Runs and gives the lines about tuning; `quiet` runs print none. */
async function lines(more: Partial<PretrainOptions> & { out: string; set?: Partial<DenseCLConfig> }): Promise<string[]> {
  const { log } = console
  const printed: string[] = []
  console.log = (line: string) => void printed.push(line)
  try {
    const { set, ...rest } = more
    await pretrain({ config: config(set), pictures: false, ...rest })
  } finally {
    console.log = log
  }
  return printed.filter((line) => line.includes('tuning'))
}

const slow: Time = ({ op, tensors }, { tile }) => (op === 'conv2d' && tensors.statistics !== undefined ? 1000 : 1 + tile)
const fast: Time = (call, { tile, splits }) => (writes(call) ? 10 : 2 - tile / 10 - splits / 100)
const never: Time = () => fail('TEST', 'a run that is continued times nothing')
const hook = (time: Time): NonNullable<PretrainOptions['tuner']> => ({ time, identity, multiprocessors: 4 })
const bytesOf = (out: string): Buffer => readFileSync(join(out, 'checkpoints', 'last.safetensors'))

testWhere(
  thorough,
  elsewhere,
  test,
  'a run keeps its choice and is continued with it bit for bit, whatever a clock would say now',
  async () => {
    await withCache(async (folder) => {
      const [through, parts, other] = ['through', 'parts', 'other'].map((name) => join(folder, name)) as [string, string, string]
      const [first, ...more] = await lines({ out: through, tuner: hook(slow) })
      assert.equal(more, [])
      assert.match(
        first!,
        /^tuning {2}\d+ calls timed in .* ms by the table at level epilogue, .* ms as chosen; level pointwise \(epilogue/,
      )
      const kept = JSON.parse(readFileSync(join(through, 'tuning.json'), 'utf8')) as { level: string; products: unknown[]; device: string }
      assert.is(kept.level, 'pointwise')
      assert.is(kept.device, identity.device)
      assert.is(currentCompute().fusion, 'epilogue', 'nothing is left behind')

      await cut(parts, never)
      rmSync(join(folder, 'densecl'), { recursive: true })
      assert.match(
        (await lines({ out: parts, resume: true, tuner: hook(never) }))[0]!,
        /as this run began: level pointwise, \d+ products of .*tuning\.json$/,
      )
      assert.ok(bytesOf(parts).equals(bytesOf(through)))

      // The other choice would have shown.
      await pretrain({ config: config(), out: other, quiet: true, pictures: false, tuner: hook(fast) })
      assert.is((JSON.parse(readFileSync(join(other, 'tuning.json'), 'utf8')) as { level: string }).level, 'full')
      const losses = (out: string): number[] =>
        readMetrics(join(out, 'metrics.jsonl'))
          .filter((row) => row.loss !== undefined)
          .map((row) => row.loss!)
      assert.not.ok(bytesOf(other).equals(bytesOf(through)))
      await pretrain({
        config: config({ epochs: 1, tune: false }),
        out: through,
        overwrite: true,
        quiet: true,
        pictures: false,
        tuner: hook(never),
      })
      assert.not.ok(existsSync(join(through, 'tuning.json')), 'the tables leave no choice, and an old one goes with its run')
      // The first step sees the same numbers up to rounding; later ones amplify.
      assert.ok(
        Math.abs(losses(other)[0]! - losses(through)[0]!) < 0.01 * losses(through)[0]!,
        `${losses(other)[0]} tuned, ${losses(through)[0]} by the tables`,
      )
    })
  },
)

/** A run that stops before its last step. */
async function cut(out: string, time: Time): Promise<void> {
  let asked = 0
  assert.ok(
    (await pretrain({ config: config(), out, quiet: true, pictures: false, tuner: hook(time), interrupted: () => ++asked > 2 }))
      .interrupted,
  )
}

testWhere(
  thorough,
  elsewhere,
  test,
  'a choice of another machine is used and said; a missing one is made anew, a damaged one is an error',
  async () => {
    await withCache(async (folder) => {
      const [out, again] = [join(folder, 'run'), join(folder, 'again')]
      await cut(out, slow)
      const path = join(out, 'tuning.json')
      const good = readFileSync(path, 'utf8')
      for (const [damaged, why] of [
        [good.slice(0, 200), /no JSON/],
        ['{}', /version/],
        [good.replace('"tile":', '"tile":9'), /tile/],
        [good.replace('pointwise', 'fancy'), /level/],
      ] as const) {
        writeFileSync(path, damaged)
        await rejectsError(
          () => pretrain({ config: config(), out, quiet: true, pictures: false, resume: true, tuner: hook(never) }),
          'TUNING',
          /tuning\.json/,
          why,
        )
      }
      writeFileSync(path, good)
      cpSync(out, again, { recursive: true })
      const there: DeviceIdentity = { device: 'another GPU', driver: '2.0', build: 'of tomorrow' }
      const [line] = await lines({ out, resume: true, tuner: { ...hook(never), identity: there } })
      assert.match(line!, /level pointwise.*made on a GPU, driver 1\.0 \(build of today\), while this is another GPU, /)
      assert.match(line!, / another GPU, driver 2\.0 \(build of tomorrow\): used all the same/)
      rmSync(join(again, 'tuning.json'))
      const made = await lines({ out: again, resume: true, tuner: hook(slow) })
      assert.match(made[0]!, /has no .*tuning\.json: its convolutions are timed now/)
      assert.match(made[1]!, / 0 calls timed in .* \d+ known/)
      // The same clock chose the same again.
      assert.ok(bytesOf(out).equals(bytesOf(again)))
    })
  },
)

test.run()
