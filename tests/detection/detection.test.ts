import fc from 'fast-check'
import * as assert from 'uvu/assert'

import { type Box, boxArea, boxHeight, boxWidth } from '../../src/data/boxes.js'
import { boxInView, detectionSize, drawBoxView } from '../../src/data/boxView.js'
import { cellAnchors, gridAnchors } from '../../src/detection/anchors.js'
import { assign, sample } from '../../src/detection/assign.js'
import { clipBox, decodeBox, encodeBox } from '../../src/detection/coding.js'
import { detectionStyles } from '../../src/detection/styles.js'
import { sampleAnchors, sampleRegions, sampling } from '../../src/detection/targets.js'
import { Random } from '../../src/tensor/random.js'
import { suite } from '../support/suite.js'

const test = suite('parts of a detector')

const side = fc.double({ min: 0.5, max: 200, noNaN: true })
const place = fc.double({ min: -50, max: 300, noNaN: true })
const boxes = fc.tuple(place, place, side, side).map(([x, y, w, h]): Box => [x, y, x + w, y + h])
const weights = [[1, 1, 1, 1] as const, sampling.regions.weights]
const near = (actual: ArrayLike<number>, expected: ArrayLike<number>, bound = 1e-9): void => {
  assert.is(actual.length, expected.length)
  for (let i = 0; i < expected.length; ++i)
    assert.ok(Math.abs(actual[i]! - expected[i]!) <= bound * (1 + Math.abs(expected[i]!)), `${actual[i]} instead of ${expected[i]} at ${i}`)
}

test('deltas of a box lead back to it, do not depend on where both lie or on a common scale, and grow by 1000/16 at most', () => {
  fc.assert(
    fc.property(
      boxes,
      boxes,
      fc.constantFrom(...weights),
      fc.constantFrom('upper' as const, 'both' as const),
      (box, target, each, clamp) => {
        const deltas = encodeBox(box, target, each)
        const ratios = [boxWidth(target) / boxWidth(box), boxHeight(target) / boxHeight(box)]
        if (ratios.every((ratio) => ratio < 60 && ratio > 1 / 60)) near(decodeBox(box, deltas, each, clamp), target, 1e-7)
        const moved = (of: Box): Box => [3 * of[0] + 7, 3 * of[1] - 9, 3 * of[2] + 7, 3 * of[3] - 9]
        near(encodeBox(moved(box), moved(target), each), deltas, 1e-6)
      },
    ),
  )
  const grown = decodeBox([0, 0, 16, 16], [0, 0, 99, -99], [1, 1, 1, 1], 'upper')
  near([boxWidth(grown), boxHeight(grown)], [1000, 0], 1e-9)
  near([boxHeight(decodeBox([0, 0, 16, 16], [0, 0, 99, -99], [1, 1, 1, 1], 'both'))], [16 * (16 / 1000)])
})

test('anchors have their area and ratio, are the same at every cell, and the orders hold the same ones', () => {
  const options = { sizes: [32, 64, 128], ratios: [0.5, 1, 2], stride: 16, order: 'size' as const }
  const cell = cellAnchors(options)
  for (let a = 0; a < 9; ++a) {
    const box = [...cell.subarray(4 * a, 4 * a + 4)] as unknown as Box
    near([boxArea(box), boxHeight(box) / boxWidth(box)], [options.sizes[Math.floor(a / 3)]! ** 2, options.ratios[a % 3]!])
    near([box[0] + box[2], box[1] + box[3]], [0, 0])
    near(
      cellAnchors({ ...options, order: 'ratio' }).subarray(
        4 * ((a % 3) * 3 + Math.floor(a / 3)),
        4 * ((a % 3) * 3 + Math.floor(a / 3)) + 4,
      ),
      box,
    )
  }
  const grid = gridAnchors(options, 3, 5)
  assert.is(grid.length, 3 * 5 * 9 * 4)
  const at = (y: number, x: number, i: number): number => grid[(y * 5 + x) * 36 + i]!
  for (let i = 0; i < 36; ++i) assert.is(at(2, 4, i), cell[i]! + (i % 2 === 0 ? 64 : 32))
})

