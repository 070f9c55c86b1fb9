/** Named configurations: that they are sound, and that they are what the documents say of them. */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'

import * as assert from 'uvu/assert'

import type { DenseCLConfig } from '../../src/methods/densecl/options.js'
import { presets } from '../../src/methods/densecl/presets.js'
import { resolveConfig } from '../../src/methods/index.js'
import { settingsOf } from '../../src/run/options.js'
import { packageRoot } from '../../src/tensor/addon.js'
import { suite } from '../support/suite.js'

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

test('small images have the weight of the dense loss that docs/learning.md says, other than the published one', () => {
  const [, small, published] = /so lambda is ([\d.]+) and not ([\d.]+) here/.exec(documentOf('learning.md'))!.map(Number)
  for (const name of Object.keys(presets)) {
    const { imageSize, denseWeight } = resolved(name)
    if (!name.startsWith('mocov2')) assert.is(denseWeight, imageSize > 64 ? published : small, name)
  }
})

test('without a preset the statistics of batch norms are those of the whole batch, of any size', () => {
  for (const batchSize of [1, 2, 7, 31]) assert.is(resolveConfig([setting('batchSize', batchSize)]).normGroups, 1)
})

test.run()
