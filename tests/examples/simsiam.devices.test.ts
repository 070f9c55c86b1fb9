/** The example's method on the device under test: what is not DenseCL's is computed there too, and can be recorded. */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'

import * as assert from 'uvu/assert'

import simsiam from '../../examples/simsiam/method.js'
import { resolveConfig } from '../../src/methods/index.js'
import { resnet } from '../../src/nn/resnet.js'
import { settingsOf } from '../../src/run/options.js'
import { readMetrics } from '../../src/run/runLog.js'
import { Random } from '../../src/tensor/random.js'
import { type FloatDType, scope, Tensor, withDevice } from '../../src/tensor/tensor.js'
import { pretrain } from '../../src/train/pretrain.js'
import { device, thorough } from '../support/devices.js'
import { relativeDistance } from '../support/gradients.js'
import { suite, withFolder } from '../support/suite.js'

const test = suite(`simsiam on ${device}`, device)

/** The numbers of a step on random views, with the gradients one after the other. */
function stepOn(where: string, compute: FloatDType): { loss: number; gradients: number[] } {
  return withDevice(where, () => {
    const config = resolveConfig(settingsOf({ projection: 16, predictorHidden: 8, seed: 2 }, 'test'), simsiam)
    const built = simsiam.build(config, { backbone: resnet({ depth: 18, baseChannels: 8 }), compute })
    const random = new Random(6)
    const draw = (): Tensor =>
      Tensor.from(
        Float32Array.from({ length: 8 * 32 * 32 * 3 }, () => random.normal()),
        [8, 32, 32, 3],
      ).to(compute)
    const [loss, gradients] = scope(() => {
      const result = built.step([draw(), draw()])
      const values = result.gradients.flatMap((gradient) => Array.from(gradient.data()))
      const numbers = built.describe(result.readings, 1)
      result.dispose()
      return [numbers.loss!, values]
    })
    built.dispose()
    return { loss, gradients }
  })
}

test('a step in f32 is that of the CPU, and its loss in mixed precision near it', () => {
  const [cpu, f32, bf16] = [stepOn('cpu', 'f32'), stepOn(device, 'f32'), stepOn(device, 'bf16')]
  assert.ok(Math.abs(f32.loss - cpu.loss) < 1e-4, `${f32.loss} and ${cpu.loss}`)
  const distance = relativeDistance(f32.gradients, cpu.gradients)
  assert.ok(distance < 1e-2, `gradients differ by ${distance}`)
  // A cosine of embeddings that are off by 2^-9 a layer, over 21 layers of the backbone and both heads.
  assert.ok(Math.abs(bf16.loss - cpu.loss) < 2 * 2 ** -9 * Math.sqrt(2 * 21) * 4, `${bf16.loss} and ${cpu.loss}`)
})

if (thorough)
  test('a recorded step has the bits of one that is not, in mixed precision', async () => {
    await withFolder(async (folder) => {
      const settings = {
        data: 'scenes:16',
        knnData: 'scenes:8',
        depth: 18,
        baseChannels: 8,
        imageSize: 32,
        batchSize: 8,
        epochs: 2,
        projection: 16,
        predictorHidden: 8,
        lr: 0.05,
        knnImages: 8,
        logEvery: 1,
        workers: 1,
        tune: false,
        device,
      }
      const run = async (name: string, more: object): Promise<{ losses: number[]; backbone: Buffer }> => {
        const out = join(folder, name)
        const config = resolveConfig(settingsOf({ ...settings, ...more }, 'test'), simsiam)
        await pretrain({ config, method: simsiam, out, quiet: true, pictures: false })
        const losses = readMetrics(join(out, 'metrics.jsonl')).flatMap(({ loss }) => (loss === undefined ? [] : [loss]))
        return { losses, backbone: readFileSync(join(out, 'backbone.safetensors')) }
      }
      const [recorded, eager] = [await run('recorded', {}), await run('eager', { graph: false })]
      assert.is(recorded.losses.length, 4)
      assert.equal(recorded.losses, eager.losses)
      assert.ok(recorded.backbone.equals(eager.backbone))
    })
  })

test.run()
