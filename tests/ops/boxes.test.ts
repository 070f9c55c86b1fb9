/** Boxes: overlaps, differences, order and suppression; what their definitions promise, and torchvision's results. */
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'

import fc from 'fast-check'
import * as assert from 'uvu/assert'

import { boxIou, clipBoxes, decodeBoxes, encodeBoxes } from '../../src/ops/boxes.js'
import { nms } from '../../src/ops/nms.js'
import { sort, topK } from '../../src/ops/topK.js'
import { Random } from '../../src/tensor/random.js'
import { type FloatDType, scope, Tensor } from '../../src/tensor/tensor.js'
import { relativeDifference } from '../support/gradients.js'
import { hasTorch, noTorch, runPython } from '../support/python.js'
import { suite, testWhere, throwsError, withFolder } from '../support/suite.js'

const test = suite('boxes')
const seeds = fc.integer({ min: 0, max: 2 ** 30 })
const dtypes = fc.constantFrom<FloatDType>('f32', 'f64')
const integers = (...values: number[]): Tensor => Tensor.from(Int32Array.from(values), [values.length], 'i32')

/** Boxes of some size in a field of 100, as near each other as `spread` says. */
function draw(random: Random, count: number, spread = 100): Float64Array {
  const boxes = new Float64Array(4 * count)
  for (let r = 0; r < count; ++r) {
    const [x, y] = [random.uniform(0, spread), random.uniform(0, spread)]
    boxes.set([x, y, x + random.uniform(1, 30), y + random.uniform(1, 30)].map(Math.fround), 4 * r)
  }
  return boxes
}
const boxesOf = (values: ArrayLike<number>, dtype: FloatDType = 'f64'): Tensor => Tensor.from(values, [values.length / 4, 4], dtype)

test('a box overlaps itself by exactly 1, others by the same in either order, and what has no area by 0', () => {
  fc.assert(
    fc.property(seeds, dtypes, (seed, dtype) => {
      scope(() => {
        const boxes = boxesOf(draw(new Random(seed), 12), dtype)
        const iou = boxIou(boxes, boxes).data()
        for (let i = 0; i < 12; ++i) {
          if (dtype === 'f32') assert.is(iou[i * 13], 1)
          for (let j = 0; j < 12; ++j) {
            assert.is(iou[i * 12 + j], iou[j * 12 + i])
            assert.ok(iou[i * 12 + j]! >= 0 && iou[i * 12 + j]! <= 1 + 1e-15)
          }
        }
      })
    }),
  )
  scope(() => {
    const degenerate = boxesOf([1, 1, 1, 1, 1, 1, 1, 5, 3, 3, 2, 2, 0, 0, 4, 4])
    assert.equal([...boxIou(degenerate, degenerate).data()], [...Array<number>(15).fill(0), 1])
    assert.equal([...boxIou(boxesOf([0, 0, 2, 2]), boxesOf([1, 0, 3, 2, 2, 0, 4, 2])).data()], [1 / 3, 0])
    assert.equal(boxIou(Tensor.zeros([3, 0, 4]), Tensor.zeros([5, 4])).shape, [3, 0, 5])
  })
})

test('what is decoded is what was encoded, unless it grew beyond the bound', () => {
  fc.assert(
    fc.property(seeds, dtypes, fc.constantFrom<[number, number, number, number]>([1, 1, 1, 1], [10, 10, 5, 5]), (seed, dtype, weights) => {
      scope(() => {
        const random = new Random(seed)
        const [boxes, targets] = [boxesOf(draw(random, 20), dtype), boxesOf(draw(random, 20), dtype)]
        const again = decodeBoxes(encodeBoxes(boxes, targets, { weights }), boxes, { weights })
        assert.ok(relativeDifference(again.data(), targets.data()) < (dtype === 'f64' ? 1e-13 : 1e-5))
        assert.equal([...encodeBoxes(boxes, boxes, { weights }).data()].map(Math.abs), Array<number>(80).fill(0))
      })
    }),
  )
  scope(() => {
    const box = boxesOf([0, 0, 16, 16])
    const size = (delta: number, options = {}): number => {
      const [x1, , x2] = decodeBoxes(Tensor.from([0, 0, delta, 0], [1, 4], 'f64'), box, options).data()
      return x2! - x1!
    }
    assert.ok(Math.abs(size(100) - 1000) < 1e-9)
    assert.ok(Math.abs(size(5 * Math.log(2), { weights: [10, 10, 5, 5] }) - 32) < 1e-9)
    assert.ok(size(-100) < 1e-30 && Math.abs(size(-100, { bothSides: true }) - 0.256) < 1e-9)
    assert.ok(Math.abs(size(6, { bound: Infinity }) - 16 * Math.exp(6)) < 1e-9)
  })
})

