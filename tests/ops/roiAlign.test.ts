/** RoIAlign: what its definition promises, and torchvision's values and gradients. */
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'

import fc from 'fast-check'
import * as assert from 'uvu/assert'

import { Tape } from '../../src/autograd/tape.js'
import { add, mul } from '../../src/ops/arithmetic.js'
import { conv2d } from '../../src/ops/conv2d.js'
import { mean } from '../../src/ops/reduce.js'
import { roiAlign, type RoiAlignOptions } from '../../src/ops/roiAlign.js'
import { withCompute } from '../../src/tensor/compute.js'
import { Random } from '../../src/tensor/random.js'
import { scope, Tensor } from '../../src/tensor/tensor.js'
import { relativeDifference } from '../support/gradients.js'
import { hasTorch, noTorch, runPython } from '../support/python.js'
import { suite, testWhere, throwsError, withFolder } from '../support/suite.js'
import { randomBoxes } from './cases/roiAlign.js'

const test = suite('roiAlign')
const boxesOf = (...boxes: number[][]): Tensor => Tensor.from(boxes.flat(), [boxes.length, 4], 'f64')
const images = (...index: number[]): Tensor => Tensor.from(Int32Array.from(index), [index.length], 'i32')
const seeds = fc.integer({ min: 0, max: 2 ** 30 })

/** A map [1, h, w, 1] by rows and columns. */
const mapOf = (h: number, w: number, value: (row: number, column: number) => number): Tensor =>
  Tensor.from(
    Float64Array.from({ length: h * w }, (_, i) => value(Math.floor(i / w), i % w)),
    [1, h, w, 1],
    'f64',
  )

test('a map that is linear in its positions gives the centres of the bins', () => {
  scope(() => {
    const x = mapOf(20, 30, (row, column) => 3 * row - 2 * column + 1)
    for (const samplingRatio of [0, 1, 2, 5]) {
      const y = roiAlign(x, boxesOf([16, 12, 80, 52]), images(0), { size: [4, 8], scale: 0.25, samplingRatio }).data()
      for (let p = 0; p < 4; ++p)
        for (let q = 0; q < 8; ++q) {
          const [row, column] = [3 - 0.5 + ((p + 0.5) * 10) / 4, 4 - 0.5 + ((q + 0.5) * 16) / 8]
          assert.ok(Math.abs(y[p * 8 + q]! - (3 * row - 2 * column + 1)) < 1e-12)
        }
    }
  })
})

test('a map and boxes that are moved together give the same bins, and so do boxes of another scale', () => {
  fc.assert(
    fc.property(seeds, fc.nat(3), fc.nat(3), fc.boolean(), (seed, down, right, aligned) => {
      scope(() => {
        const random = new Random(seed)
        const values = Float64Array.from({ length: 12 * 12 }, () => random.normal())
        // Inside of the smaller map by more than a cell, so that its border plays no part.
        const box = [random.uniform(1.6, 5), random.uniform(1.6, 5), random.uniform(5, 10), random.uniform(5, 10)]
        const options = { size: 3, aligned }
        const at = (row: number, column: number): number => values[row * 12 + column]!
        const y = roiAlign(mapOf(12, 12, at), boxesOf(box), images(0), options).data()
        const larger = mapOf(16, 16, (row, column) =>
          row < down || column < right || row - down > 11 || column - right > 11 ? 7 : at(row - down, column - right),
        )
        const moved = box.map((v, i) => v + (i % 2 === 0 ? right : down))
        assert.ok(relativeDifference(roiAlign(larger, boxesOf(moved), images(0), options).data(), y) < 1e-12)
        const scaled = box.map((v) => v * 16)
        assert.ok(
          relativeDifference(roiAlign(mapOf(12, 12, at), boxesOf(scaled), images(0), { ...options, scale: 1 / 16 }).data(), y) < 1e-12,
        )
      })
    }),
    { numRuns: 60 },
  )
})

test('the border is repeated for one cell, and nothing lies beyond it', () => {
  scope(() => {
    const x = mapOf(3, 3, () => 1)
    const value = (box: number[], samplingRatio = 1): number => roiAlign(x, boxesOf(box), images(0), { size: 1, samplingRatio }).item()
    // One sample in the middle of the box, whose position is less by a half.
    assert.is(value([-0.5, 1, -0.5, 1]), 1)
    assert.is(value([-0.6, 1, -0.6, 1]), 0)
    assert.is(value([3.5, 1, 3.5, 1]), 1)
    assert.is(value([3.6, 1, 3.6, 1]), 0)
    // Half of the samples lie outside.
    assert.is(value([-2.5, 1, 1.5, 1], 2), 0.5)
  })
})

