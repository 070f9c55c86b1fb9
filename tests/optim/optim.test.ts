import fc from 'fast-check'
import * as assert from 'uvu/assert'

import { AdamW } from '../../src/optim/adam.js'
import { type OptimizerName, optimizerNames, optimizerOf } from '../../src/optim/choose.js'
import { Lars } from '../../src/optim/lars.js'
import type { Optimizer } from '../../src/optim/optimizer.js'
import { checkFinite, Sgd } from '../../src/optim/sgd.js'
import { runNative } from '../../src/tensor/native.js'
import { scope, Tensor } from '../../src/tensor/tensor.js'
import { withCompute } from '../../src/tensor/compute.js'
import { learningRate } from '../../src/optim/schedule.js'
import { suite, throwsError } from '../support/suite.js'

const test = suite('optim')

test('SGD is its formula, for several tensors, with and without Nesterov', () => {
  fc.assert(
    fc.property(
      fc.double({ min: 0, max: 1, noNaN: true }),
      fc.double({ min: 0, max: 0.99, noNaN: true }),
      fc.double({ min: 0, max: 0.5, noNaN: true }),
      fc.boolean(),
      (lr, momentum, weightDecay, nesterov) => {
        scope(() => {
          const start = [[1, -2, 3], [0.5]]
          const parameters = new Map(start.map((values, i) => [`p${i}`, Tensor.from(values, [values.length], 'f64')]))
          const sgd = new Sgd(parameters, { momentum, weightDecay, nesterov })
          const [p, v] = [start.map((values) => [...values]), start.map((values) => values.map(() => 0))]
          for (let step = 0; step < 3; ++step) {
            const gradients = start.map((values, i) => values.map((_, j) => Math.sin(step + 2 * i + j)))
            sgd.step(
              gradients.map((g) => Tensor.from(g, [g.length], 'f64')),
              lr,
            )
            gradients.forEach((g, i) =>
              g.forEach((gradient, j) => {
                const d = gradient + weightDecay * p[i]![j]!
                v[i]![j] = momentum * v[i]![j]! + d
                p[i]![j]! -= lr * (nesterov ? d + momentum * v[i]![j] : v[i]![j])
              }),
            )
          }
          ;[...parameters.values()].forEach((tensor, i) =>
            tensor.data().forEach((value, j) => assert.ok(Math.abs(value - p[i]![j]!) < 1e-12)),
          )
          throwsError(() => sgd.step([], 0.1), 'ARGUMENT', /expected 2 gradients/, /0/)
          sgd.dispose()
        })
      },
    ),
    { numRuns: 30 },
  )
})

test('the optimiser of a name takes the steps of its class, which are no other class’s', () => {
  const [momentum, weightDecay] = [0.8, 0.1]
  const start = Array.from({ length: 6 }, (_, i) => Math.cos(i))
  const after = (make: (parameters: Map<string, Tensor>) => Optimizer): number[] =>
    scope(() => {
      const parameters = new Map([['w', Tensor.from(start, [2, 3], 'f64')]])
      const optimizer = make(parameters)
      for (let step = 1; step <= 3; ++step) optimizer.step([Tensor.from(start.map(Math.sin), [2, 3], 'f64')], 0.1)
      optimizer.dispose()
      return [...parameters.get('w')!.data()]
    })
  const classes: Record<OptimizerName, (parameters: Map<string, Tensor>) => Optimizer> = {
    sgd: (parameters) => new Sgd(parameters, { momentum, weightDecay }),
    adamw: (parameters) => new AdamW(parameters, { beta1: momentum, weightDecay }),
    lars: (parameters) => new Lars(parameters, { momentum, weightDecay }),
  }
  for (const optimizer of optimizerNames)
    for (const other of optimizerNames) {
      const same = after((parameters) => optimizerOf({ optimizer, momentum, weightDecay }, parameters))
      ;(optimizer === other ? assert.equal : assert.not.equal)(same, after(classes[other]), `${optimizer} and ${other}`)
    }
})

test('checkFinite tells one value that is not finite in any tensor, and keeps what was told', () => {
  const place = fc.record({ sizes: fc.array(fc.integer({ min: 1, max: 3000 }), { minLength: 1, maxLength: 4 }), at: fc.nat() })
  fc.assert(
    fc.property(
      place,
      fc.constantFrom(NaN, Infinity, -Infinity),
      fc.constantFrom('f32' as const, 'f64' as const),
      ({ sizes, at }, value, dtype) =>
        scope(() => {
          const foundInf = Tensor.zeros([1], 'i32')
          const values = sizes.map((size) => Array.from({ length: size }, (_, i) => 1e30 * Math.sin(i)))
          const tensors = (): Tensor[] => values.map((each) => Tensor.from(each, [each.length], dtype))
          checkFinite(foundInf, tensors())
          assert.is(foundInf.item(), 0)
          const broken = values[at % sizes.length]!
          broken[at % broken.length] = value
          checkFinite(foundInf, tensors())
          assert.is(foundInf.item(), 1)
          checkFinite(foundInf, [Tensor.zeros([2], dtype)])
          assert.is(foundInf.item(), 1)
        }),
    ),
    { numRuns: 40 },
  )
})

test('the moving average is its formula, the same bits with any number of threads', () => {
  const run = (threads: number): ArrayLike<number> =>
    withCompute({ threads }, () =>
      scope(() => {
        const average = Tensor.from(
          Float32Array.from({ length: 100_000 }, (_, i) => Math.sin(i)),
          [100_000],
        )
        const source = Tensor.from(
          Float32Array.from({ length: 100_000 }, (_, i) => Math.cos(i)),
          [100_000],
        )
        runNative('ema', { averages: [average], sources: [source], copies: [undefined] }, { momentum: 0.9 })
        return average.data()
      }),
    )
  const one = run(1)
  assert.equal(run(3), one)
  for (const i of [0, 5, 99_999]) assert.ok(Math.abs(one[i]! - (0.9 * Math.sin(i) + 0.1 * Math.cos(i))) < 1e-6)
})

test('the cosine ends at 0 and stays there', () => {
  for (const scheduleBy of ['step', 'epoch'] as const) {
    const rates = [0, 10, 20, 25, 30, 400].map((step) =>
      learningRate({ lr: 1, schedule: 'cosine', scheduleBy, warmupSteps: 0, epochs: 2 }, step, 10),
    )
    assert.equal(rates, [1, 0.5, 0, 0, 0, 0])
  }
})

test.run()