test('several differences from each box are those of each alone', () => {
  scope(() => {
    const random = new Random(3)
    const deltas = Tensor.from(
      Float64Array.from({ length: 5 * 3 * 4 }, () => random.normal()),
      [5, 3, 4],
      'f64',
    )
    const boxes = draw(random, 5)
    const each = decodeBoxes(deltas, boxesOf(boxes)).data()
    const repeated = Float64Array.from({ length: 60 }, (_, i) => boxes[Math.floor(i / 12) * 4 + (i % 4)]!)
    assert.equal(each, decodeBoxes(deltas.alias([15, 4]), boxesOf(repeated)).data())
    assert.equal(decodeBoxes(Tensor.zeros([0, 7, 4]), Tensor.zeros([0, 4])).shape, [0, 7, 4])
  })
})

test('boxes are clipped to their own image', () => {
  scope(() => {
    const boxes = Tensor.from([-5, -5, 200, 200, 10, 20, 30, 40], [2, 1, 4])
    assert.equal([...clipBoxes(boxes, [50, 80]).data()], [0, 0, 80, 50, 10, 20, 30, 40])
    assert.equal([...clipBoxes(boxes, Tensor.from([50, 80, 30, 15], [2, 2])).data()], [0, 0, 80, 50, 10, 20, 15, 30])
    throwsError(() => clipBoxes(boxes, Tensor.zeros([3, 2])), 'SHAPE', /clipBoxes: expected size \[2,2\]/)
    throwsError(() => clipBoxes(boxes, [-1, 2]), 'ARGUMENT', /clipBoxes: expected a size/)
  })
})

test('topK is the beginning of the sorted row: descending, equal ones by index, NaN first, -0 as 0', () => {
  const special = [NaN, Infinity, -Infinity, 0, -0, 1, 1e-40]
  const values = fc.oneof(fc.constantFrom(...special), fc.integer({ min: -3, max: 3 }), fc.float())
  fc.assert(
    fc.property(
      fc.array(values, { minLength: 1, maxLength: 60 }),
      fc.double({ min: 0, max: 1, noNaN: true }),
      dtypes,
      (row, part, dtype) => {
        scope(() => {
          const k = Math.floor(part * row.length)
          const x = Tensor.from([...row, ...row.toReversed()], [2, row.length], dtype)
          const [sorted, first] = [sort(x), topK(x, k)]
          const given = x.data()
          for (const r of [0, 1]) {
            const index = [...sorted.index.data()].slice(r * row.length, (r + 1) * row.length)
            assert.equal(
              index.toSorted((a, b) => a - b),
              row.map((_, i) => i),
            )
            const at = (i: number): number => given[r * row.length + i]!
            const key = (v: number): number => (Number.isNaN(v) ? 1e300 : v === Infinity ? 1e299 : v)
            const expected = row.map((_, i) => i).toSorted((a, b) => (key(at(b)) > key(at(a)) ? 1 : key(at(b)) < key(at(a)) ? -1 : a - b))
            assert.equal(index, expected)
            assert.equal([...first.index.data()].slice(r * k, (r + 1) * k), index.slice(0, k))
            assert.equal([...sorted.values.data()].slice(r * row.length, (r + 1) * row.length), index.map(at))
          }
        })
      },
    ),
  )
  scope(() => {
    assert.equal(topK(Tensor.zeros([3, 0]), 0).values.shape, [3, 0])
    throwsError(() => topK(Tensor.zeros([2, 3]), 4), 'SHAPE', /topK: expected k of at most 3/)
    throwsError(() => topK(Tensor.zeros([]), 0), 'SHAPE', /rank 1/)
  })
})

