/** What a mask head is taught, by both rules, and masks in views. */
import fc from 'fast-check'
import * as assert from 'uvu/assert'

import type { Box } from '../../src/data/boxes.js'
import { type InstanceMask, maskInView, maskRuns } from '../../src/data/instanceMasks.js'
import { polygonMask } from '../../src/data/polygons.js'
import { decodeMask, encodeMask, type RunLengths } from '../../src/data/runLengths.js'
import { maskTargets } from '../../src/detection/maskTargets.js'
import { roiAlign } from '../../src/ops/roiAlign.js'
import { Random } from '../../src/tensor/random.js'
import { scope, Tensor } from '../../src/tensor/tensor.js'
import { processorTime } from '../support/processorTime.js'
import { suite } from '../support/suite.js'

const test = suite('mask targets')

const polygonOf = (random: Random, height: number, width: number): [number[], ...number[][]] => {
  const one = (): number[] => Array.from({ length: 2 * (3 + random.below(8)) }, (_, i) => random.uniform() * (i % 2 === 0 ? width : height))
  return [one(), ...(random.uniform() < 0.5 ? [one()] : [])]
}
const boxOf = (random: Random, height: number, width: number): Box => {
  const [a, b, c, d] = [random.uniform() * width, random.uniform() * width, random.uniform() * height, random.uniform() * height]
  return [Math.min(a, b), Math.min(c, d), Math.max(a, b), Math.max(c, d)]
}
const blob = (random: Random, height: number, width: number): RunLengths =>
  maskRuns({ polygons: polygonOf(random, height, width) }, { height, width })
const seeds = fc.integer({ min: 0, max: 2 ** 30 })

test('polygons: the target is the object as it is drawn when its region is an image of 28 pixels a side', () => {
  fc.assert(
    fc.property(seeds, (seed) => {
      const random = new Random(seed, 1)
      const masks = [0, 1].map((): InstanceMask => ({ polygons: polygonOf(random, 60, 80) }))
      const regions = masks.map(() => boxOf(random, 60, 80))
      const targets = maskTargets(Float64Array.from(regions.flat()), masks, 28)
      masks.forEach((mask, r) => {
        const [x1, y1, x2, y2] = regions[r]!
        const [across, down] = [28 / Math.max(x2 - x1, 0.1), 28 / Math.max(y2 - y1, 0.1)]
        assert.ok('polygons' in mask)
        const [first, ...rest] = mask.polygons.map((polygon) => polygon.map((v, i) => (i % 2 === 0 ? (v - x1) * across : (v - y1) * down)))
        const expected = decodeMask(maskRuns({ polygons: [first!, ...rest] }, { height: 28, width: 28 }))
        assert.equal([...targets.subarray(r * 784, (r + 1) * 784)], [...expected])
      })
    }),
  )
})

test('runs: the target is where region alignment of the mask as a map is at least one half', () => {
  let compared = 0
  fc.assert(
    fc.property(seeds, (seed) => {
      const random = new Random(seed, 2)
      const [height, width] = [1 + random.below(90), 1 + random.below(90)]
      const mask = blob(random, height, width)
      const box = boxOf(random, height, width)
      const target = maskTargets(Float64Array.from(box), [mask], 28)
      const means = scope(() => {
        const map = Tensor.from(Float64Array.from(decodeMask(mask)), [1, height, width, 1], 'f64')
        const of = Tensor.from([0], [1], 'i32')
        return roiAlign(map, Tensor.from([...box], [1, 4], 'f64'), of, { size: 28, scale: 1 }).data() as Float64Array
      })
      means.forEach((mean, i) => {
        if (Math.abs(mean - 0.5) < 1e-8) return
        assert.is(target[i], Number(mean >= 0.5))
        compared += 1
      })
    }),
  )
  assert.ok(compared > 50_000)
})

