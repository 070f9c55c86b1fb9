/** Adam, AdamW, LARS and clipping against their formulas in plain JavaScript, against PyTorch where it is, and resumed. */
import fc from 'fast-check'
import * as assert from 'uvu/assert'

import { Adam, AdamW } from '../../src/optim/adam.js'
import { clipByGlobalNorm, clipByValue } from '../../src/optim/clip.js'
import { Lars } from '../../src/optim/lars.js'
import type { Optimizer } from '../../src/optim/optimizer.js'
import { Sgd } from '../../src/optim/sgd.js'
import { native } from '../../src/tensor/native.js'
import { scope, sizeOf, Tensor } from '../../src/tensor/tensor.js'
import { hasTorch, noTorch, runPython } from '../support/python.js'
import { suite, testWhere, throwsError } from '../support/suite.js'

const test = suite('adaptive')
const numRuns = Number(process.env.DENSECL_TEST_RUNS ?? 30)

/** A matrix, a kernel and a bias, which by default has no weight decay. */
const shapes = { matrix: [3, 4], kernel: [2, 3, 3, 2], bias: [5] } as const
const names = Object.keys(shapes) as (keyof typeof shapes)[]
const start = (): number[][] => names.map((name, k) => Array.from({ length: sizeOf(shapes[name]) }, (_, j) => Math.sin(1 + 7 * k + j)))
const tensors = (values: readonly number[][]): Map<string, Tensor> =>
  new Map(names.map((name, k) => [name, Tensor.from(values[k]!, shapes[name], 'f64')]))
/** Of a parameter, so that a wrong step shows in all that follow. */
const gradient = (p: readonly number[], step: number): number[] => p.map((value, j) => Math.cos(3 * value + j + step) / (1 + step))
const rate = (step: number): number => 0.1 / (1 + step)
const last = 25

/** The parameters after `last` steps of an optimiser. */
function trained(make: (parameters: Map<string, Tensor>) => Optimizer): number[][] {
  return scope(() => {
    const parameters = tensors(start())
    const optimizer = make(parameters)
    for (let step = 0; step < last; ++step) advance(optimizer, step)
    optimizer.dispose()
    return [...parameters.values()].map((p) => [...p.data()])
  })
}

function advance(optimizer: Optimizer, step: number): void {
  scope(() =>
    optimizer.step(
      [...optimizer.parameters.values()].map((p) => Tensor.from(gradient([...p.data()], step), p.shape, 'f64')),
      rate(step),
    ),
  )
}

function close(actual: readonly number[][], expected: readonly number[][], tolerance = 1e-10): void {
  actual.forEach((values, k) =>
    values.forEach((value, j) =>
      assert.ok(
        Math.abs(value - expected[k]![j]!) <= tolerance * (1 + Math.abs(expected[k]![j]!)),
        `${names[k]}[${j}]: ${value} against ${expected[k]![j]}`,
      ),
    ),
  )
}

/** The parameters after `last` steps of update(k, p, g, step), which changes p in place. */
function reference(update: (k: number, p: number[], g: number[], step: number) => void): number[][] {
  const all = start()
  for (let step = 0; step < last; ++step) all.forEach((p, k) => update(k, p, gradient(p, step), step))
  return all
}

const isMatrix = (k: number): boolean => names[k] !== 'bias'
const unit = (most: number): fc.Arbitrary<number> => fc.double({ min: 0, max: most, noNaN: true })

