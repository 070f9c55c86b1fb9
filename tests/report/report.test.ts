import * as assert from 'uvu/assert'

import { scene } from '../../src/data/scenes.js'
import { disposeState } from '../../src/nn/module.js'
import { Random } from '../../src/tensor/random.js'
import { ResNet } from '../../src/nn/resnet.js'
import { drawMatches, type Match, matchesOf, mutualMatches } from '../../src/report/match.js'
import { seeViews } from '../../src/report/pairs.js'
import { principalDirections } from '../../src/report/principal.js'
import { smoothed } from '../../src/report/charts.js'
import { linePlot, shortNumber } from '../../src/report/plot.js'
import { escapeXml } from '../../src/report/svg.js'
import { scope, Tensor } from '../../src/tensor/tensor.js'
import { suite } from '../support/suite.js'

const test = suite('report')

test('mutual matches are each other’s best, the strongest first', () => {
  scope(() => {
    const query = Tensor.from([1, 0, 0, 1, 1, 1], [1, 3, 2])
    const key = Tensor.from([0, 2, 3, 0.1], [1, 2, 2])
    const matches = mutualMatches(query, key)
    assert.equal(
      matches.map(({ query: q, key: k }) => [q, k]),
      [
        [1, 0],
        [0, 1],
      ],
    )
    assert.ok(matches[0]!.similarity > matches[1]!.similarity)
  })
})

test('an image matched with itself matches every position with itself', () => {
  scope(() => {
    const random = new Random(3)
    const map = Tensor.from(
      Float32Array.from({ length: 9 * 6 }, () => random.normal()),
      [1, 9, 6],
    )
    assert.equal(
      mutualMatches(map, map).map(({ query, key }) => query - key),
      new Array(9).fill(0),
    )
  })
})

test('the picture has a line per match and no more than asked for', () => {
  const backbone = new ResNet({ random: new Random(1), dtype: 'f32' }, { depth: 18, baseChannels: 4 })
  const pair = seeViews(backbone, scene(1, 2).pixels, { size: 160, seed: 1 })
  const matches = matchesOf(pair, { most: 4, threshold: 0 })
  const svg = drawMatches(pair, matches)
  assert.equal(pair[0].grid, [5, 5])
  assert.ok(matches.length >= 1 && matches.length <= 4)
  assert.is(svg.match(/<line /g)?.length ?? 0, matches.length)
  assert.is(svg.match(/<image /g)!.length, 2)
  disposeState(backbone.state())
})

test('matches that are to lie apart do, and the strongest of all is among them', () => {
  const backbone = new ResNet({ random: new Random(1), dtype: 'f32' }, { depth: 18, baseChannels: 4, strides: [1, 2, 1, 1] })
  const pair = seeViews(backbone, scene(1, 2).pixels, { size: 160, seed: 1 })
  const [all, apart] = [0, 0.2].map((share) => matchesOf(pair, { most: 1000, threshold: -1, apart: share })) as [Match[], Match[]]
  assert.equal(apart[0], all[0])
  assert.ok(apart.length > 3 && apart.length < all.length, `${apart.length} of ${all.length}`)
  // On a grid of 20 x 20 a share of 0.2 is 4 cells.
  const distances = apart.flatMap((a, i) =>
    apart.slice(0, i).map((b) => Math.hypot(Math.floor(a.query / 20) - Math.floor(b.query / 20), (a.query % 20) - (b.query % 20))),
  )
  assert.ok(Math.min(...distances) >= 4)
  disposeState(backbone.state())
})

test('principal directions are orthonormal, the largest variance first, and keep their signs', () => {
  const random = new Random(5)
  const rows = Array.from({ length: 200 }, () =>
    Float32Array.from([4 * random.normal() ** 2, 2 * random.normal(), 0.5 * random.normal(), 0.1 * random.normal()]),
  )
  const { directions } = principalDirections(rows, 4)
  directions.forEach((a, i) =>
    directions.forEach((b, j) => assert.ok(Math.abs(a.reduce((sum, value, c) => sum + value * b[c]!, 0) - Number(i === j)) < 1e-6)),
  )
  directions.forEach((direction, i) => assert.is(direction.map(Math.abs).indexOf(Math.max(...direction.map(Math.abs))), i))
  // The first feature has its tail above.
  assert.ok(directions[0]![0]! > 0)
})

test('the last value stands behind the name of a curve, of a smoothed one that which was measured', () => {
  const points = Array.from({ length: 200 }, (_, x) => ({ x, y: 5 + (x % 2 === 0 ? 1 : -1) }))
  const smooth = smoothed(points)!
  const svg = linePlot([{ name: 'loss', colour: 'red', points: smooth, behind: points }], { title: 't', xLabel: 'x', yLabel: 'y' })
  assert.match(svg, '>loss 4.00</text>')
  assert.is(svg.match(/<polyline /g)!.length, 1)
  for (const [value, words] of [
    [0, '0'],
    [31.62, '31.6'],
    [4.2461, '4.25'],
    [1234.5, '1235'],
    [0.00000148, '1.5e-6'],
    [-0.0512, '-0.0512'],
  ] as const)
    assert.is(shortNumber(value), words)
})

test('smoothing keeps a constant mean and a straight line, and is left to curves that go up and down', () => {
  const line = (count: number, y: (x: number) => number) => Array.from({ length: count }, (_, x) => ({ x, y: y(x) }))
  const zigzag = smoothed(line(400, (x) => 3 + (-1) ** x))!
  assert.ok(zigzag.slice(20).every(({ y }) => Math.abs(y - 3) < 0.2))
  assert.is(zigzag.length, 400)
  assert.is(smoothed(line(400, (x) => 0.1 - x / 5000)), undefined)
  assert.is(smoothed(line(20, (x) => (-1) ** x)), undefined)
  assert.ok(smoothed(line(100, (x) => (x === 50 ? NaN : (-1) ** x)))!.every(({ y }, x) => Number.isFinite(y) === (x !== 50)))
})

test('a curve that lies on another is dashed, and a constant lies in the middle of its axis', () => {
  const points = [1, 2, 3].map((y, x) => ({ x, y }))
  const both = linePlot(
    ['a', 'b'].map((name) => ({ name, colour: 'red', points })),
    { title: 't', xLabel: 'x', yLabel: 'y' },
  )
  assert.is(both.match(/<path [^>]*stroke-dasharray/g)!.length, 1)
  const constant = linePlot([{ name: 'a', colour: 'red', points: points.map(({ x }) => ({ x, y: 100 })) }], {
    title: 't',
    xLabel: 'x',
    yLabel: 'y',
  })
  assert.match(constant, />100<\/text>/)
  assert.not.match(constant, />101<\/text>/)
})

test('a plot survives no points, one point and NaN; text is escaped', () => {
  const plot = (ys: number[]): string =>
    linePlot([{ name: 'a', colour: 'red', points: ys.map((y, x) => ({ x, y })) }], { title: '<b>', xLabel: 'x', yLabel: 'y' })
  for (const ys of [[], [3], [1, NaN, 2], [5, 5, 5], [Infinity, 1]]) assert.not.match(plot(ys), /NaN|Infinity|undefined/)
  assert.match(plot([1, 2]), /&lt;b&gt;/)
  assert.is(escapeXml('<a href="x">&'), '&lt;a href=&quot;x&quot;&gt;&amp;')
})

test.run()
