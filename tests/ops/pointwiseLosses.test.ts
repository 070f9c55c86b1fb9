/** Losses of single elements and of rows: what their definitions promise, and PyTorch's values and gradients. */
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'

import * as assert from 'uvu/assert'

import { Tape } from '../../src/autograd/tape.js'
import { binaryCrossEntropy, crossEntropy, infoNce, smoothL1 } from '../../src/ops/losses.js'
import { reshape } from '../../src/ops/elementwise.js'
import { native } from '../../src/tensor/native.js'
import { Random } from '../../src/tensor/random.js'
import { scope, Tensor } from '../../src/tensor/tensor.js'
import { relativeDifference } from '../support/gradients.js'
import { hasTorch, noTorch, runPython } from '../support/python.js'
import { suite, testWhere, throwsError, withFolder } from '../support/suite.js'

const test = suite('losses of elements')
const vector = (...values: number[]): Tensor => Tensor.from(values, [values.length], 'f64')

function gradientOf(x: Tensor, loss: () => Tensor): { value: number; gradient: number[] } {
  const tape = new Tape().watch([x])
  const y = tape.record(loss)
  const value = y.item()
  return { value, gradient: [...tape.backward(y, [x])[0]!.data()] }
}

test('smooth L1 is a parabola up to beta, a line beyond, and L1 with a beta of 0', () => {
  scope(() => {
    const [x, target] = [vector(0, 0.25, -0.5, 3, -3), vector(0, 0, 0, 0, 0)]
    const { value, gradient } = gradientOf(x, () => smoothL1(x, target, { beta: 0.5 }))
    assert.is(value, 0 + 0.0625 + 0.25 + 2.75 + 2.75)
    assert.equal(gradient, [0, 0.5, -1, 1, -1])
    const l1 = gradientOf(x, () => smoothL1(x, target, { beta: 0, divisor: 2 }))
    assert.is(l1.value, 6.75 / 2)
    assert.equal(l1.gradient, [0, 0.5, -0.5, 0.5, -0.5])
  })
})

test('binary cross-entropy is ln 2 at 0, keeps small values and does not overflow', () => {
  scope(() => {
    const value = (logit: number, target: number, dtype: 'f32' | 'f64' = 'f64'): number =>
      binaryCrossEntropy(Tensor.from([logit], [1], dtype), Tensor.from([target], [1], dtype)).item()
    assert.ok(Math.abs(value(0, 0.3) - Math.LN2) < 1e-15)
    assert.is(value(1000, 0), 1000)
    assert.is(value(1000, 1), 0)
    for (const dtype of ['f32', 'f64'] as const) assert.ok(Math.abs(value(-20, 0, dtype) / 2.0611536e-9 - 1) < 1e-6, dtype)
  })
})

test('a queue of many parts is one softmax, and what is made of it lies in less memory than the queue', () => {
  scope(() => {
    const [rows, dim, keys, temperature] = [3, 64, 40_001, 0.2]
    const random = new Random(5)
    const draw = (length: number): Float64Array => Float64Array.from({ length }, () => random.normal() / 8)
    const [query, positive, queue] = [draw(rows * dim), draw(rows * dim), draw(keys * dim)]
    const dot = (i: number, of: Float64Array, j: number): number => {
      let sum = 0
      for (let c = 0; c < dim; ++c) sum += query[i * dim + c]! * of[j * dim + c]!
      return sum
    }
    // The positive, then the queue.
    const logits = Array.from({ length: rows }, (_, i) =>
      [dot(i, positive, i), ...Array.from({ length: keys }, (_, j) => dot(i, queue, j))].map((similarity) => similarity / temperature),
    )
    const expected = crossEntropy(
      Tensor.from(logits.flat(), [rows, keys + 1], 'f64'),
      Tensor.from(new Int32Array(rows), [rows], 'i32'),
    ).item()
    for (const [dtype, bound] of [
      ['f64', 1e-12],
      ['f32', 1e-5],
      ['bf16', 1e-2],
    ] as const) {
      const as = (values: Float64Array): Tensor => Tensor.from(values, [values.length / dim, dim], dtype)
      const [q, k, all] = [as(query), as(positive), as(queue)]
      native.resetPeakMemory()
      const { live } = native.memory()
      const { value } = gradientOf(q, () => infoNce(q, k, all, temperature).loss)
      const taken = native.memory().peak - live
      assert.ok(Math.abs(value / expected - 1) < bound, `${dtype}: ${value} instead of ${expected}`)
      assert.ok(taken < all.bytes, `${dtype}: ${taken} bytes beside ${all.bytes} of the queue`)
    }
  })
})

