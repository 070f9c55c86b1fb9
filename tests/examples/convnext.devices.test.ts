/** The example's backbone on the device under test: layer norm, depthwise convolutions and GELU in a network, and in a recorded step. */
import { join } from 'node:path'

import * as assert from 'uvu/assert'

import { ConvNeXt } from '../../examples/convnext/convnext.js'
import { Tape } from '../../src/autograd/tape.js'
import { resolveConfig } from '../../src/methods/index.js'
import { trainable } from '../../src/nn/module.js'
import { readMetrics } from '../../src/run/runLog.js'
import { packageRoot } from '../../src/tensor/addon.js'
import { Random } from '../../src/tensor/random.js'
import { type FloatDType, scope, Tensor, withDevice } from '../../src/tensor/tensor.js'
import { pretrain } from '../../src/train/pretrain.js'
import { device, thorough } from '../support/devices.js'
import { relativeDistance } from '../support/gradients.js'
import { suite, withFolder } from '../support/suite.js'

const test = suite(`convnext on ${device}`, device)

const options = { widths: [8, 8, 16, 16], depths: [1, 1, 1, 1] }

/** The gradients of all parameters for a fixed gradient of the last map. */
function gradientsOf(compute: FloatDType, where: string): Float32Array[] {
  return scope(() =>
    withDevice(where, () => {
      const random = new Random(7)
      const draw = (shape: readonly number[]): Tensor =>
        Tensor.from(
          Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, () => random.normal()),
          shape,
          'f32',
          where,
        ).to(compute)
      const [x, cotangent] = [draw([2, 64, 64, 4]), draw([2, 2, 2, 16])]
      const backbone = new ConvNeXt({ random, dtype: 'f32', compute }, { ...options, inputs: 4 })
      const watched = trainable(backbone.state())
      const tape = new Tape().watch(watched)
      const y = tape.record(() => backbone.forward(x, { train: true, groups: 1 }))
      const gradients = tape.backward(y, watched, cotangent).map((gradient) => gradient.to('f32').data() as Float32Array)
      backbone.dispose()
      return gradients
    }),
  )
}

test('its gradients are those of the CPU, and in mixed precision near them', () => {
  const expected = gradientsOf('f32', 'cpu')
  const whole = (gradients: readonly Float32Array[]): number[] => gradients.flatMap((gradient) => [...gradient])
  const [f32, bf16] = [gradientsOf('f32', device), gradientsOf('bf16', device)]
  expected.forEach((gradient, i) => {
    const distance = relativeDistance(f32[i]!, gradient)
    assert.ok(distance < 2e-5, `parameter ${i} differs by ${distance}`)
  })
  const distance = relativeDistance(whole(bf16), whole(expected))
  assert.ok(distance < 0.05, `bf16 differs by ${distance}`)
})

if (thorough)
  test('DenseCL trains it, and the recorded step is the step', async () => {
    const losses = (graph: boolean): Promise<(number | undefined)[]> =>
      withFolder(async (folder) => {
        const settings = {
          data: 'scenes:16',
          knnData: 'scenes:8',
          backbone: join(packageRoot, 'dist', 'examples', 'convnext', 'convnext.js'),
          backboneOptions: options,
          imageSize: 64,
          batchSize: 4,
          epochs: 1,
          queueLength: 32,
          featDim: 16,
          hidden: 16,
          lr: 0.05,
          logEvery: 1,
          workers: 1,
          tune: false,
          device,
          graph,
        }
        const config = resolveConfig(Object.entries(settings).map(([key, value]) => ({ key, value, from: 'test' })))
        await pretrain({ config, out: join(folder, 'run'), quiet: true, pictures: false })
        return readMetrics(join(folder, 'run', 'metrics.jsonl')).flatMap(({ loss }) => (loss === undefined ? [] : [loss]))
      })
    const [recorded, plain] = [await losses(true), await losses(false)]
    assert.is(recorded.length, 4)
    assert.equal(recorded, plain)
  })

test.run()
