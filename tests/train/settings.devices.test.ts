/** A run in the same process leaves nothing behind: neither settings nor bits of what is computed after it. */
import { join } from 'node:path'

import * as assert from 'uvu/assert'

import { openSource } from '../../src/data/sources.js'
import { extractFeatures } from '../../src/eval/knn.js'
import { ResNet } from '../../src/nn/resnet.js'
import { resolveConfig } from '../../src/methods/index.js'
import { currentCompute } from '../../src/tensor/compute.js'
import { native, observe } from '../../src/tensor/native.js'
import { Random } from '../../src/tensor/random.js'
import { withDevice } from '../../src/tensor/tensor.js'
import { pretrain } from '../../src/train/pretrain.js'
import { device, thorough } from '../support/devices.js'
import { suite, withFolder } from '../support/suite.js'

const test = suite(`settings of a run on ${device}`, device)

const now = (): unknown => ({ ...currentCompute(), threads: native.threads() })

const small = {
  data: 'scenes:8',
  knnData: 'scenes:4',
  depth: 18,
  baseChannels: 8,
  imageSize: 32,
  batchSize: 4,
  epochs: 1,
  queueLength: 32,
  featDim: 16,
  hidden: 16,
  knnImages: 4,
  logEvery: 1,
  workers: 1,
  tune: false,
}

/** Features in the settings that hold without a run, of a network that no run knows. */
async function features(where: string): Promise<Float32Array> {
  const backbone = withDevice(where, () => new ResNet({ random: new Random(1), dtype: 'f32' }, { depth: 18, baseChannels: 8 }))
  const { items } = await openSource('scenes:3')
  const { values } = await extractFeatures(backbone, items, { imageSize: 32, workers: 1 })
  backbone.dispose()
  return values
}

const runs = [
  ['cpu', { fusion: 'full', threads: native.threads() + 1 }],
  [device, { fusion: 'full', threads: 1, precision: 'tf32', graph: false }],
] as const

for (const [where, settings] of runs)
  if (where !== device || thorough)
    test(`a run on ${where} with ${JSON.stringify(settings)}`, async () => {
      await withFolder(async (folder) => {
        const [before, expected] = [now(), await features(where)]
        const config = resolveConfig(
          Object.entries({ ...small, ...settings, device: where }).map(([key, value]) => ({ key, value, from: 'test' })),
        )
        // What products of the run compute with, and what holds between its steps.
        const [within, between] = [new Set<string>(), new Set<string>()]
        observe.op = (op, run) => {
          run()
          const { precision, fusion } = currentCompute()
          if (op === 'sgd') within.add(`${precision} ${fusion} ${native.threads()}`)
        }
        const timer = setInterval(() => between.add(JSON.stringify(now())), 1)
        try {
          await pretrain({ config, out: join(folder, 'run'), quiet: true })
        } finally {
          clearInterval(timer)
          delete observe.op
        }
        assert.equal([...within], [`${config.precision === 'tf32' ? 'tf32' : 'f32'} full ${settings.threads}`])
        assert.equal([...between], [JSON.stringify(before)])
        assert.equal(now(), before)
        assert.equal(await features(where), expected)
      })
    })

test.run()