test('both rules agree but for pixels at the edge of an object', () => {
  const random = new Random(7, 3)
  const circle = Array.from({ length: 80 }, (_, i) => {
    const angle = (Math.floor(i / 2) * Math.PI) / 20
    return 50 + 30 * (i % 2 === 0 ? Math.cos(angle) : Math.sin(angle))
  })
  for (let i = 0; i < 20; ++i) {
    const box: Box = [15 + 8 * random.uniform(), 15 + 8 * random.uniform(), 78 + 8 * random.uniform(), 78 + 8 * random.uniform()]
    const regions = Float64Array.from(box)
    const [drawn, averaged] = [
      maskTargets(regions, [{ polygons: [circle] }], 28),
      maskTargets(regions, [polygonMask(circle, 100, 100)], 28),
    ]
    const different = drawn.filter((value, at) => value !== averaged[at]).length
    assert.ok(drawn.reduce((a, b) => a + b) > 400 && different < 60, `${different} pixels`)
  }
})

test('200 objects in an image take milliseconds by either rule', () => {
  const random = new Random(9, 5)
  const polygons = Array.from({ length: 200 }, () => polygonOf(random, 800, 1333))
  const regions = Float64Array.from(polygons.flatMap(() => [...boxOf(random, 800, 1333)]))
  const drawn = polygons.map((own): InstanceMask => ({ polygons: own }))
  const runs = drawn.map((mask) => maskRuns(mask, { height: 800, width: 1333 }))
  for (const masks of [drawn, runs]) {
    const took = processorTime()
    const targets = maskTargets(regions, masks, 28)
    // A hundred times what it takes.
    assert.ok(took() < 5, `took ${took()} s`)
    assert.is(targets.length, 200 * 784)
  }
})

test('regions without size, and objects beside their region, have empty targets', () => {
  const mask = polygonMask([1, 1, 1, 9, 9, 9, 9, 1], 20, 20)
  for (const box of [
    [5, 5, 5, 9],
    [12, 12, 18, 18],
  ])
    assert.equal([...maskTargets(Float64Array.from(box), [mask], 28)], new Array<number>(784).fill(0))
})

test('in a view polygons are where boxes are, mirrored too; of runs each pixel shows the nearest one', () => {
  fc.assert(
    fc.property(seeds, fc.boolean(), fc.constantFrom('polygons', 'bitmaps'), (seed, flip, form) => {
      const random = new Random(seed, 4)
      const side = (): number => 1 + random.below(40)
      const original = { width: side(), height: side() }
      const view = { width: side(), height: side(), flip }
      const mask = { polygons: polygonOf(random, original.height, original.width) } as const
      if (form === 'polygons') {
        const placed = maskInView(mask, original, view, form) as typeof mask
        placed.polygons.forEach((polygon, p) =>
          polygon.forEach((value, i) => {
            const before = mask.polygons[p]![i]!
            const expected = i % 2 === 1 ? (before * view.height) / original.height : (before * view.width) / original.width
            assert.ok(Math.abs((i % 2 === 0 && flip ? view.width - value : value) - expected) < 1e-9)
          }),
        )
      }
      const runs = maskRuns(mask, original)
      const pixels = decodeMask(runs)
      // Pillow sums its steps: what it shows where a centre is on an edge is left out here.
      const shown = (at: number, from: number, to: number): number =>
        Math.min(from - 1, Math.floor(form === 'polygons' ? ((at + 0.5) * from) / to : at * (1 / (to / from))))
      const tied = (from: number, to: number): boolean => form === 'polygons' && (from % 2 === 0 || to % 2 === 0)
      if (tied(original.width, view.width) || tied(original.height, view.height)) return
      const expected = Uint8Array.from({ length: view.height * view.width }, (_, i) => {
        const [x, y] = [i % view.width, Math.floor(i / view.width)]
        const column = shown(flip ? view.width - 1 - x : x, original.width, view.width)
        return pixels[shown(y, original.height, view.height) * original.width + column]!
      })
      assert.equal(maskInView(runs, original, view, form), encodeMask(expected, view.height, view.width))
    }),
    { numRuns: 400 },
  )
})

test.run()
