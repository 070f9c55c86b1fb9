/** Updates in place on the device under test: the optimiser, averages, the queue and the finite check. */
import fc from 'fast-check'
import * as assert from 'uvu/assert'

import { Queue } from '../../src/methods/densecl/model.js'
import { Random } from '../../src/tensor/random.js'
import type { EmaTarget } from '../../src/optim/optimizer.js'
import { checkFinite, Sgd } from '../../src/optim/sgd.js'
import { runNative } from '../../src/tensor/native.js'
import { type FloatDType, scope, Tensor, withDevice } from '../../src/tensor/tensor.js'
import { device } from '../support/devices.js'
import { relativeDifference } from '../support/gradients.js'
import { suite, throwsError } from '../support/suite.js'

const test = suite(`optim on ${device}`, device)

const floats = (seed: number, size: number): Float32Array => {
  const random = new Random(seed)
  return Float32Array.from({ length: size }, () => random.normal())
}

interface Network {
  parameters: Map<string, Tensor>
  key: EmaTarget
  copies: Map<string, Tensor>
}

/** Parameters of the given sizes, an EMA target, and bf16 copies of every other one. */
function network(sizes: readonly number[], withCopies: boolean): Network {
  const make = (seed: number): Map<string, Tensor> =>
    new Map(sizes.map((size, i) => [`p${i}`, Tensor.from(floats(seed + i, size), [size])]))
  const copiesOf = (tensors: Map<string, Tensor>): Map<string, Tensor> =>
    new Map(withCopies ? [...tensors].filter((_, i) => i % 2 === 0).map(([name, tensor]) => [name, tensor.to('bf16')]) : [])
  const [parameters, averages] = [make(1), make(1000)]
  return { parameters, copies: copiesOf(parameters), key: { parameters: averages, copies: copiesOf(averages), momentum: 0.9 } }
}

function train({ parameters, copies, key }: Network, sizes: readonly number[], nesterov: boolean, fused: boolean): Tensor[] {
  const sgd = new Sgd(parameters, { momentum: 0.9, weightDecay: 0.01, nesterov }, copies)
  for (let step = 0; step < 3; ++step) {
    scope(() =>
      sgd.step(
        sizes.map((size, i) => Tensor.from(floats(7 * step + i, size), [size])),
        0.1 / (step + 1),
        fused ? { emaTarget: key } : {},
      ),
    )
    if (!fused)
      runNative(
        'ema',
        {
          averages: [...key.parameters.values()],
          sources: [...key.parameters.keys()].map((name) => parameters.get(name)!),
          copies: [...key.parameters.keys()].map((name) => key.copies.get(name)),
        },
        { momentum: key.momentum },
      )
  }
  sgd.dispose()
  return [...parameters.values(), ...key.parameters.values(), ...copies.values(), ...key.copies.values()]
}

test("SGD with an EMA target is the CPU's, copies are the rounded parameters, and the target is the average alone", () => {
  // More tensors than fit into one launch, and sizes on both sides of a block.
  const sizes = [1, 31, 2048, 2049, 5000, ...Array.from({ length: 60 }, (_, i) => i + 1)]
  for (const nesterov of [false, true]) {
    scope(() => {
      const there = withDevice(device, () => {
        const made = network(sizes, true)
        return { ...made, all: train(made, sizes, nesterov, true) }
      })
      const here = network(sizes, false)
      train(here, sizes, nesterov, true)
      for (const [name, tensor] of here.parameters)
        assert.ok(relativeDifference(there.parameters.get(name)!.data(), tensor.data()) < 1e-6, name)
      for (const [name, tensor] of here.key.parameters)
        assert.ok(relativeDifference(there.key.parameters.get(name)!.data(), tensor.data()) < 1e-6, name)
      for (const [copies, masters] of [
        [there.copies, there.parameters],
        [there.key.copies, there.key.parameters],
      ] as const) {
        for (const [name, copy] of copies) assert.equal(copy.data(), masters.get(name)!.to('bf16').data(), name)
      }
      const apart = withDevice(device, () => train(network(sizes, true), sizes, nesterov, false))
      apart.forEach((tensor, i) => assert.equal(tensor.data(), there.all[i]!.data()))
    })
  }
})

test('nothing changes once a value is not finite', () => {
  for (const value of [NaN, Infinity, -Infinity]) {
    scope(() =>
      withDevice(device, () => {
        const foundInf = Tensor.zeros([1], 'i32')
        const parameters = new Map([['p', Tensor.from([1, 2, 3], [3])]])
        const sgd = new Sgd(parameters, { momentum: 0.9, weightDecay: 0 })
        const gradients = [Tensor.from([1, 1, 1], [3])]
        checkFinite(foundInf, [Tensor.from(floats(1, 5000), [5000]), ...gradients])
        assert.is(foundInf.item(), 0)
        const broken = floats(2, 5000)
        broken[4321] = value
        checkFinite(foundInf, [...gradients, Tensor.from(broken, [5000])])
        assert.is(foundInf.item(), 1)
        sgd.step(gradients, 0.1, { foundInf })
        assert.equal([...parameters.get('p')!.data()], [1, 2, 3])
        sgd.dispose()
      }),
    )
  }
})

test("the queue is the CPU's at any length, batch and pointer", () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 1, max: 40 }),
      fc.integer({ min: 1, max: 20 }),
      fc.array(fc.integer({ min: 1, max: 90 }), { minLength: 1, maxLength: 4 }),
      fc.constantFrom<FloatDType>('f32', 'bf16'),
      (length, dim, batches, dtype) => {
        const run = (where: string, as: FloatDType): [ArrayLike<number>, number] =>
          withDevice(where, () => {
            const queue = new Queue(new Random(1), length, dim, as)
            batches.forEach((batch, i) =>
              scope(() => queue.enqueue(Tensor.from(floats(i, batch * dim), [batch, dim], 'bf16', 'cpu').to(as, where))),
            )
            const held: [ArrayLike<number>, number] = [queue.keys.data(), queue.pointer.item()]
            queue.keys.dispose()
            queue.pointer.dispose()
            return held
          })
        const [there, here] = [run(device, dtype), run('cpu', 'f32')]
        assert.is(there[1], here[1])
        // Rows that were never written are random unit vectors, rounded.
        assert.ok(relativeDifference(there[0], here[0]) <= (dtype === 'bf16' ? 2 ** -8 : 1e-6))
      },
    ),
    { numRuns: Number(process.env.DENSECL_TEST_RUNS ?? 25) },
  )
})

test('a pointer outside of the queue is reported when values are read', () => {
  scope(() =>
    withDevice(device, () => {
      const pointer = Tensor.from([7], [1], 'i32')
      const queue = Tensor.zeros([5, 2])
      runNative('enqueue', { queue, pointer, keys: Tensor.zeros([3, 2]) })
      throwsError(() => queue.data(), 'RANGE', /enqueue/, /pointer 7/, /queue of 5/)
      assert.equal([...queue.data()], Array(10).fill(0))
    }),
  )
})

test.run()