test('boxes of no size have no samples of their own, places without a box and boxes far outside give 0', () => {
  scope(() => {
    const x = mapOf(5, 5, () => 2)
    const boxes = boxesOf([1, 1, 1, 4], [4, 1, 1, 4], [1, 1, 4, 4], [100, 100, 120, 120], [1, 1, 4, 4])
    const y = roiAlign(x, boxes, images(0, 0, -1, 0, 0), { size: 2 }).data()
    assert.equal([...y], [...Array<number>(16).fill(0), 2, 2, 2, 2])
    // Not aligned, a box has a cell at least.
    assert.equal([...roiAlign(x, boxesOf([1, 1, 1, 1]), images(0), { size: 1, aligned: false }).data()], [2])
  })
})

test('a box that is not finite gives NaN and sends no gradient; one that is far larger than the map ends', () => {
  scope(() => {
    const x = mapOf(5, 5, () => 2)
    for (const box of [
      [NaN, 1, 2, 2],
      [1, 1, Infinity, 2],
      [1, -1e30, 2, 1e30],
    ]) {
      const tape = new Tape().watch([x])
      const y = tape.record(() => roiAlign(x, boxesOf(box), images(0), { size: 1 }))
      assert.ok(Number.isNaN(y.item()))
      assert.equal([...tape.backward(y, [x], Tensor.full([1, 1, 1, 1], 1, 'f64'))[0]!.data()], Array<number>(25).fill(0))
    }
    // Along each side of 10^6 samples those at -1 .. 5: the border is repeated up to there.
    const y = roiAlign(x, boxesOf([-5e5, -5e5, 5e5, 5e5]), images(0), { size: 1 })
    assert.ok(Math.abs(y.item() - (2 * 49) / 1e12) < 1e-13, String(y.item()))
  })
})

test('regions that convolutions alone read are not kept, and values and gradients are the same bits', () => {
  const random = new Random(3)
  const step = (convolved: boolean): { results: number[][]; saved: number } =>
    scope(() => {
      const draws = new Random(7)
      const drawn = (...shape: number[]): Tensor =>
        Tensor.from(
          Float32Array.from({ length: shape.reduce((a, b) => a * b) }, () => draws.normal()),
          shape,
        )
      const [x, one, other] = [drawn(1, 9, 11, 8), drawn(4, 1, 1, 8), drawn(6, 3, 3, 8)]
      const boxes = Tensor.from(regions, [12, 4])
      const tape = new Tape().watch([x, one, other])
      const [y, z] = tape.record(() => {
        const bins = roiAlign(x, boxes, images(...Array<number>(12).fill(0)), { size: 7, convolved })
        return [conv2d(bins, one), conv2d(bins, other, undefined, { padding: 1 })]
      })
      const saved = tape.savedBytes
      const total = tape.record(() => add(mean(mul(y, y)), mean(mul(z, z))))
      return { results: [y, z, ...tape.backward(total, [x, one, other])].map((tensor) => [...tensor.data()]), saved }
    })
  const regions = randomBoxes(random, 12, 9, 11)
  const [kept, again] = [step(false), step(true)]
  assert.equal(again.results, kept.results)
  const bytes = 12 * 7 * 7 * 8 * 4
  assert.ok(again.saved <= kept.saved - bytes + 9 * 11 * 8 * 4, `${again.saved} bytes saved, ${kept.saved} where ${bytes} are kept`)
  assert.equal(
    withCompute({ fusion: 'pointwise' }, () => step(true)),
    withCompute({ fusion: 'pointwise' }, () => step(false)),
  )
})