test('Adam and AdamW are their formulas over many steps', () => {
  fc.assert(
    fc.property(
      unit(0.99),
      // With a smaller one the step of a gradient near 0 has any sign.
      fc.double({ min: 0.5, max: 0.9999, noNaN: true }),
      fc.constantFrom(1e-8, 1e-3),
      unit(0.3),
      fc.boolean(),
      (beta1, beta2, eps, weightDecay, decoupled) => {
        const [m, v] = [start().map((p) => p.map(() => 0)), start().map((p) => p.map(() => 0))]
        const expected = reference((k, p, g, step) =>
          p.forEach((value, j) => {
            const decay = decoupled && !isMatrix(k) ? 0 : weightDecay
            const d = g[j]! + (decoupled ? 0 : decay * value)
            m[k]![j] = beta1 * m[k]![j]! + (1 - beta1) * d
            v[k]![j] = beta2 * v[k]![j]! + (1 - beta2) * d * d
            const [mean, square] = [m[k]![j] / (1 - beta1 ** (step + 1)), v[k]![j] / (1 - beta2 ** (step + 1))]
            p[j] = value - (decoupled ? rate(step) * decay * value : 0) - (rate(step) * mean) / (Math.sqrt(square) + eps)
          }),
        )
        const options = { beta1, beta2, eps, weightDecay }
        close(
          trained((parameters) => (decoupled ? new AdamW(parameters, options) : new Adam(parameters, options))),
          expected,
          1e-8,
        )
      },
    ),
    { numRuns },
  )
})

test("LARS is SimCLR's formula over many steps, without a local rate for biases and where a norm is 0", () => {
  fc.assert(
    fc.property(unit(0.99), unit(0.3), fc.double({ min: 1e-6, max: 1, noNaN: true }), (momentum, weightDecay, trust) => {
      const v = start().map((p) => p.map(() => 0))
      const length = (values: readonly number[]): number => Math.sqrt(values.reduce((sum, value) => sum + value * value, 0))
      const expected = reference((k, p, g, step) => {
        const decayed = g.map((value, j) => value + (isMatrix(k) ? weightDecay * p[j]! : 0))
        const local = isMatrix(k) ? (trust * length(p)) / length(decayed) : 1
        p.forEach((value, j) => {
          v[k]![j] = momentum * v[k]![j]! + rate(step) * local * decayed[j]!
          p[j] = value - v[k]![j]
        })
      })
      close(
        trained((parameters) => new Lars(parameters, { momentum, weightDecay, trust })),
        expected,
      )
    }),
    { numRuns },
  )
  scope(() => {
    for (const [p, g, after] of [
      [
        [0, 0],
        [1, 2],
        [-0.5, -1],
      ],
      [
        [1, 2],
        [0, 0],
        [1, 2],
      ],
    ] as const) {
      const parameters = new Map([['p', Tensor.from([p], 'f64')]])
      const lars = new Lars(parameters, { weightDecay: 0 })
      lars.step([Tensor.from([g], 'f64')], 0.5)
      assert.equal([...parameters.get('p')!.data()], [...after])
      lars.dispose()
    }
  })
})

const makers: Record<string, (parameters: Map<string, Tensor>) => Optimizer> = {
  sgd: (parameters) => new Sgd(parameters, { momentum: 0.9, weightDecay: 0.1 }),
  adam: (parameters) => new Adam(parameters, { weightDecay: 0.1 }),
  adamw: (parameters) => new AdamW(parameters, { weightDecay: 0.1, decays: (name) => name === 'kernel' }),
  lars: (parameters) => new Lars(parameters, { adapts: (name) => name !== 'matrix' }),
}

test('an optimiser that takes over parameters and state goes on to the same bits', () => {
  for (const [name, make] of Object.entries(makers)) {
    scope(() => {
      const first = make(tensors(start()))
      for (let step = 0; step < 9; ++step) advance(first, step)
      const parameters = tensors([...first.parameters.values()].map((p) => [...p.data()]))
      const second = make(parameters)
      assert.equal([...second.state().keys()], [...first.state().keys()])
      for (const [key, tensor] of second.state()) tensor.write(first.state().get(key)!.data())
      first.dispose()
      for (let step = 9; step < last; ++step) advance(second, step)
      second.dispose()
      assert.equal(
        [...parameters.values()].map((p) => [...p.data()]),
        trained(make),
        name,
      )
    })
  }
})