const flat = (list: readonly Box[]): Float64Array => Float64Array.from(list.flatMap((box) => [...box]))
const share = (a: Box, b: Box): number => {
  const [w, h] = [Math.min(a[2], b[2]) - Math.max(a[0], b[0]), Math.min(a[3], b[3]) - Math.max(a[1], b[1])]
  return w > 0 && h > 0 ? (w * h) / (boxArea(a) + boxArea(b) - w * h) : 0
}
const coarse = fc.tuple(fc.nat(12), fc.nat(12), fc.integer({ min: 1, max: 8 }), fc.integer({ min: 1, max: 8 }))
const coarseBox = coarse.map(([x, y, w, h]): Box => [8 * x, 8 * y, 8 * (x + w), 8 * (y + h)])

test('assignment, read off the matrix of overlaps', () => {
  fc.assert(
    fc.property(fc.array(coarseBox, { minLength: 1, maxLength: 30 }), fc.array(coarseBox, { maxLength: 5 }), (candidates, objects) => {
      const matrix = candidates.map((box) => objects.map((object) => share(box, object)))
      const most = (values: readonly number[]): number => values.reduce((a, b) => Math.max(a, b), 0)
      for (const { anchors: rules } of Object.values(detectionStyles)) {
        const { labels, matched } = assign(flat(candidates), objects, rules)
        candidates.forEach((_, i) => {
          const row = matrix[i]!
          const best = most(row)
          const owed = objects.flatMap((__, g) => {
            const top = most(matrix.map((each) => each[g]!))
            return top > 0 && row[g] === top && (rules.lowQuality === 'best' || top >= rules.low) ? [g] : []
          })
          assert.is(labels[i], owed.length > 0 || best >= rules.high ? 1 : best < rules.low ? 0 : -1)
          if (labels[i] !== 1) return
          assert.is(matched[i], rules.lowQuality === 'reassigned' && owed.length > 0 ? owed.at(-1) : row.indexOf(best))
        })
      }
    }),
  )
})

test('of an image without objects everything is background, and boxes that do not take part are left out', () => {
  const candidates = flat([
    [0, 0, 8, 8],
    [-1, 0, 8, 8],
  ])
  assert.equal([...assign(candidates, [], detectionStyles.detectron2.anchors).labels], [0, 0])
  const { labels } = assign(candidates, [[-1, 0, 8, 8]], detectionStyles.mmdet.anchors, (i) => i === 0)
  assert.equal([...labels], [1, -1])
})

test('mmdetection’s anchors keep out of the padding: inside of an image, none has its cell behind the image’s own padded size', () => {
  const style = detectionStyles.mmdet
  const options = { sizes: [8, 16, 40], ratios: [0.5, 1, 2], stride: 16, order: style.anchorOrder }
  const length = fc.integer({ min: 1, max: 200 })
  let drawn = 0
  fc.assert(
    fc.property(length, length, fc.nat(3), fc.nat(3), fc.array(coarseBox, { maxLength: 3 }), (height, width, below, beside, objects) => {
      const padded = (side: number): number => Math.ceil(side / style.padTo) * style.padTo
      // The batch is as large as its largest image: this one has more padding than its own.
      const [rows, columns] = [padded(height) / 16 + 2 * below, padded(width) / 16 + 2 * beside]
      const image = { height, width, objects: objects.map((box) => ({ box, label: 0 })) }
      const { indices } = sampleAnchors(new Random(1), gridAnchors(options, rows, columns), image, style)
      for (const at of indices) {
        const cell = Math.floor(at / 9)
        assert.ok(Math.floor(cell / columns) < Math.ceil(padded(height) / 16) && cell % columns < Math.ceil(padded(width) / 16))
      }
      drawn += indices.length
    }),
  )
  assert.ok(drawn > 1000, `${drawn}`)
})

