/** Run lengths and polygons of masks: COCO's rules, bit for bit. */
import fc from 'fast-check'
import * as assert from 'uvu/assert'

import { maskRuns } from '../../src/data/instanceMasks.js'
import { type Polygon, polygonMask } from '../../src/data/polygons.js'
import {
  decodeMask,
  encodeMask,
  maskArea,
  maskBounds,
  readRuns,
  type RunLengths,
  sharedArea,
  uniteMasks,
  writeRuns,
} from '../../src/data/runLengths.js'
import { Random } from '../../src/tensor/random.js'
import { hasCocoTools, noCocoTools, runCocoTools } from '../support/cocoTools.js'
import { processorTime } from '../support/processorTime.js'
import { suite, testWhere } from '../support/suite.js'

const test = suite('masks')

interface Bitmap {
  height: number
  width: number
  pixels: Uint8Array
}
const side = fc.integer({ min: 1, max: 12 })
/** Bitmaps with runs that pass the ends of columns as often as not. */
const bitmap: fc.Arbitrary<Bitmap> = fc
  .tuple(side, side, fc.constantFrom(0, 0.1, 0.5, 0.9, 1), fc.integer())
  .map(([height, width, share, seed]) => {
    const random = new Random(seed, 1)
    return { height, width, pixels: Uint8Array.from({ length: height * width }, () => Number(random.uniform() < share)) }
  })
const runsOf = ({ pixels, height, width }: Bitmap): RunLengths => encodeMask(pixels, height, width)

test('the string of runs is COCO’s', () => {
  for (const [counts, text] of [
    [[12], '<'],
    [[0, 12], '0<'],
    [[64], 'P2'],
    [[17, 1, 7, 2, 6, 3, 28], 'a0171O1f0'],
  ] as const) {
    assert.is(writeRuns(Uint32Array.from(counts)), text)
    assert.equal(readRuns(text), counts)
  }
  assert.is(readRuns('a'), undefined, 'it ends within a number')
  assert.is(readRuns(' '), undefined, 'no character of it')
})

test('a mask is read back from its runs, and runs from their string; area and bounds are those of the pixels', () => {
  fc.assert(
    fc.property(bitmap, (map) => {
      const runs = runsOf(map)
      const { height, width, pixels } = map
      assert.equal(decodeMask(runs), pixels)
      assert.equal(readRuns(writeRuns(runs.counts)), [...runs.counts])
      assert.ok(runs.counts.every((length, i) => i === 0 || length > 0))
      const set = Array.from(pixels.keys()).filter((i) => pixels[i] === 1)
      assert.is(maskArea(runs), set.length)
      const [xs, ys] = [set.map((i) => i % width), set.map((i) => Math.floor(i / width))]
      const [x, y] = [Math.min(...xs), Math.min(...ys)]
      assert.equal(maskBounds(runs), set.length === 0 ? [0, 0, 0, 0] : [x, y, Math.max(...xs) - x + 1, Math.max(...ys) - y + 1])
      assert.is(
        height * width,
        runs.counts.reduce((a, b) => a + b),
      )
    }),
  )
})

test('union and shared area are those of the pixels', () => {
  fc.assert(
    fc.property(bitmap, fc.integer(), (a, seed) => {
      const random = new Random(seed, 2)
      const b = { ...a, pixels: a.pixels.map(() => random.below(2)) }
      const [first, second] = [runsOf(a), runsOf(b)]
      assert.equal(uniteMasks([first, second]), runsOf({ ...a, pixels: a.pixels.map((value, i) => value | b.pixels[i]!) }))
      assert.is(sharedArea(first, second), a.pixels.filter((value, i) => value === 1 && b.pixels[i] === 1).length)
    }),
  )
})

const box = (x1: number, y1: number, x2: number, y2: number): number[] => [x1, y1, x1, y2, x2, y2, x2, y1]
/** The ranges of columns and rows of a rectangle of pixels. */
const rectangle = (map: Uint8Array, width: number): [number, number, number, number] => {
  const [x, y, w, h] = maskBounds(encodeMask(map, map.length / width, width))
  assert.is(
    map.reduce((a, b) => a + b),
    w * h,
  )
  return [x, x + w - 1, y, y + h - 1]
}

test('polygons are drawn by COCO’s rule: columns by their centres, rows by the boundary on a grid of a fifth of a pixel', () => {
  assert.equal(rectangle(decodeMask(polygonMask(box(1, 2, 4, 6), 8, 8)), 8), [1, 3, 2, 5])
  assert.equal(rectangle(decodeMask(polygonMask(box(1.4, 2.5, 4.6, 5.5), 8, 8)), 8), [1, 4, 3, 5])
  for (const outside of [box(-9, 1, -2, 4), box(9, 1, 20, 4), box(1, -9, 4, -2), box(1, 9, 4, 20)])
    assert.equal([...polygonMask(outside, 8, 8).counts], [64])
})

test('a polygon is the same from any of its corners, either way around', () => {
  const corner = fc.tuple(fc.integer({ min: -40, max: 200 }), fc.integer({ min: -40, max: 200 }))
  fc.assert(
    fc.property(fc.array(corner, { minLength: 3, maxLength: 9 }), (corners) => {
      const runs = (some: number[][]): number[] => [
        ...polygonMask(
          some.flat().map((value) => value / 4),
          30,
          40,
        ).counts,
      ]
      const expected = runs(corners)
      assert.equal(runs([...corners.slice(1), corners[0]!]), expected)
      assert.equal(runs([...corners].reverse()), expected)
    }),
  )
})