test('nothing changes where foundInf is not 0, what is kept among it; the average follows where it is', () => {
  for (const [name, make] of Object.entries(makers)) {
    scope(() => {
      const parameters = tensors(start())
      const optimizer = make(parameters)
      advance(optimizer, 0)
      const emaTarget = { parameters: tensors(start()), copies: new Map<string, Tensor>(), momentum: 0.75 }
      const seen = (): number[][] =>
        [...parameters.values(), ...emaTarget.parameters.values(), ...optimizer.state().values()].map((t) => [...t.data()])
      const before = seen()
      const gradients = [...parameters.values()].map((p) => Tensor.full(p.shape, 1, 'f64'))
      const foundInf = Tensor.from([1], 'i32')
      optimizer.step(gradients, 0.1, { foundInf, emaTarget })
      assert.equal(seen(), before, name)
      const averages = [...emaTarget.parameters.values()].map((average) => [...average.data()])
      foundInf.write(Int32Array.of(0))
      optimizer.step(gradients, 0.1, { foundInf, emaTarget })
      close(
        [...emaTarget.parameters.values()].map((average) => [...average.data()]),
        [...parameters.values()].map((p, k) => [...p.data()].map((value, j) => 0.75 * averages[k]![j]! + 0.25 * value)),
        1e-14,
      )
      optimizer.dispose()
    })
  }
})

test('gradients and options that do not fit are refused by name', () => {
  scope(() => {
    const adam = new Adam(tensors(start()))
    throwsError(() => adam.step([], 0.1), 'ARGUMENT', /adam: expected 3 gradients but received 0/)
    const wrong = [Tensor.zeros([4, 3], 'f64'), Tensor.zeros(shapes.kernel, 'f64'), Tensor.zeros([5], 'f64')]
    throwsError(() => adam.step(wrong, 0.1), 'SHAPE', /adam: expected the gradient of matrix \[3,4\] but received f64\[4,3\]/)
    adam.dispose()
    throwsError(() => new AdamW(new Map(), { beta2: 1 }), 'ARGUMENT', /adamw: expected beta2 from 0 to below 1 but received 1/)
    throwsError(() => new Lars(new Map(), { momentum: -1 }), 'ARGUMENT', /lars: expected momentum/)
    for (const [what, options, range] of [
      ['eps', { eps: 0 }, 'above 0'],
      ['eps', { eps: -1e-8 }, 'above 0'],
      ['eps', { eps: Infinity }, 'above 0'],
      ['weightDecay', { weightDecay: -0.01 }, 'of 0 or more'],
      ['weightDecay', { weightDecay: NaN }, 'of 0 or more'],
      ['beta1', { beta1: NaN }, 'from 0 to below 1'],
    ] as const) {
      const received = Object.values(options)[0]
      throwsError(() => new Adam(new Map(), options), 'ARGUMENT', new RegExp(`^adam: expected ${what} ${range} but received ${received}$`))
      throwsError(
        () => new AdamW(new Map(), options),
        'ARGUMENT',
        new RegExp(`^adamw: expected ${what} ${range} but received ${received}$`),
      )
    }
    throwsError(() => new Lars(new Map(), { trust: 0 }), 'ARGUMENT', 'lars: expected trust above 0 but received 0')
    throwsError(() => new Lars(new Map(), { weightDecay: -1 }), 'ARGUMENT', 'lars: expected weightDecay of 0 or more but received -1')
    throwsError(
      () => new Sgd(new Map(), { momentum: 0, weightDecay: -1 }),
      'ARGUMENT',
      'sgd: expected weightDecay of 0 or more but received -1',
    )
    const sgd = new Sgd(tensors(start()), { momentum: 0, weightDecay: 0 })
    const values = (): number[][] => [...sgd.parameters.values()].map((p) => [...p.data()])
    const before = values()
    const zeros = [...sgd.parameters.values()].map(({ shape }) => Tensor.zeros(shape, 'f64'))
    for (const rate of [NaN, -1, Infinity])
      throwsError(() => sgd.step(zeros, rate), 'ARGUMENT', `sgd: expected a learning rate of 0 or more but received ${rate}`)
    const target = { parameters: sgd.parameters, copies: new Map<string, Tensor>() }
    for (const momentum of [NaN, -0.5, 1.5])
      throwsError(
        () => sgd.step(zeros, 0.1, { emaTarget: { ...target, momentum } }),
        'ARGUMENT',
        `sgd: expected the momentum of emaTarget from 0 to 1 but received ${momentum}`,
      )
    assert.equal(values(), before)
    sgd.dispose()
    // What the native side refuses is refused by the name of the optimiser.
    const coarse = new Map([['p', Tensor.zeros([2], 'bf16')]])
    const adamw = new AdamW(coarse)
    throwsError(() => adamw.step([Tensor.zeros([2], 'bf16')], 0.1), 'DTYPE', /^adamw: /)
    adamw.dispose()
    throwsError(() => clipByGlobalNorm([], 1), 'ARGUMENT', /at least one gradient/)
    for (const limit of [0, -1, NaN])
      throwsError(() => clipByValue([Tensor.zeros([1])], limit), 'ARGUMENT', `clipByValue: expected a positive limit but received ${limit}`)
    throwsError(() => clipByGlobalNorm([Tensor.zeros([1])], 0), 'ARGUMENT', /positive maxNorm but received 0/)
  })
})

