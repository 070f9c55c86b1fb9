/** Whole training steps on the device under test, against PyTorch in float64, and the gradients of a network against the CPU's. */
import { existsSync } from 'node:fs'
import { join } from 'node:path'

import * as assert from 'uvu/assert'

import { Tape } from '../../src/autograd/tape.js'
import { resnet } from '../../src/nn/resnet.js'
import { describeStep } from '../../src/methods/densecl/method.js'
import { DenseCL } from '../../src/methods/densecl/model.js'
import { denseclStep } from '../../src/methods/densecl/step.js'
import { BatchNorm2d, Conv2d, convNorm, kaimingNormal, Linear } from '../../src/nn/layers.js'
import { disposeState } from '../../src/nn/module.js'
import { Random } from '../../src/tensor/random.js'
import { reshape } from '../../src/ops/elementwise.js'
import { adaptiveAvgPool2d } from '../../src/ops/pool2d.js'
import { type FusionLevel, withCompute } from '../../src/tensor/compute.js'
import { packageRoot } from '../../src/tensor/addon.js'
import { type FloatDType, scope, Tensor, withDevice } from '../../src/tensor/tensor.js'
import { simulated, withCapability } from '../support/capability.js'
import { device, thorough } from '../support/devices.js'
import { relativeDistance } from '../support/gradients.js'
import { goldenRows } from '../support/golden.js'
import { suite, testWhere } from '../support/suite.js'

const test = suite(`steps on ${device}`, device)

function check(folder: string): void {
  let rows = 0
  for (const { name, dtype, error, tolerance } of goldenRows(folder, device)) {
    assert.ok(error <= tolerance, `${name} ${dtype}: relative error ${error}, allowed ${tolerance}`)
    rows += 1
  }
  assert.ok(rows >= 4, `${rows} rows`)
}

test('the golden step of this repository', () => check(join(packageRoot, 'tests', 'fixtures', 'golden')))

if (thorough)
  test('the golden step of this repository with nothing fused, and with everything', () => {
    for (const level of ['pointwise', 'full'] as const) {
      withCompute({ fusion: level }, () => check(join(packageRoot, 'tests', 'fixtures', 'golden')))
    }
  })

/** Losses and gradients of two steps of a network, of two stages, whose every convolution but the stem has slices of 64 channels. */
function stepsAt(capability: number, level: FusionLevel): { losses: number[]; gradients: Float32Array[] } {
  const run = () => {
    const model = withDevice(
      device,
      () =>
        new DenseCL({
          backbone: resnet({ depth: 18, baseChannels: 64, blocks: [2, 2] }),
          neck: { hidden: 64, featDim: 64 },
          queueLength: 256,
          seed: 3,
          compute: 'bf16',
        }),
    )
    const random = new Random(8)
    const views = scope(() =>
      [0, 1].map(() =>
        Tensor.from(
          Float32Array.from({ length: 4 * 32 * 32 * 3 }, () => random.normal()),
          [4, 32, 32, 3],
          'bf16',
          device,
        ).keep(),
      ),
    ) as [Tensor, Tensor]
    const losses: number[] = []
    let gradients: Float32Array[] = []
    for (let step = 0; step < 2; ++step) {
      const result = denseclStep(model, views, { temperature: 0.2, denseWeight: 0.5, keyMomentum: 0.99, normGroups: 1 })
      const { lossGlobal, lossDense } = describeStep(result.readings)
      losses.push(lossGlobal, lossDense)
      gradients = result.gradients.map((gradient) => gradient.data() as Float32Array)
      result.dispose()
    }
    for (const view of views) view.dispose()
    model.dispose()
    return { losses, gradients }
  }
  return withCompute({ fusion: level }, () => withCapability(capability, run))
}