test('what weighs 0 counts as nothing, in the value and in the gradient, whatever stands there', () => {
  scope(() => {
    for (const loss of [smoothL1, binaryCrossEntropy]) {
      const x = Tensor.from([1, 2, NaN, Infinity, -1, 3], [3, 2], 'f64')
      const target = Tensor.from([0, 1, 1, NaN, 1, 0], [3, 2], 'f64')
      const part = Tensor.from([1, 2, -1, 3], [2, 2], 'f64')
      const { value, gradient } = gradientOf(x, () => loss(x, target, { weight: vector(2, 0, 3) }))
      const expected = gradientOf(part, () =>
        loss(part, Tensor.from([0, 1, 1, 0], [2, 2], 'f64'), { weight: Tensor.from([2, 2, 3, 3], [2, 2], 'f64') }),
      )
      assert.is(value, expected.value)
      assert.equal(gradient, [...expected.gradient.slice(0, 2), 0, 0, ...expected.gradient.slice(2)])
    }
  })
})

test('a divisor is a number or a tensor, and no elements give 0', () => {
  scope(() => {
    const [x, target] = [vector(1, 2, 3), vector(0, 0, 0)]
    const number = gradientOf(x, () => smoothL1(x, target, { divisor: 4 }))
    assert.equal(
      gradientOf(x, () => smoothL1(x, target, { divisor: vector(4) })),
      number,
    )
    for (const loss of [smoothL1, binaryCrossEntropy]) {
      assert.is(loss(Tensor.zeros([0, 4]), Tensor.zeros([0, 4]), { divisor: 3 }).item(), 0)
      assert.is(loss(Tensor.zeros([0, 4]), Tensor.zeros([0, 4]), { weight: Tensor.zeros([0]) }).item(), 0)
    }
  })
})

test('wrong arguments are refused by name', () => {
  scope(() => {
    const x = Tensor.zeros([3, 2])
    throwsError(() => smoothL1(x, Tensor.zeros([2, 3])), 'SHAPE', /smoothL1: expected target \[3,2\]/)
    throwsError(() => smoothL1(x, x, { beta: -1 }), 'ARGUMENT', /smoothL1: expected a beta/)
    throwsError(() => smoothL1(x, x, { divisor: 0 }), 'ARGUMENT', /smoothL1: expected a positive divisor/)
    throwsError(() => smoothL1(x, x, { divisor: Tensor.zeros([2]) }), 'SHAPE', /smoothL1: expected a divisor of one element/)
    throwsError(() => binaryCrossEntropy(x, x, { weight: Tensor.zeros([2]) }), 'SHAPE', /binaryCrossEntropy: expected weight \[3\]/)
    throwsError(() => binaryCrossEntropy(x, Tensor.zeros([3, 2], 'f64')), 'DTYPE', /binaryCrossEntropy/)
    const tape = new Tape().watch([x])
    const loss = tape.record(() => smoothL1(Tensor.zeros([3, 2]), x))
    throwsError(() => tape.backward(loss, [x]), 'TAPE', /smoothL1: target and weight are constants/)
  })
})