test('clipping by the global norm keeps the direction and shorter gradients as they are, the same bits with any number of threads', () => {
  fc.assert(
    fc.property(
      fc.double({ min: 0.01, max: 100, noNaN: true }),
      fc.array(fc.integer({ min: 0, max: 40_000 }), { minLength: 1, maxLength: 4 }),
      (maxNorm, sizes) => {
        const run = (threads: number): number[][] =>
          scope(() => {
            const before = native.threads()
            native.setThreads(threads)
            const values = sizes.map((size, k) => Float64Array.from({ length: size }, (_, j) => Math.sin(j + k)))
            const { gradients, norm } = clipByGlobalNorm(
              values.map((each) => Tensor.from(each, 'f64')),
              maxNorm,
            )
            native.setThreads(before)
            const length = Math.sqrt(values.reduce((sum, each) => each.reduce((total, value) => total + value * value, sum), 0))
            assert.ok(Math.abs(norm.item() - length) <= 1e-12 * length)
            const factor = Math.min(1, maxNorm / length)
            gradients.forEach((gradient, k) =>
              gradient.data().forEach((value, j) => assert.ok(Math.abs(value - factor * values[k]![j]!) <= 1e-12, `${k} ${j}`)),
            )
            if (length <= maxNorm)
              assert.equal(
                gradients.map((gradient) => gradient.data()),
                values,
              )
            return [[norm.item()], ...gradients.map((gradient) => [...gradient.data()])]
          })
        assert.equal(run(1), run(3))
      },
    ),
    { numRuns },
  )
})

testWhere(hasTorch, noTorch, test, "Adam and AdamW are PyTorch's over many steps", () => {
  const program = `
import json, torch
values, shapes = ${JSON.stringify(start())}, ${JSON.stringify(Object.values(shapes))}
results = []
for kind, options in [(torch.optim.Adam, dict(weight_decay=0.1)), (torch.optim.AdamW, dict(weight_decay=0.2, betas=(0.8, 0.99), eps=1e-6))]:
    parameters = [torch.tensor(v, dtype=torch.float64).reshape(s).requires_grad_() for v, s in zip(values, shapes)]
    optimizer = kind(parameters, lr=0.1, **options)
    for step in range(${last}):
        optimizer.param_groups[0]['lr'] = 0.1 / (1 + step)
        for p in parameters:
            flat = p.detach().reshape(-1)
            p.grad = (torch.cos(3 * flat + torch.arange(len(flat), dtype=torch.float64) + step) / (1 + step)).reshape(p.shape)
        optimizer.step()
    results.append([p.detach().reshape(-1).tolist() for p in parameters])
print(json.dumps(results))`
  const [adam, adamw] = JSON.parse(runPython(program)) as [number[][], number[][]]
  close(
    trained((parameters) => new Adam(parameters, { weightDecay: 0.1 })),
    adam,
  )
  const options = { weightDecay: 0.2, beta1: 0.8, beta2: 0.99, eps: 1e-6, decays: () => true }
  close(
    trained((parameters) => new AdamW(parameters, options)),
    adamw,
  )
})

test.run()