test('a sample has no box twice, objects first and at most their share, none that is left out, and is drawn evenly', () => {
  fc.assert(
    fc.property(fc.array(fc.constantFrom(-1, 0, 1), { maxLength: 200 }), fc.integer({ min: 1, max: 64 }), fc.nat(), (list, count, seed) => {
      const labels = Int8Array.from(list)
      const { indices, positives } = sample(new Random(seed), { labels, matched: new Int32Array(list.length) }, count, 0.25)
      const [ones, zeros] = [list.filter((label) => label === 1).length, list.filter((label) => label === 0).length]
      assert.is(positives, Math.min(ones, Math.floor(count / 4)))
      assert.is(indices.length, positives + Math.min(zeros, count - positives))
      assert.is(new Set(indices).size, indices.length)
      indices.forEach((at, k) => assert.is(labels[at], k < positives ? 1 : 0))
    }),
  )
  const drawn = new Float64Array(20)
  for (let seed = 0; seed < 2000; ++seed)
    for (const at of sample(new Random(seed, 9), { labels: new Int8Array(20), matched: new Int32Array(20) }, 5, 0.5).indices)
      drawn[at]! += 1
  // 500 of each are expected; the standard deviation is 19.
  assert.ok(
    drawn.every((count) => Math.abs(count - 500) < 100),
    String(drawn),
  )
})

test('regions hold the objects themselves beside the proposals, and nothing where an image has neither', () => {
  const object = { box: [10, 10, 40, 50] as const, label: 3 }
  const image = { height: 100, width: 100, objects: [object] }
  const drawn = sampleRegions(new Random(1), flat([[60, 60, 90, 90]]), image, 20, detectionStyles.detectron2)
  assert.equal([...drawn.labels], [3, 20])
  near(drawn.boxes, [...object.box, 60, 60, 90, 90])
  assert.equal([...drawn.objects], [0])
  assert.is(sampleRegions(new Random(1), new Float64Array(0), { ...image, objects: [] }, 20, detectionStyles.detectron2).labels.length, 0)
})

test('an overlap of exactly 0.7 is an object’s, one of 0.3 is neither, and of two objects alike the first is meant', () => {
  const objects: Box[] = [
    [0, 0, 10, 10],
    [0, 0, 10, 10],
  ]
  const list: Box[] = [
    [0, 0, 7, 10],
    [0, 0, 3, 10],
    [0, 0, 2.9, 10],
    [0, 0, 10, 10],
  ]
  const { labels, matched } = assign(flat(list), objects, detectionStyles.detectron2.anchors)
  assert.equal([...labels], [1, -1, 0, 1])
  assert.equal([matched[0], matched[3]], [0, 0])
})

test('sizes of images for the network: the short side, or less where the long one is limited', () => {
  // The examples of both code bases.
  for (const rounding of ['detectron2', 'mmdet'] as const) {
    assert.equal(detectionSize({ height: 375, width: 500 }, 800, 1333, rounding), { height: 800, width: 1067 })
    assert.equal(detectionSize({ height: 427, width: 640 }, 800, 1333, rounding), { height: 800, width: 1199 })
    assert.equal(detectionSize({ height: 333, width: 500 }, 600, 1333, rounding), { height: 600, width: 901 })
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 4000 }), fc.integer({ min: 1, max: 10000 }), (height, width) => {
        const size = detectionSize({ height, width }, 800, 1333, rounding)
        assert.ok(Math.max(size.height, size.width) <= 1333 && Math.min(size.height, size.width) >= 1)
        assert.ok(Math.min(size.height, size.width) === 800 || Math.max(size.height, size.width) === 1333)
      }),
    )
  }
  assert.equal(detectionSize({ height: 100, width: 248 }, 544, 1333, 'detectron2').height, 537)
  assert.equal(detectionSize({ height: 100, width: 248 }, 544, 1333, 'mmdet').height, 538)
})

test('a box keeps its share of the image in a view, mirrored twice it is itself, and outside of the image it is gone', () => {
  const original = { height: 120, width: 200 }
  fc.assert(
    fc.property(coarseBox, fc.nat(), (box, seed) => {
      const inside = clipBox(box, original)
      if (!(boxArea(inside) > 1)) return
      const view = drawBoxView(new Random(seed), original, { short: [60, 90, 240], long: 300 }, 'detectron2')
      const placed = boxInView(box, original, view)!
      near([boxArea(placed) / (view.height * view.width)], [boxArea(inside) / (120 * 200)], 1e-9)
      const back = boxInView(placed, view, { ...original, flip: view.flip })!
      near(back, inside, 1e-9)
    }),
  )
  assert.is(boxInView([300, 0, 400, 50], original, { ...original, flip: false }), undefined)
})

test.run()
