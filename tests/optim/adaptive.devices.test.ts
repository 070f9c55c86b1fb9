/** Adam, AdamW, LARS and clipping on the device under test: the CPU's values, copies, averages, and recorded steps. */
import * as assert from 'uvu/assert'

import { Adam, AdamW } from '../../src/optim/adam.js'
import { clipByGlobalNorm, clipByValue } from '../../src/optim/clip.js'
import { Lars } from '../../src/optim/lars.js'
import type { EmaTarget, Optimizer } from '../../src/optim/optimizer.js'
import { checkFinite } from '../../src/optim/sgd.js'
import { Graph } from '../../src/tensor/graph.js'
import { Random } from '../../src/tensor/random.js'
import { scope, type Shape, sizeOf, Tensor, withDevice } from '../../src/tensor/tensor.js'
import { device } from '../support/devices.js'
import { relativeDifference } from '../support/gradients.js'
import { suite } from '../support/suite.js'

const test = suite(`adaptive on ${device}`, device)

const floats = (seed: number, shape: Shape): Tensor => {
  const random = new Random(seed)
  return Tensor.from(
    Float32Array.from({ length: sizeOf(shape) }, () => random.normal()),
    shape,
  )
}

// More tensors than fit into one launch, sizes on both sides of a block and beyond the blocks that one pass of a sum takes, and none.
const shapes: Shape[] = [
  [1],
  [31],
  [0, 3],
  [2, 1024],
  [2049, 1],
  [300, 2048],
  ...Array.from({ length: 60 }, (_, i) => (i % 2 === 0 ? [i + 1] : [2, i + 1])),
]

const makers: Record<string, (parameters: Map<string, Tensor>, copies?: Map<string, Tensor>) => Optimizer> = {
  adam: (parameters, copies) => new Adam(parameters, { weightDecay: 0.01 }, copies),
  adamw: (parameters, copies) => new AdamW(parameters, { beta1: 0.8, beta2: 0.99, weightDecay: 0.1 }, copies),
  lars: (parameters, copies) => new Lars(parameters, { weightDecay: 0.01, trust: 0.1 }, copies),
}

interface Trained {
  parameters: Map<string, Tensor>
  copies: Map<string, Tensor>
  emaTarget: EmaTarget
  state: number[][]
}

function train(make: (typeof makers)[string], withCopies: boolean): Trained {
  const draw = (seed: number): Map<string, Tensor> => new Map(shapes.map((shape, i) => [`p${i}`, floats(seed + i, shape)]))
  const copiesOf = (tensors: Map<string, Tensor>): Map<string, Tensor> =>
    new Map(withCopies ? [...tensors].filter((_, i) => i % 2 === 0).map(([name, tensor]) => [name, tensor.to('bf16')]) : [])
  const [parameters, averages] = [draw(1), draw(1000)]
  const copies = copiesOf(parameters)
  const emaTarget = { parameters: averages, copies: copiesOf(averages), momentum: 0.9 }
  const optimizer = make(parameters, copies)
  const foundInf = Tensor.zeros([1], 'i32')
  for (let step = 0; step < 4; ++step)
    scope(() => {
      const gradients = shapes.map((shape, i) => floats(7 * step + i, shape))
      checkFinite(foundInf, gradients)
      optimizer.step(gradients, 0.1 / (step + 1), { foundInf, emaTarget })
    })
  const state = [...optimizer.state().values()].map((tensor) => [...tensor.data()])
  optimizer.dispose()
  return { parameters, copies, emaTarget, state }
}