/** By its definition, one pair after another. */
function plainNms(boxes: ArrayLike<number>, scores: ArrayLike<number>, threshold: number, group?: ArrayLike<number>): number[] {
  const order = Array.from(scores, (_, i) => i).toSorted((a, b) => scores[b]! - scores[a]! || a - b)
  const kept: number[] = []
  const overlap = (i: number, j: number): number => {
    const side = (k: number): number =>
      Math.min(boxes[i * 4 + k + 2]!, boxes[j * 4 + k + 2]!) - Math.max(boxes[i * 4 + k]!, boxes[j * 4 + k]!)
    const area = (b: number): number => (boxes[b * 4 + 2]! - boxes[b * 4]!) * (boxes[b * 4 + 3]! - boxes[b * 4 + 1]!)
    const common = Math.max(0, side(0)) * Math.max(0, side(1))
    return common / (area(i) + area(j) - common)
  }
  for (const j of order) {
    if ((group?.[j] ?? 0) < 0) continue
    if (!kept.some((i) => (group?.[i] ?? 0) === (group?.[j] ?? 0) && overlap(i, j) > threshold)) kept.push(j)
  }
  return kept
}

test('suppression is that of its definition, alone or among other images and groups, with any limit', () => {
  fc.assert(
    fc.property(
      seeds,
      fc.nat(80),
      fc.integer({ min: 1, max: 4 }),
      fc.constantFrom(0, 0.3, 0.5, 0.7),
      dtypes,
      (seed, n, groups, threshold, dtype) => {
        scope(() => {
          const random = new Random(seed)
          const boxes = draw(random, 2 * n, 40)
          // Few values: ties.
          const scores = Float64Array.from({ length: 2 * n }, () => random.below(20))
          const group = Int32Array.from({ length: 2 * n }, () => random.below(groups + 1) - 1)
          const limit = random.below(n + 3)
          const { index, count } = nms(Tensor.from(boxes, [2, n, 4], dtype), Tensor.from(scores, [2, n], dtype), threshold, {
            group: Tensor.from(group, [2, n], 'i32'),
            limit,
          })
          for (const b of [0, 1]) {
            const kept = plainNms(boxes.slice(b * 4 * n), scores.slice(b * n, (b + 1) * n), threshold, group.slice(b * n))
            const expected = kept.slice(0, limit)
            assert.is(count.data()[b], expected.length)
            assert.equal([...index.data()].slice(b * limit, (b + 1) * limit), [
              ...expected,
              ...Array<number>(limit - expected.length).fill(-1),
            ])
            // What is kept suppresses nothing of it.
            assert.equal(
              plainNms(
                kept.flatMap((i) => [...boxes.slice((b * n + i) * 4, (b * n + i) * 4 + 4)]),
                kept.map((i) => scores[b * n + i]!),
                threshold,
                kept.map((i) => group[b * n + i]!),
              ),
              kept.map((_, i) => i),
            )
          }
        })
      },
    ),
    { numRuns: 60 },
  )
})

test('an overlap of exactly the threshold survives, and boxes without area do', () => {
  scope(() => {
    const boxes = boxesOf([0, 0, 2, 2, 0, 0, 2, 1, 0, 0, 2, 2, 5, 5, 5, 5, 5, 5, 5, 5], 'f32')
    const scores = Tensor.from([5, 4, 3, 2, 1], [5])
    assert.equal([...nms(boxes, scores, 0.5).index.data()], [0, 1, 3, 4, -1])
    assert.equal([...nms(boxes, scores, 0.49).index.data()], [0, 3, 4, -1, -1])
    assert.equal([...nms(boxes, scores, 1).index.data()], [0, 1, 2, 3, 4])
    assert.is(nms(Tensor.zeros([0, 4]), Tensor.zeros([0]), 0.5).count.item(), 0)
    assert.equal([...nms(boxes, scores, 0.5, { group: integers(-1, -1, -1, -1, -1), limit: 2 }).index.data()], [-1, -1])
    throwsError(() => nms(boxes, Tensor.zeros([4]), 0.5), 'SHAPE', /nms: expected boxes \[4,4\]/)
    throwsError(() => nms(boxes, scores, 2), 'ARGUMENT', /nms: expected a threshold/)
    throwsError(() => nms(boxes, scores, 0.5, { group: integers(1) }), 'SHAPE', /nms: expected group \[5\]/)
  })
})