test("a step with known partners, local negatives and those of the same picture is the CPU's", () => {
  const run = (where: string): { losses: number[]; gradients: Float32Array[]; queue: Float32Array } =>
    withDevice(where, () => {
      const neck = { hidden: 8, featDim: 8 }
      const model = new DenseCL({
        backbone: resnet({ depth: 18, baseChannels: 8, strides: [1, 2, 1, 1] }),
        neck,
        queueLength: 16,
        denseQueueLength: 10,
        seed: 3,
      })
      const random = new Random(8)
      const views = scope(() =>
        [0, 1].map(() =>
          Tensor.from(
            Float32Array.from({ length: 2 * 32 * 32 * 3 }, () => random.normal()),
            [2, 32, 32, 3],
            'f32',
            where,
          ).keep(),
        ),
      ) as [Tensor, Tensor]
      const index = Int32Array.from({ length: 32 }, (_, at) => (at % 3 === 0 ? -1 : (at * 5) % 16))
      const result = denseclStep(model, views, {
        ...{ temperature: 0.2, denseTemperature: 0.3, denseWeight: 0.5, denseInImage: 0.5, keyMomentum: 0.99, normGroups: 1 },
        partners: { index, images: 2 },
        keyPicks: { index: Int32Array.of(0, 3, 5, 1, 2, 15), images: 2 },
      })
      const { lossGlobal, lossDense, lossInImage, place, image } = describeStep(result.readings)
      const gradients = result.gradients.map((gradient) => gradient.data() as Float32Array)
      const queue = model.denseQueue.keys.data() as Float32Array
      result.dispose()
      for (const view of views) view.dispose()
      model.dispose()
      return { losses: [lossGlobal, lossDense, lossInImage!, place!, image!], gradients, queue }
    })
  const [there, here] = [run(device), run('cpu')]
  here.losses.forEach((loss, i) => assert.ok(Math.abs(loss - there.losses[i]!) < 1e-4, `${i}: ${there.losses[i]} against ${loss}`))
  assert.ok(relativeDistance(there.queue, here.queue) < 1e-4)
  // The heads' gradients have passed no norm on their way.
  for (const at of [-1, -2, -3, -4]) assert.ok(relativeDistance(there.gradients.at(at)!, here.gradients.at(at)!) < 1e-3)
})

if (thorough && simulated)
  test("a step by Hopper's kernels is that of Ampere's, fused or not", () => {
    const [ampere, hopper, full] = [stepsAt(80, 'pointwise'), stepsAt(90, 'epilogue'), stepsAt(90, 'full')]
    for (const { losses, gradients } of [hopper, full]) {
      // bf16 roundings that fall the other way move a loss by about 2^-9 of the logits' size, 5.
      losses.forEach((loss, i) => assert.ok(Math.abs(loss - ampere.losses[i]!) < 0.03, `loss ${i}: ${loss} against ${ampere.losses[i]}`))
      // The last layer's gradient has passed no norm on its way.
      assert.ok(
        relativeDistance(gradients.at(-2)!, ampere.gradients.at(-2)!) < 0.1,
        `differs by ${relativeDistance(gradients.at(-2)!, ampere.gradients.at(-2)!)}`,
      )
      for (const gradient of gradients) assert.ok(gradient.every(Number.isFinite))
    }
  })

const shared = join(packageRoot, '..', 'shared', 'golden')
if (thorough) testWhere(existsSync(shared), 'the large golden files are not here', test, 'the large golden files', () => check(shared))

/** Two convolutions with batch norm, a residual, pooling and a linear layer: everything that mixed precision touches, and shallow. */
function gradientsOf(compute: FloatDType, where: string): Float32Array {
  return scope(() =>
    withDevice(where, () => {
      const random = new Random(5)
      const build = { random, dtype: 'f32', compute } as const
      const conv = (from: number): Conv2d => new Conv2d(build, from, 16, 3, { padding: 1, fill: kaimingNormal('fanIn') })
      const [first, second, head] = [conv(8), conv(16), new Linear(build, 16, 8, kaimingNormal('fanIn'))]
      const norms = [new BatchNorm2d(build, 16), new BatchNorm2d(build, 16)] as const
      const states = [first, second, head, ...norms].map((module) => module.state())
      const draw = (shape: number[]): Tensor =>
        Tensor.from(
          Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, () => random.normal()),
          shape,
          'f32',
          'cpu',
        ).to('bf16')
      const [x, cotangent] = [draw([8, 12, 12, 8]), draw([8, 8])].map((tensor) => tensor.to('f32').to(compute, where)) as [Tensor, Tensor]
      const watched = states.flatMap(({ parameters, copies }) => [...parameters].map(([name, parameter]) => copies.get(name) ?? parameter))
      const tape = new Tape().watch(watched)
      const y = tape.record(() => {
        const mode = { train: true, groups: 1 } as const
        const inner = convNorm(first, norms[0], x, mode, { relu: true })
        const outer = convNorm(second, norms[1], inner, mode, { relu: true, residual: inner })
        return head.forward(reshape(adaptiveAvgPool2d(outer, 1), [8, 16]))
      })
      const gradients = tape.backward(y, watched, cotangent)
      gradients.forEach((gradient) => assert.is(gradient.dtype, 'f32'))
      const values = Float32Array.from(gradients.flatMap((gradient) => Array.from(gradient.data())))
      states.forEach(disposeState)
      return values
    }),
  )
}

test("gradients in mixed precision are those of f32, and those of f32 the CPU's", () => {
  const exact = gradientsOf('f32', 'cpu')
  assert.ok(relativeDistance(gradientsOf('f32', device), exact) < 1e-5)
  // Weights, both convolutions, both norms, the pool and the way back each round to 2^-9: ten roundings.
  const mixed = relativeDistance(gradientsOf('bf16', device), exact)
  assert.ok(mixed > 1e-4 && mixed < 2 * 2 ** -9 * Math.sqrt(10) * 2, `relative error ${mixed}`)
})

test.run()
