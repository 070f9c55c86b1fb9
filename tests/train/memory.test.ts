/** What a run is said to take of the memory, against what it takes; and what cannot fit is refused before anything is read. */
import { spawnSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { join } from 'node:path'

import * as assert from 'uvu/assert'

import { densecl } from '../../src/methods/densecl/method.js'
import { presets } from '../../src/methods/densecl/presets.js'
import { resolveConfig } from '../../src/methods/index.js'
import { resnetKind } from '../../src/nn/resnet.js'
import { fitting, hostLimit } from '../../src/run/memory.js'
import { settingsOf } from '../../src/run/options.js'
import { resolvePlacement } from '../../src/run/placement.js'
import { native } from '../../src/tensor/native.js'
import { Tensor, withDevice } from '../../src/tensor/tensor.js'
import { deviceTraits } from '../../src/tensor/traits.js'
import { checkMemory, estimateMemory } from '../../src/train/memory.js'
import { processorTime } from '../support/processorTime.js'
import { cli, runCli, suite, throwsError, withFolder } from '../support/suite.js'

const test = suite('memory')

const kind = resnetKind
const partsOf = (values: Record<string, unknown>) => {
  const config = resolveConfig(settingsOf({ device: 'cpu', ...values }, 'test'))
  return { config, parts: { method: densecl, kind, placement: resolvePlacement(config) } }
}
const hostBytes = (values: Record<string, unknown>, knn?: { bank: number; queries: number }): number => {
  const { config, parts } = partsOf(values)
  return estimateMemory(config, { ...parts, knn }).host.reduce((sum, { bytes }) => sum + bytes, 0)
}

test('a dry device counts tensors as its own device does, takes no memory and computes nothing', () => {
  assert.is(deviceTraits('dry:cpu').computes, false)
  const before = native.memory('dry:cpu')
  const rss = process.memoryUsage().rss
  const huge = Tensor.zeros([2 ** 40], 'f32', 'dry:cpu')
  assert.is(native.memory('dry:cpu').live - before.live, 2 ** 42)
  assert.ok(process.memoryUsage().rss - rss < 2 ** 26)
  huge.dispose()
  const small = Tensor.full([3], 7, 'f32', 'dry:cpu')
  assert.equal([...small.data()], [0, 0, 0])
  small.dispose()
  let drawn = false
  withDevice('dry:cpu', () =>
    Tensor.drawn(
      () => {
        drawn = true
        return [1]
      },
      [1],
      'f32',
    ),
  ).dispose()
  assert.not.ok(drawn)
  assert.is(native.memory('dry:cpu').live, before.live)
  native.trimMemory('dry:cpu')
  throwsError(() => deviceTraits('dry:dry:cpu'), 'DEVICE')
})

test('the estimate is 0.7 to 1.4 times the largest resident memory of runs in which different parts are the largest', async () => {
  await withFolder((folder) => {
    const base = { data: 'scenes:64', knnData: 'scenes:20', knnImages: 20, epochs: 1, depth: 18, imageSize: 32, batchSize: 8 }
    const cases = {
      program: { ...base, baseChannels: 4, hidden: 16, queueLength: 16, workers: 1 },
      workers: { ...base, baseChannels: 4, hidden: 16, queueLength: 16, workers: 6 },
      activations: { ...base, baseChannels: 16, imageSize: 96, batchSize: 64, queueLength: 64, workers: 1 },
      queue: { ...base, baseChannels: 4, hidden: 16, queueLength: 200_000, workers: 1 },
    }
    const shares = Object.entries(cases).map(([name, values]) => {
      const settings = Object.entries(values).map(([key, value]) => `${key}=${value}`)
      const hook = 'data:text/javascript,process.on("exit",()=>console.log("resident "+process.resourceUsage().maxRSS))'
      const args = ['--import', hook, cli, 'pretrain', '--out', join(folder, name), ...settings]
      const { status, stdout, stderr } = spawnSync(process.execPath, args, { encoding: 'utf8' })
      assert.is(status, 0, stderr)
      assert.match(stdout, /^memory {2}about [\d.]+ GiB of the [\d.]+ GiB of this machine/m)
      const resident = 1024 * Math.max(...[...stdout.matchAll(/^resident (\d+)$/gm)].map(([, kibibytes]) => Number(kibibytes)))
      return { name, share: hostBytes(values, { bank: 20, queries: 20 }) / resident }
    })
    const shown = shares.map(({ name, share }) => `${name} ${share.toFixed(2)}`).join(', ')
    assert.ok(
      shares.every(({ share }) => share > 0.7 && share < 1.4),
      shown,
    )
  })
})

test('activations grow with batch and pixels, and the estimate leaves no tensor', () => {
  const before = native.memory('dry:cpu')
  const step = (batchSize: number, imageSize: number): number => {
    const { config, parts } = partsOf({ batchSize, imageSize, depth: 18, queueLength: 64 })
    return estimateMemory(config, parts).host.find(({ what }) => what.startsWith('a step'))!.bytes
  }
  const [one, double, larger] = [step(32, 128), step(64, 128), step(32, 256)]
  assert.ok(double > 1.7 * one && double < 2.1 * one, `${double / one}`)
  assert.ok(larger > 3.4 * one && larger < 4.2 * one, `${larger / one}`)
  assert.is(native.memory('dry:cpu').live, before.live)
})

test('the published preset does not fit a machine of 16 GB, says why and what to change, and nothing is drawn to find out', () => {
  const preset = presets['densecl_resnet50_8xb32-coslr-200e_in1k'].config
  const { config, parts } = partsOf(preset)
  const took = processorTime()
  throwsError(
    () => checkMemory(config, parts, { host: 16e9, device: 0 }),
    'CONFIG',
    /takes about [\d.]+ GiB, and this machine has 14\.9 GiB/,
    /a step of 256 images of 224 px/,
    /--batch-size \(256\)/,
    /--image-size \(224\)/,
    /--queue-length \(65536\)/,
    /--force/,
  )
  // Of 8 processes whose share it is the batch has as many times its images.
  throwsError(() => checkMemory(config, { ...parts, processes: 8 }, { host: 16e9, device: 0 }), 'CONFIG', /--batch-size \(2048\)/)
  assert.ok(took() < 10, `took ${took()} s`)
  assert.match(checkMemory(config, parts, { host: 64e9, device: 0 }), /^memory {2}about [\d.]+ GiB of the 59\.6 GiB of this machine/)
  assert.ok(hostLimit() > 2 ** 28)
})

test('memory that is not known is no limit, and no number is given for it', () => {
  const part = (gibibytes: number) => [{ what: 'tensors', bytes: gibibytes * 2 ** 30 }]
  const line = fitting(() => ({ host: part(1), device: part(2) }), {
    what: 'this run',
    device: 'simt',
    limits: { host: 2 ** 33, device: 0 },
    remedies: '',
    cacheMegabytes: 0,
  })
  assert.is(line, 'memory  about 1.00 GiB of the 8.00 GiB of this machine, 2.00 GiB on simt')
})

test('sizes that no machine has are refused at once, with a name, and leave nothing', async () => {
  await withFolder((folder) => {
    for (const setting of ['imageSize=20000', 'queueLength=900000000000000', 'batchSize=100000000', 'baseChannels=1000000']) {
      const { code, err } = runCli(['pretrain', '--out', join(folder, 'run'), 'data=scenes:64', setting])
      assert.is(code, 2, err)
      assert.match(err, /^densecl: (memory|configuration|.*is \d+: |[a-zA-Z]+=\d+: expected )/, setting)
      assert.not.ok(existsSync(join(folder, 'run')))
    }
  })
})

test.run()
