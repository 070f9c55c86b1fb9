import fc from 'fast-check'
import * as assert from 'uvu/assert'

import { Sgd } from '../../src/optim/sgd.js'
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