test('2,000 boxes, many of them in one place, with one thread and with several', () => {
  scope(() => {
    const random = new Random(11)
    const boxes = draw(random, 2000, 150)
    const scores = Float64Array.from({ length: 2000 }, () => Math.fround(random.normal()))
    for (const dtype of ['f32', 'f64'] as const) {
      const { index, count } = nms(boxesOf(boxes, dtype), Tensor.from(scores, [2000], dtype), 0.5)
      assert.equal([...index.data()].slice(0, count.item()), plainNms(boxes, scores, 0.5))
    }
  })
})

const oracle = `
import json, math, sys, torch, torchvision
from torchvision.models.detection._utils import BoxCoder
with open(sys.argv[1]) as file: c = json.load(file)
boxes = torch.tensor(c["boxes"], dtype=torch.float64).reshape(-1, 4)
others = torch.tensor(c["others"], dtype=torch.float64).reshape(-1, 4)
scores = torch.tensor(c["scores"], dtype=torch.float64)
group = torch.tensor(c["group"])
coder = BoxCoder((10., 10., 5., 5.))
deltas = torch.tensor(c["deltas"], dtype=torch.float64).reshape(-1, 8)
json.dump({
    "iou": torchvision.ops.box_iou(boxes, others).flatten().tolist(),
    "nms": torchvision.ops.nms(boxes, scores, 0.5).tolist(),
    "batched": torchvision.ops.batched_nms(boxes, scores, group, 0.5).tolist(),
    "encoded": coder.encode_single(others, boxes).flatten().tolist(),
    "decoded": coder.decode_single(deltas, boxes).flatten().tolist(),
    "clipped": torchvision.ops.clip_boxes_to_image(boxes, (60, 90)).flatten().tolist(),
    "top": torch.topk(scores, 100).indices.tolist(),
}, sys.stdout)
`

testWhere(hasTorch, noTorch, test, 'overlaps, differences, order and suppression are those of torchvision', async () => {
  await withFolder((folder) => {
    const random = new Random(21)
    const n = 400
    const given = {
      boxes: [...draw(random, n)],
      others: [...draw(random, n)],
      scores: Array.from({ length: n }, () => random.normal()),
      group: Array.from({ length: n }, () => random.below(5)),
      deltas: Array.from({ length: n * 8 }, () => 10 * random.normal()),
    }
    const file = join(folder, 'given.json')
    writeFileSync(file, JSON.stringify(given))
    const expected = JSON.parse(runPython(oracle, [file])) as Record<
      'iou' | 'nms' | 'batched' | 'encoded' | 'decoded' | 'clipped' | 'top',
      number[]
    >
    scope(() => {
      const [boxes, others] = [boxesOf(given.boxes), boxesOf(given.others)]
      const scores = Tensor.from(given.scores, [n], 'f64')
      const weights = [10, 10, 5, 5] as const
      const close = (name: keyof typeof expected, actual: Tensor): void =>
        assert.ok(
          relativeDifference(actual.data(), expected[name]) < 1e-12,
          `${name}: ${relativeDifference(actual.data(), expected[name])}`,
        )
      close('iou', boxIou(boxes, others))
      close('encoded', encodeBoxes(boxes, others, { weights }))
      close('decoded', decodeBoxes(Tensor.from(given.deltas, [n, 2, 4], 'f64'), boxes, { weights }))
      close('clipped', clipBoxes(boxes, [60, 90]))
      const kept = (group?: Tensor): number[] => {
        const { index, count } = nms(boxes, scores, 0.5, { group })
        return [...index.data()].slice(0, count.item())
      }
      assert.equal(kept(), expected.nms)
      assert.equal(kept(integers(...given.group)), expected.batched)
      assert.equal([...topK(scores, 100).index.data()], expected.top)
    })
  })
})

test.run()
