/** What settings do on a device with kernels to choose from: seen by the native calls that are made under them. */
import { isDeepStrictEqual } from 'node:util'

import * as assert from 'uvu/assert'

import { Tape } from '../../src/autograd/tape.js'
import { evaluation, type NormMode } from '../../src/nn/layers.js'
import { disposeState } from '../../src/nn/module.js'
import { ResNet } from '../../src/nn/resnet.js'
import { type ComputeOptions, currentCompute, withCompute } from '../../src/tensor/compute.js'
import { mapTensors, observe } from '../../src/tensor/native.js'
import { Random } from '../../src/tensor/random.js'
import { scope, Tensor, withDevice } from '../../src/tensor/tensor.js'
import { device } from '../support/devices.js'
import { suite } from '../support/suite.js'

const test = suite(`compute settings on ${device}`, device)

/** The native calls of `body`, with which of their tensors are there, and with their numbers. */
function calls(body: () => void): string[] {
  const seen: string[] = []
  observe.op = (op, run, tensors, numbers) => {
    run()
    seen.push(`${op} ${JSON.stringify([mapTensors(tensors, ({ dtype }) => dtype), numbers])}`)
  }
  try {
    body()
  } finally {
    delete observe.op
  }
  return seen
}

const train: NormMode = { train: true, groups: 1 }

interface Pass {
  forward: string[]
  backward: string[]
  gradients: number[][]
}

/** Gradients of a small network's last map: its forward pass under one kind of settings, the backward pass under another. */
function passes(forward: ComputeOptions, backward: ComputeOptions): Pass {
  return withDevice(device, () =>
    scope(() => {
      const network = new ResNet({ random: new Random(3), dtype: 'f32' }, { depth: 18, baseChannels: 8 })
      const { parameters } = network.state()
      const random = new Random(5)
      const x = Tensor.from(
        Float32Array.from({ length: 2 * 16 * 16 * 3 }, () => random.normal()),
        [2, 16, 16, 3],
      )
      const tape = new Tape().watch(parameters.values())
      const pass: Pass = { forward: [], backward: [], gradients: [] }
      let y: Tensor | undefined
      pass.forward = calls(() => (y = withCompute(forward, () => tape.record(() => network.stages(x, train).at(-1)!))))
      pass.backward = calls(() =>
        withCompute(backward, () => {
          pass.gradients = tape.backward(y!, [...parameters.values()]).map((gradient) => [...gradient.data()])
        }),
      )
      disposeState(network.state())
      return pass
    }),
  )
}

for (const settings of [{ precision: 'tf32' }, { fusion: 'pointwise' }, { fusion: 'full' }, { tile: 3, precision: 'tf32' }] as const)
  test(`backward computes as forward did, whatever holds where it runs: ${JSON.stringify(settings)}`, () => {
    const inside = passes(settings, settings)
    const other = { precision: 'f32', tile: 0, fusion: 'epilogue' } as const
    const [outside, usual] = [passes(settings, other), passes({}, settings)]
    assert.equal(outside.forward, inside.forward)
    assert.equal(outside.backward, inside.backward)
    // Compared without a picture of what differs, which would take minutes.
    assert.ok(isDeepStrictEqual(outside.gradients, inside.gradients), 'gradients differ')
    // The settings do make other calls, in both directions.
    assert.not.equal(usual.forward, inside.forward)
    assert.not.equal(usual.backward, inside.backward)
  })

test('one network under two settings at a time: each pass has its own', () => {
  withDevice(device, () =>
    scope(() => {
      const network = new ResNet({ random: new Random(3), dtype: 'f32' }, { depth: 18, baseChannels: 8 })
      const x = Tensor.full([1, 32, 32, 3], 0.5)
      const maps = (options: ComputeOptions): number[] =>
        withCompute(options, () => scope(() => [...network.stages(x, evaluation).at(-1)!.data()]))
      const plain = maps({})
      assert.not.equal(maps({ precision: 'tf32' }), plain)
      assert.equal(maps({}), plain)
      assert.is(currentCompute().precision, 'f32')
      disposeState(network.state())
    }),
  )
})

test.run()