test('no boxes, no images, and wrong arguments', () => {
  scope(() => {
    const x = mapOf(5, 5, () => 2)
    assert.equal(roiAlign(x, Tensor.zeros([0, 4], 'f64'), images(), { size: 3 }).shape, [0, 3, 3, 1])
    const none = Tensor.zeros([0, 5, 5, 2])
    assert.equal([...roiAlign(none, Tensor.zeros([1, 4]), images(-1), { size: 1 }).data()], [0, 0])
    throwsError(() => roiAlign(x, boxesOf([0, 0, 1, 1]), images(1), { size: 1 }), 'RANGE', /roiAlign: image 1 .*of 1 images/)
    throwsError(() => roiAlign(x, boxesOf([0, 0, 1, 1]), images(-2), { size: 1 }), 'RANGE', /roiAlign: image -2/)
    throwsError(() => roiAlign(x, boxesOf([0, 0, 1, 1]), images(0), { size: 0 }), 'ARGUMENT', /roiAlign: expected size/)
    throwsError(() => roiAlign(x, boxesOf([0, 0, 1, 1]), images(0, 0), { size: 1 }), 'SHAPE', /roiAlign: expected index \[1\]/)
    throwsError(() => roiAlign(x, Tensor.zeros([1, 5], 'f64'), images(0), { size: 1 }), 'SHAPE', /roiAlign: expected boxes \[1,4\]/)
    throwsError(() => roiAlign(x, Tensor.zeros([1, 4]), images(0), { size: 1 }), 'DTYPE', /roiAlign/)
    throwsError(() => roiAlign(x, boxesOf([0, 0, 1, 1]), images(0), { size: 1, scale: 0 }), 'ARGUMENT', /positive scale/)
    throwsError(() => roiAlign(x, boxesOf([0, 0, 1, 1]), images(0), { size: 1, samplingRatio: -1 }), 'ARGUMENT', /samplingRatio/)
  })
})

const oracle = `
import json, sys, torch, torchvision
with open(sys.argv[1]) as file: cases = json.load(file)
out = []
for c in cases:
    n, h, w, ch = c["shape"]
    x = torch.tensor(c["x"], dtype=torch.float64).reshape(n, h, w, ch).permute(0, 3, 1, 2).contiguous().requires_grad_()
    boxes = torch.tensor(c["boxes"], dtype=torch.float64).reshape(-1, 4)
    rois = torch.cat([torch.tensor(c["index"], dtype=torch.float64).reshape(-1, 1), boxes], 1)
    y = torchvision.ops.roi_align(x, rois, c["size"], c["scale"], c["samplingRatio"] or -1, c["aligned"])
    dy = torch.tensor(c["dy"], dtype=torch.float64).reshape(y.shape[0], *c["size"], ch).permute(0, 3, 1, 2)
    (y * dy).sum().backward()
    out.append([t.permute(0, 2, 3, 1).flatten().tolist() for t in (y.detach(), x.grad)])
print(json.dumps(out))
`

testWhere(hasTorch, noTorch, test, 'values and gradients are those of torchvision', async () => {
  await withFolder((folder) => {
    const random = new Random(5)
    const cases = Array.from({ length: 40 }, (_, i) => {
      const shape = [1 + random.below(2), 1 + random.below(12), 1 + random.below(12), 1 + random.below(20)]
      const [n, h, w, c] = shape as [number, number, number, number]
      const [count, scale] = [i === 0 ? 1 : 1 + random.below(12), [1, 0.25, 1 / 16][i % 3]!]
      const size: [number, number] = [1 + random.below(5), 1 + random.below(5)]
      const draw = (length: number): number[] => Array.from({ length }, () => random.normal())
      return {
        shape,
        x: draw(n * h * w * c),
        // torchvision takes no adaptive samples of a box that is turned over.
        boxes: [...randomBoxes(random, count, h / scale, w / scale)].map((v, k, all) => (k % 4 === 2 ? Math.max(v, all[k - 2]!) : v)),
        index: Array.from({ length: count }, () => random.below(n)),
        dy: draw(count * size[0] * size[1] * c),
        ...{ size, scale, samplingRatio: i % 4, aligned: i % 2 === 0 },
      }
    })
    const file = join(folder, 'cases.json')
    writeFileSync(file, JSON.stringify(cases))
    const expected = JSON.parse(runPython(oracle, [file])) as [number[], number[]][]
    scope(() =>
      cases.forEach(({ shape, x, boxes, index, dy, ...options }, i) => {
        const input = Tensor.from(x, shape, 'f64')
        const tape = new Tape().watch([input])
        const y = tape.record(() =>
          roiAlign(input, Tensor.from(boxes, [index.length, 4], 'f64'), images(...index), options as RoiAlignOptions),
        )
        const [dx] = tape.backward(y, [input], Tensor.from(dy, y.shape, 'f64'))
        assert.ok(relativeDifference(y.data(), expected[i]![0], 1) < 1e-12, `values of case ${i}`)
        assert.ok(relativeDifference(dx!.data(), expected[i]![1], 1) < 1e-12, `gradients of case ${i}`)
      }),
    )
  })
})

test.run()