test('far corners cost nothing, and a polygon over all of the image is all of it', () => {
  const took = processorTime()
  assert.equal([...polygonMask(box(-1e8, -1e8, 1e8, 1e8), 480, 640).counts], [0, 480 * 640])
  polygonMask([-1e8, 5, 1e8, 7, 3, 1e8], 480, 640)
  assert.ok(took() < 0.5, `took ${took()} s`)
})

test('parts of an object are united, also where they overlap', () => {
  const parts: [Polygon, Polygon] = [box(1, 1, 5, 5), box(3, 3, 7, 7)]
  const united = decodeMask(maskRuns({ polygons: parts }, { height: 8, width: 8 }))
  const [a, b] = parts.map((part) => decodeMask(polygonMask(part, 8, 8))) as [Uint8Array, Uint8Array]
  assert.equal(
    united,
    a.map((value, i) => value | b[i]!),
  )
})

const program = `
import json, sys, numpy
from pycocotools import mask
given = json.load(sys.stdin)
def text(rle): return rle['counts'].decode()
polygons = []
for parts, height, width in given['polygons']:
    rles = mask.frPyObjects(parts, height, width)
    whole = mask.merge(rles)
    polygons.append([text(whole), int(mask.area(whole)), [float(v) for v in mask.toBbox(whole)]])
bitmaps = []
for rows in given['bitmaps']:
    bitmaps.append(text(mask.encode(numpy.asfortranarray(numpy.array(rows, numpy.uint8)))))
pairs = []
for a, b, size in given['pairs']:
    rle = lambda s: {'size': size, 'counts': s.encode()}
    pairs.append([text(mask.merge([rle(a), rle(b)])), mask.area(mask.merge([rle(a), rle(b)], True)).item()])
print(json.dumps({'polygons': polygons, 'bitmaps': bitmaps, 'pairs': pairs}))`

/** Polygons as they come and as they should not: outside, crossing themselves, corners that are repeated or on a line, two alone. */
function randomPolygon(random: Random, height: number, width: number): number[] {
  const count = random.uniform() < 0.1 ? 2 : 3 + random.below(30)
  const reach = random.uniform() < 0.3 ? 2 : 1
  const rounded = [1, 10, 100, 1e9][random.below(4)]!
  const corners: number[] = []
  for (let i = 0; i < count; ++i) {
    if (i > 0 && random.uniform() < 0.1) corners.push(corners.at(-2)!, corners.at(-1)!)
    else
      for (const length of [width, height]) {
        const value = length * (0.5 + reach * (random.uniform() - 0.5) * 1.1)
        corners.push(random.uniform() < 0.05 && corners.length > 1 ? corners.at(-2)! : Math.round(value * rounded) / rounded)
      }
  }
  return corners
}

testWhere(hasCocoTools, noCocoTools, test, 'polygons, runs, unions, areas and bounds are pycocotools’, bit for bit', () => {
  const seed = Number(process.env.DENSECL_TEST_SEED ?? Date.now() % 1e9)
  console.log(`seed ${seed}: DENSECL_TEST_SEED=${seed} tries the same`)
  const random = new Random(seed, 1)
  const polygons = Array.from({ length: 6000 }, (_, i): [number[][], number, number] => {
    const [height, width] = [1 + random.below(i % 10 === 0 ? 700 : 60), 1 + random.below(i % 10 === 0 ? 700 : 60)]
    // pycocotools takes four numbers for a box where they come first.
    const first = randomPolygon(random, height, width)
    const rest = Array.from({ length: random.below(3) }, () => randomPolygon(random, height, width))
    return [[first.length === 4 ? [...first, ...first.slice(0, 2)] : first, ...rest], height, width]
  })
  const bitmaps = fc.sample(bitmap, { numRuns: 1000, seed })
  const pairs = bitmaps.map((a): [RunLengths, RunLengths] => [
    runsOf(a),
    runsOf({ ...a, pixels: a.pixels.map((value) => (random.uniform() < 0.3 ? 1 - value : value)) }),
  ])
  const expected = runCocoTools(program, {
    polygons,
    bitmaps: bitmaps.map(({ pixels, height, width }) =>
      Array.from({ length: height }, (_, y) => [...pixels.subarray(y * width, (y + 1) * width)]),
    ),
    pairs: pairs.map(([a, b]) => [writeRuns(a.counts), writeRuns(b.counts), [a.height, a.width]]),
  }) as { polygons: [string, number, number[]][]; bitmaps: string[]; pairs: [string, number][] }
  polygons.forEach(([[first, ...rest], height, width], i) => {
    const runs = maskRuns({ polygons: [first!, ...rest] }, { height, width })
    const found = [writeRuns(runs.counts), maskArea(runs), maskBounds(runs)]
    assert.equal(found, expected.polygons[i], JSON.stringify(polygons[i]))
  })
  bitmaps.forEach((map, i) => assert.is(writeRuns(runsOf(map).counts), expected.bitmaps[i]))
  pairs.forEach((pair, i) => assert.equal([writeRuns(uniteMasks(pair).counts), sharedArea(...pair)], expected.pairs[i]))
})

test.run()