const oracle = `
import json, sys, torch, torch.nn.functional as F
with open(sys.argv[1]) as file: c = json.load(file)
out = {}
for name in ("smooth", "l1", "entropy"):
    x = torch.tensor(c["x"], dtype=torch.float64, requires_grad=True)
    target, unit, weight = (torch.tensor(c[key], dtype=torch.float64) for key in ("target", "unit", "weight"))
    if name == "entropy": loss = F.binary_cross_entropy_with_logits(x, unit, weight=weight, reduction="sum")
    elif name == "l1": loss = (F.l1_loss(x, target, reduction="none") * weight).sum()
    else: loss = (F.smooth_l1_loss(x, target, beta=0.4, reduction="none") * weight).sum()
    loss.backward()
    out[name] = [loss.item(), *x.grad.tolist()]
for name, weight, ignored in (("plain", None, -100), ("ignored", None, 2), ("weighted", c["classes"], -100), ("both", c["classes"], 2)):
    x = torch.tensor(c["x"], dtype=torch.float64).view(-1, 5).requires_grad_()
    weight = weight and torch.tensor(weight, dtype=torch.float64)
    loss = F.cross_entropy(x, torch.tensor(c["labels"]), weight=weight, ignore_index=ignored)
    loss.backward()
    out[name] = [loss.item(), *x.grad.flatten().tolist()]
print(json.dumps(out))
`

test('rows of a cross-entropy that weigh 0 or are ignored leave it alone, whatever stands there; without any other it is NaN', () => {
  scope(() => {
    const x = Tensor.from([1, 2, NaN, Infinity, -1, 3], [3, 2], 'f64')
    const part = Tensor.from([1, 2, -1, 3], [2, 2], 'f64')
    const expected = gradientOf(part, () => crossEntropy(part, Tensor.from([0, 0], 'i32'), { weight: vector(5, 0) }))
    for (const [label, options] of [
      [1, { weight: vector(5, 0) }],
      [7, { weight: vector(5, 5), ignoreIndex: 7 }],
    ] as const) {
      const { value, gradient } = gradientOf(x, () => crossEntropy(x, Tensor.from([0, label, 0], 'i32'), options))
      assert.is(value, expected.value)
      assert.equal(gradient, [...expected.gradient.slice(0, 2), 0, 0, ...expected.gradient.slice(2)])
    }
    const none = gradientOf(part, () => crossEntropy(part, Tensor.from([1, 1], 'i32'), { weight: vector(5, 0) }))
    assert.ok(Number.isNaN(none.value))
    throwsError(() => crossEntropy(part, Tensor.from([0, 1], 'i32'), { weight: vector(1, 2, 3) }), 'SHAPE', /weight/, /f64\[3\]/)
  })
})

testWhere(hasTorch, noTorch, test, 'values and gradients are those of PyTorch', async () => {
  await withFolder((folder) => {
    const random = new Random(8)
    const draw = (value: () => number): number[] => Array.from({ length: 3000 }, value)
    const given = {
      x: draw(() => 3 * random.normal()),
      target: draw(() => random.normal()),
      unit: draw(() => random.uniform()),
      weight: draw(() => random.below(3)),
      classes: [0.5, 2, 0.25, 0, 3],
      labels: draw(() => random.below(5)).slice(0, 600),
    }
    const file = join(folder, 'given.json')
    writeFileSync(file, JSON.stringify(given))
    const expected = JSON.parse(runPython(oracle, [file])) as Record<string, number[]>
    scope(() => {
      const [x, target, unit, weight] = [given.x, given.target, given.unit, given.weight].map((values) => vector(...values))
      const labels = Tensor.from(given.labels, [600], 'i32')
      const rows = (): Tensor => reshape(x!, [600, 5])
      for (const [name, loss] of Object.entries({
        smooth: () => smoothL1(x!, target!, { beta: 0.4, weight }),
        l1: () => smoothL1(x!, target!, { beta: 0, weight }),
        entropy: () => binaryCrossEntropy(x!, unit!, { weight }),
        plain: () => crossEntropy(rows(), labels),
        ignored: () => crossEntropy(rows(), labels, { ignoreIndex: 2 }),
        weighted: () => crossEntropy(rows(), labels, { weight: vector(...given.classes) }),
        both: () => crossEntropy(rows(), labels, { weight: vector(...given.classes), ignoreIndex: 2 }),
      })) {
        const { value, gradient } = gradientOf(x!, loss)
        assert.ok(relativeDifference([value], [expected[name]![0]!]) < 1e-13, `${name}: the value`)
        assert.ok(relativeDifference(gradient, expected[name]!.slice(1)) < 1e-13, `${name}: the gradient`)
      }
    })
  })
})

test.run()