for (const [name, make] of Object.entries(makers)) {
  test(`${name} is the CPU's, copies are the rounded parameters, and all follow`, () => {
    scope(() => {
      const there = withDevice(device, () => train(make, true))
      const here = train(make, false)
      const alike = (a: Map<string, Tensor>, b: Map<string, Tensor>): void => {
        for (const [key, tensor] of a) assert.ok(relativeDifference(b.get(key)!.data(), tensor.data()) < 2e-6, key)
      }
      alike(here.parameters, there.parameters)
      alike(here.emaTarget.parameters, there.emaTarget.parameters)
      here.state.forEach((values, i) => assert.ok(relativeDifference(there.state[i]!, values) < 5e-6, String(i)))
      for (const [copies, of] of [
        [there.copies, there.parameters],
        [there.emaTarget.copies, there.emaTarget.parameters],
      ] as const)
        for (const [key, copy] of copies) assert.equal(copy.data(), of.get(key)!.to('bf16').data(), key)
    })
  })

  test(`${name} in a recorded step reads the rate and counts its steps: the same bits as without a recording`, () => {
    const run = (record: boolean): number[][] =>
      scope(() =>
        withDevice(device, () => {
          const parameters = new Map([
            ['w', floats(1, [40, 70])],
            ['b', floats(2, [70])],
          ])
          const given = [floats(3, [40, 70]), floats(4, [70])]
          const foundInf = Tensor.zeros([1], 'i32')
          const optimizer = make(parameters)
          const graph = new Graph(
            device,
            () => {
              const { gradients, norm } = clipByGlobalNorm(given, 5)
              optimizer.update(gradients, { foundInf })
              return norm
            },
            record,
          )
          const norms: number[] = []
          for (let step = 0; step < 7; ++step) {
            given[0]!.write(floats(10 + step, [40, 70]).data())
            foundInf.write(Int32Array.of(Number(step === 5)))
            optimizer.setRate(0.1 / (1 + step))
            norms.push(graph.run().item())
          }
          const seen = [norms, ...[...parameters.values(), ...optimizer.state().values()].map((tensor) => [...tensor.data()])]
          graph.dispose()
          optimizer.dispose()
          return seen
        }),
      )
    assert.equal(run(true), run(false))
  })
}

test('clipping by value holds each value within the limit, and leaves what is not a number', () => {
  scope(() =>
    withDevice(device, () => {
      const [clipped, other] = clipByValue([Tensor.from([-3, -0.5, 0, 0.5, 3, Infinity, NaN]), Tensor.from([[2], [-2]])], 1) as [
        Tensor,
        Tensor,
      ]
      assert.equal([...clipped.data()], [-1, -0.5, 0, 0.5, 1, 1, NaN])
      assert.equal(
        [other.shape, [...other.data()]],
        [
          [2, 1],
          [1, -1],
        ],
      )
    }),
  )
})

test("clipping by the global norm is the CPU's, and leaves what is not finite to be found", () => {
  scope(() => {
    for (const maxNorm of [1, 1e6]) {
      const clip = (): { values: ArrayLike<number>[]; norm: number } => {
        const { gradients, norm } = clipByGlobalNorm(
          shapes.map((shape, i) => floats(i, shape)),
          maxNorm,
        )
        return { values: gradients.map((gradient) => gradient.data()), norm: norm.item() }
      }
      const [there, here] = [withDevice(device, clip), clip()]
      assert.ok(Math.abs(there.norm - here.norm) < 1e-6 * here.norm)
      here.values.forEach((values, i) => assert.ok(relativeDifference(there.values[i]!, values) < 1e-6, String(i)))
    }
    // Values whose squares are no floats, with a norm that is one, and one that is none.
    for (const where of [device, 'cpu'])
      for (const [size, maxNorm] of [
        [1e25, 1],
        [1e30, 1e-3],
        [3e38, 1e3],
        [1e30, 1e35],
      ] as const)
        withDevice(where, () => {
          const given = [Tensor.full([1000], size / 2), Tensor.from([-size, 0, size])]
          const length = size * Math.sqrt(1000 / 4 + 2)
          const { gradients, norm } = clipByGlobalNorm(given, maxNorm)
          const what = `${size} to ${maxNorm} on ${where}`
          if (length > 3.4e38) assert.is(norm.item(), Infinity, what)
          else assert.ok(Math.abs(norm.item() / length - 1) < 1e-5, `${what}: ${norm.item()}`)
          const factor = Math.min(1, maxNorm / length)
          for (const [k, gradient] of gradients.entries())
            for (const [i, value] of gradient.data().entries()) {
              const expected = given[k]!.data()[i]! * factor
              assert.ok(Math.abs(value - expected) <= 1e-5 * Math.abs(expected), `${what}: ${value} for ${expected}`)
            }
        })
    for (const where of [device, 'cpu'])
      for (const value of [NaN, Infinity])
        withDevice(where, () => {
          const { gradients } = clipByGlobalNorm([Tensor.from([1, value, 2]), Tensor.from([1])], 1)
          const foundInf = Tensor.zeros([1], 'i32')
          checkFinite(foundInf, gradients)
          assert.is(foundInf.item(), 1, `${value} on ${where}`)
        })
  })
})

test.run()
