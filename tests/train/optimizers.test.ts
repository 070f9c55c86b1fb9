/** Pre-training with each optimiser: it trains, its state is in the checkpoint, and a resumed run ends in the same bits. */
import { join } from 'node:path'

import * as assert from 'uvu/assert'

import type { DenseCLConfig } from '../../src/methods/densecl/options.js'
import { resolveConfig } from '../../src/methods/index.js'
import { optimizerNames } from '../../src/optim/choose.js'
import { learningRate } from '../../src/optim/schedule.js'
import { settingsOf } from '../../src/run/options.js'
import { pretrain } from '../../src/train/pretrain.js'
import { readSafetensors, type StoredTensor } from '../../src/weights/safetensors.js'
import { suite, throwsError, withFolder } from '../support/suite.js'

const test = suite('optimizers')

const tiny = {
  data: 'scenes:32',
  knnData: 'scenes:20',
  imageSize: 32,
  batchSize: 8,
  epochs: 2,
  depth: 18,
  baseChannels: 4,
  featDim: 8,
  queueLength: 16,
  workers: 1,
}
const configure = (more: Partial<DenseCLConfig>): DenseCLConfig => resolveConfig(settingsOf({ ...tiny, ...more }, 'test'))
const last = (out: string): Map<string, StoredTensor> => readSafetensors(join(out, 'checkpoints', 'last.safetensors')).tensors

for (const optimizer of optimizerNames) {
  test(`${optimizer}: a run that is interrupted within an epoch and resumed gives bit for bit the weights of one that is not`, () =>
    withFolder(async (folder) => {
      const [whole, parts] = [join(folder, 'whole'), join(folder, 'parts')]
      const config = configure({ optimizer, lr: optimizer === 'adamw' ? 0.001 : 0.05 })
      const result = await pretrain({ config, out: whole, quiet: true, pictures: false })
      assert.ok(Number.isFinite(result.losses!.total), JSON.stringify(result.losses))
      let asked = 0
      const first = await pretrain({ config, out: parts, quiet: true, pictures: false, interrupted: () => ++asked > 5 })
      assert.ok(first.interrupted && first.globalStep > 0 && first.globalStep < 8, String(first.globalStep))
      const second = await pretrain({ config, out: parts, quiet: true, pictures: false, resume: true })
      assert.not.ok(second.interrupted)
      const [a, b] = [last(whole), last(parts)]
      assert.equal([...b.keys()], [...a.keys()])
      for (const [name, tensor] of a) assert.equal(b.get(name)!.bytes, tensor.bytes, name)
      const kept = [...a.keys()].filter((name) => name.startsWith('optimizer.'))
      assert.is(kept.includes('optimizer.steps'), optimizer === 'adamw')
      const moments = optimizer === 'adamw' ? ['.first_moment', '.second_moment'] : ['']
      for (const moment of moments)
        assert.ok(
          kept.some((name) => name.endsWith(`conv1.weight${moment}`)),
          kept.slice(0, 5).join(),
        )
    }))
}

test('the schedule of milestones multiplies the rate at each of them, and a run without any is refused', () => {
  const schedule = { lr: 1, schedule: 'step', milestones: [3, 5], scheduleBy: 'epoch', warmupSteps: 4, epochs: 8 } as const
  const rates = Array.from({ length: 8 }, (_, epoch) => learningRate(schedule, 10 * epoch + 9, 10))
  rates.forEach((rate, epoch) => assert.ok(Math.abs(rate - [1, 1, 1, 0.1, 0.1, 0.01, 0.01, 0.01][epoch]!) < 1e-12, String(epoch)))
  assert.is(learningRate({ ...schedule, lrDecay: 0.5 }, 30, 10), 0.5)
  assert.equal(
    [0, 1, 2, 3, 4].map((step) => learningRate(schedule, step, 10)),
    [0.25, 0.5, 0.75, 1, 1],
  )
  throwsError(() => configure({ schedule: 'step' }), 'CONFIG', /expected milestones/)
  assert.equal(configure({ schedule: 'step', milestones: [1] }).milestones, [1])
})

test.run()
