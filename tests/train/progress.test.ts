/** What a run prints and writes of a step: the same numbers, per image and per second. */
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'

import * as assert from 'uvu/assert'

import { densecl } from '../../src/methods/densecl/method.js'
import { resolveConfig } from '../../src/methods/index.js'
import { settingsOf } from '../../src/run/options.js'
import { fittingFields } from '../../src/run/liveLine.js'
import { readMetrics } from '../../src/run/runLog.js'
import { metricsRow, type Progress, progressFields } from '../../src/train/progress.js'
import type { Run } from '../../src/train/run.js'
import { runCli, suite, withFolder } from '../support/suite.js'

const test = suite('progress')

const run = {
  config: resolveConfig(settingsOf({ batchSize: 8, epochs: 4 }, 'test')),
  method: { ...densecl, logLine: undefined },
  built: { backbone: { device: 'cpu' } },
  steps: 5,
} as unknown as Run

const progressOf = (more: Partial<Progress>): Progress => ({
  numbers: { loss: 2.5 },
  at: { epoch: 1, step: 3, globalStep: 8, images: 40 },
  lr: 0.03,
  rate: 100,
  wait: 0.25,
  remaining: 12,
  spent: { images: 40, onGpu: 0, decoding: 2, rendering: 0.5, uploading: 0 },
  ...more,
})

test('times of data are for an image, that of a step is without its waiting, and both forms have them', () => {
  const row = metricsRow(run, progressOf({}))
  assert.equal(
    [row.decodeMilliseconds, row.augmentMilliseconds, row.stepMilliseconds, row.epoch, row.globalStep],
    [(1000 * 2) / 40, (1000 * 0.5) / 40, 1000 * (8 / 100) * 0.75, 1 + 3 / 5, 8],
  )
  assert.equal(progressFields(run, progressOf({})), [
    'eta 12s',
    'epoch 2/4 step 3/5',
    'loss 2.500',
    '100 images/s',
    'wait 25%',
    'lr 0.0300',
    'step 60 ms',
    'decode 50.0 ms, augment 12.5 ms an image',
  ])
})

test('80 columns show time left, epoch, loss, throughput and waiting of the largest published run', () => {
  const published = { ...run, steps: 5004, config: { ...run.config, epochs: 200 }, method: densecl } as unknown as Run
  const numbers = { loss: 12.345, lossGlobal: 8.1, lossDense: 8.2, accuracyGlobal: 0.5, accuracyDense: 0.5, spread: 0.5 }
  const at = { epoch: 150, step: 5000, globalStep: 756_000, images: 1_281_167 }
  const fields = progressFields(published, progressOf({ numbers, at, remaining: 27_000, rate: 2345, wait: 1 }))
  assert.equal(fittingFields(fields, 79), ['eta 7h30m', 'epoch 151/200 step 5000/5004', 'loss 12.345', '2345 images/s', 'wait 100%'])
})

test('before an image was read its times are 0, and waiting never makes a step shorter than nothing', () => {
  const row = metricsRow(run, progressOf({ wait: 1.5, spent: { images: 0, onGpu: 0, decoding: 0, rendering: 0, uploading: 0 } }))
  assert.equal([row.decodeMilliseconds, row.augmentMilliseconds, row.stepMilliseconds], [0, 0, 0])
})

test('a run prints the shares of kNN that its rows have, before, on the way and at the end', () =>
  withFolder((folder) => {
    const out = join(folder, 'run')
    const settings = ['data=scenes:16', 'knnData=scenes:10', 'knnEvery=1', 'epochs=2', 'depth=18', 'baseChannels=4', 'hidden=16']
    const { code, out: printed, err } = runCli(['pretrain', '--out', out, 'imageSize=32', 'batchSize=8', 'queueLength=16', ...settings])
    assert.is(code, 0, err)
    const lines = [...printed.matchAll(/^knn {5}([\d.]+) % (.+) \(.+, k 20\)$/gm)].map(([, share, when]) => [share, when])
    const rows = readMetrics(join(out, 'metrics.jsonl')).flatMap(({ knn }) => (knn === undefined ? [] : [(100 * knn).toFixed(1)]))
    assert.equal(
      lines.map(([share]) => share),
      rows,
    )
    assert.equal([rows.length, lines[0]![1], lines.at(-1)![1]], [3, 'before training', 'after training'])
  }))

test('every epoch ends with a line and a row, however few steps it has', () =>
  withFolder((folder) => {
    const out = join(folder, 'run')
    const settings = ['data=scenes:24', 'epochs=3', 'depth=18', 'baseChannels=4', 'hidden=16', 'logEvery=50', 'knnData=scenes:10']
    const { code, out: printed, err } = runCli(['pretrain', '--out', out, 'imageSize=32', 'batchSize=8', 'queueLength=16', ...settings])
    assert.is(code, 0, err)
    const ends = ['epoch 1/3 step 3/3', 'epoch 2/3 step 3/3', 'epoch 3/3 step 3/3']
    assert.equal(printed.match(/(?<=^eta \w+ {2})epoch \d\/\d step \d\/\d/gm), ends)
    assert.equal(
      readMetrics(join(out, 'metrics.jsonl')).flatMap(({ loss, globalStep }) => (loss === undefined ? [] : [globalStep])),
      [3, 6, 9],
    )
  }))

test('a kNN below that of the untrained network is told with a remedy, and one that is not is not', () =>
  withFolder((folder) => {
    const settings = ['data=scenes:24', 'depth=18', 'baseChannels=4', 'hidden=16', 'knnData=scenes:10', 'imageSize=32', 'queueLength=16']
    const out = join(folder, 'run')
    const start = ['pretrain', '--out', out, ...settings, 'batchSize=8']
    assert.is(runCli([...start, 'epochs=1']).code, 0)
    const metrics = join(out, 'metrics.jsonl')
    /** The run goes on as one whose untrained network had this share. */
    const extended = (before: number, epochs: number): string => {
      const rows = readMetrics(metrics)
      rows.find(({ knn }) => knn !== undefined)!.knn = before
      writeFileSync(metrics, rows.map((row) => `${JSON.stringify(row)}\n`).join(''))
      const { code, out: printed, err } = runCli(['pretrain', '--out', out, '--resume', '--epochs', String(epochs)])
      assert.is(code, 0, err)
      assert.match(printed, `knn     ${(100 * before).toFixed(1)} % before`)
      return printed
    }
    assert.match(extended(1, 2), /^warning kNN is below that of the untrained network: .*try more epochs, a lower learning rate or more/m)
    assert.not.match(extended(0, 3), 'below that of the untrained network')
  }))

test.run()
