/** Named configurations: that they are sound, and that they are what the documents say of them. */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'

import * as assert from 'uvu/assert'

import { type DenseCLConfig, variant } from '../../src/methods/densecl/options.js'
import { presets } from '../../src/methods/densecl/presets.js'
import { resolveConfig } from '../../src/methods/index.js'
import { settingsOf } from '../../src/run/options.js'
import { packageRoot } from '../../src/tensor/addon.js'
import { begunConfig } from '../../src/train/share.js'
import { suite, throwsError } from '../support/suite.js'

const test = suite('presets')

const setting = (key: string, value: unknown) => ({ key, value, from: 'test' })
const documentOf = (name: string): string => readFileSync(join(packageRoot, 'docs', name), 'utf8').replace(/\n */g, ' ')
const resolved = (name: string): DenseCLConfig => resolveConfig(settingsOf(presets[name as keyof typeof presets].config, name))

test('every preset is valid; the published ones have the published values', () => {
  for (const { config } of Object.values(presets)) resolveConfig(Object.entries(config).map(([key, value]) => setting(key, value)))
  const published = resolveConfig(
    Object.entries(presets['densecl_resnet50_8xb32-coslr-200e_in1k'].config).map(([key, value]) => setting(key, value)),
  )
  const values = {
    ...{
      depth: 50,
      batchSize: 256,
      normGroups: 8,
      lr: 0.03,
      momentum: 0.9,
      weightDecay: 1e-4,
      epochs: 200,
      queueLength: 65536,
      featDim: 128,
    },
    ...{ keyMomentum: 0.999, temperature: 0.2, denseWeight: 0.5, imageSize: 224, scheduleBy: 'epoch', init: 'mmselfsup' },
  }
  assert.equal(published, { ...published, ...values })
  // Whose name it is decides how weights are drawn, and that alone.
  assert.equal(resolved('densecl_imagenet_200ep'), { ...published, init: 'original' })
  assert.equal(resolved('mocov2_resnet50_8xb32-coslr-200e_in1k'), { ...published, denseWeight: 0 })
})

test('the table of configurations says what the published presets set', () => {
  const table = readFileSync(join(packageRoot, 'docs', 'method.md'), 'utf8')
    .split('## Configurations')[1]!
    .split('\n\n')[1]!
  const found = table.split('\n').flatMap((row) => {
    const [, names, , epochs, lr] = row.split('|').map((cell) => cell.trim())
    const each = epochs!.split(', ')
    return [...names!.matchAll(/`(\w[\w-]+)`/g)].map(([, name], i) => [name!, Number(each[i] ?? each[0]), Number(lr)] as const)
  })
  assert.equal(
    found.map(([name]) => name).sort(),
    Object.keys(presets)
      .filter((name) => /\d/.test(name))
      .sort(),
  )
  for (const [name, epochs, lr] of found) {
    const config = resolved(name)
    assert.equal([config.epochs, config.lr, config.batchSize, config.normGroups, config.warmupSteps], [epochs, lr, 256, 8, 0], name)
  }
})

test('presets of small images are a variant and say so, on a grid of 6x6 or more, at the learning rate of docs/learning.md', () => {
  const [, mocoRate] = /MoCo v2's ([\d.]+) \/ \(1 - λ\)/.exec(documentOf('learning.md'))!.map(Number)
  for (const [name, { describe }] of Object.entries(presets)) {
    const config = resolved(name)
    const side = config.imageSize / (4 * config.strides.reduce((product, stride) => product * stride, 1))
    assert.ok(side >= 6, `${name}: grid ${side}`)
    const own = variant(config)
    assert.is(own.length > 0, describe.includes('variant'), name)
    if (own.length === 0) continue
    assert.equal(own.slice(0, 3), ['dense-match geometry', 'dense-negatives local of 4 keys', 'dense-in-image 0.5'], name)
    // A batch of 32 goes by half of it.
    assert.is(Math.round(1e9 * config.lr * (1 - config.denseWeight)) / 1e9, (mocoRate! * Math.min(64, config.batchSize)) / 64, name)
    assert.is(config.batchSize / config.normGroups!, 16, name)
  }
  assert.is(resolved('small').baseChannels, 64)
})

test('presets whose settings were inferred say so, and no others', () => {
  const inferred = Object.entries(presets).flatMap(([name, { describe }]) => (describe.includes('inferred') ? [name] : []))
  assert.equal(inferred, ['densecl_coco_1600ep', 'densecl_imagenet_r101_200ep'])
})

test('without a preset the statistics of batch norms are those of the whole batch, of any size', () => {
  for (const batchSize of [1, 2, 7, 31]) {
    const config = resolveConfig([setting('batchSize', batchSize)])
    assert.is(config.normGroups, null)
    assert.is(begunConfig(config, 1).normGroups, 1)
  }
})

test('of several processes each has a group where nothing else is said, by a preset, a file or the run that goes on', () => {
  const open = resolveConfig([setting('batchSize', 24)])
  assert.is(begunConfig(open, 4).normGroups, 4)
  assert.is(begunConfig(open, 4, { ...open, normGroups: 8 }).normGroups, 8)
  // Runs of one process were begun with 1 before there was another default.
  assert.is(begunConfig(open, 1, { ...open, normGroups: 1 }).normGroups, 1)
  assert.is(begunConfig({ ...open, normGroups: 2 }, 4).normGroups, 2)
  for (const name of Object.keys(presets)) assert.is(begunConfig(resolved(name), 4).normGroups, resolved(name).normGroups, name)
  throwsError(() => begunConfig(open, 5), 'CONFIG', /batchSize is 24 but there are 5 processes: expected a multiple of 5/)
})

test.run()
