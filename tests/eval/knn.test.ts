import * as assert from 'uvu/assert'

import { openSource } from '../../src/data/sources.js'
import { accuracy, extractFeatures, knnPredict, type Features } from '../../src/eval/knn.js'
import { disposeState } from '../../src/nn/module.js'
import { withInterruption } from '../../src/tensor/interruption.js'
import { Random } from '../../src/tensor/random.js'
import { ResNet } from '../../src/nn/resnet.js'
import { suite, throwsError } from '../support/suite.js'

const test = suite('knn')

const features = (rows: number[][], labels: number[]): Features => ({
  values: Float32Array.from(rows.flatMap((row) => row.map((value) => value / Math.hypot(...row)))),
  dim: rows[0]!.length,
  labels: Int32Array.from(labels),
})

test('the nearest neighbour decides with k 1, weighted votes beyond', () => {
  const bank = features(
    [
      [1, 0],
      [0.9, 0.1],
      [0, 1],
      [0.1, 0.9],
      [0.2, 0.8],
    ],
    [0, 0, 1, 1, 1],
  )
  const queries = features(
    [
      [1, 0.05],
      [0, 2],
    ],
    [0, 1],
  )
  assert.equal([...knnPredict(bank, queries, { k: 1 })], [0, 1])
  // All five vote: the two close ones weigh exp(1 / 0.07) each, the others exp(0.3 / 0.07) or less.
  assert.equal([...knnPredict(bank, queries, { k: 5 })], [0, 1])
  // Without weight (a high temperature) the majority wins.
  assert.equal([...knnPredict(bank, queries, { k: 5, temperature: 1e6 })], [1, 1])
  assert.equal([...knnPredict(bank, queries, { k: 500 })], [0, 1])
  // At a low one the nearest decides, though e to the similarity over it is more than any number.
  for (const temperature of [1e-3, 1e-6]) assert.equal([...knnPredict(bank, queries, { k: 5, temperature })], [0, 1])
  assert.is(accuracy(Int32Array.of(1, 0, 1, 1), Int32Array.of(1, 1, 1, 1)), 0.75)
  throwsError(() => knnPredict(bank, features([[1, 2, 3]], [0]), { k: 1 }), 'SHAPE', /2 channels/, /3/)
})

/** Row by row in f64; of equally similar rows the first vote. */
function plainly(bank: Features, queries: Features, k: number): number[] {
  const { dim } = bank
  return Array.from(queries.labels, (_, q) => {
    const scored = Array.from(bank.labels, (label, i) => {
      let s = 0
      for (let c = 0; c < dim; ++c) s += bank.values[dim * i + c]! * queries.values[dim * q + c]!
      return { label, s }
    })
    const votes = new Array<number>(4).fill(0)
    for (const { label, s } of scored.sort((a, b) => b.s - a.s).slice(0, k)) votes[label]! += Math.exp(s / 0.07)
    return votes.indexOf(Math.max(...votes))
  })
}

test('agrees with a plain computation in f64', () => {
  const random = new Random(6)
  const drawn = (n: number, dim: number, draw: () => number): Features =>
    features(
      Array.from({ length: n }, () => Array.from({ length: dim }, draw)),
      Array.from({ length: n }, () => random.below(4)),
    )
  const [bank, queries] = [drawn(90, 7, () => random.normal()), drawn(70, 7, () => random.normal())]
  assert.equal([...knnPredict(bank, queries, { k: 9 })], plainly(bank, queries, 9))
  // Several parts of the bank with few similarities: which of equal ones vote is a matter of their order.
  const quarters = (n: number): Features => ({
    values: Float32Array.from({ length: 3 * n }, () => random.below(5) / 4),
    dim: 3,
    labels: Int32Array.from({ length: n }, () => random.below(4)),
  })
  const [large, few] = [quarters(40_000), quarters(6)]
  for (const k of [1, 2, 37]) assert.equal([...knnPredict(large, few, { k })], plainly(large, few, k), `k ${k}`)
  // Several blocks of queries.
  const many = drawn(1500, 3, () => random.normal())
  const part = (first: number, last: number): Features => ({
    ...many,
    values: many.values.subarray(3 * first, 3 * last),
    labels: many.labels.subarray(first, last),
  })
  const [small, cuts] = [drawn(300, 3, () => random.normal()), [0, 1, 700, 1500]]
  const parts = cuts.slice(1).flatMap((last, i) => [...knnPredict(small, part(cuts[i]!, last), { k: 5 })])
  assert.equal([...knnPredict(small, many, { k: 5 })], parts)
})

test('a classification that is told to end ends between two parts of the bank', () => {
  const rows = (count: number): Features =>
    features(
      Array.from({ length: count }, () => [1, 0]),
      new Array<number>(count).fill(0),
    )
  const [bank, queries] = [rows(3 * 16_384 + 1), rows(2)]
  for (const parts of [0, 1, 2, 3]) {
    let asked = 0
    throwsError(
      () =>
        withInterruption(
          () => ++asked > parts,
          () => knnPredict(bank, queries, { k: 1 }),
        ),
      'INTERRUPTED',
    )
    assert.is(asked, parts + 1)
  }
  assert.is(
    withInterruption(
      () => false,
      () => knnPredict(bank, queries, { k: 1 }),
    ).length,
    2,
  )
})

test('features are unit rows in the order of the items, whatever the batch size and workers', async () => {
  const backbone = new ResNet({ random: new Random(1), dtype: 'f32' }, { depth: 18, baseChannels: 4 })
  const { items } = await openSource('scenes:11')
  const a = await extractFeatures(backbone, items, { imageSize: 32, batchSize: 4, workers: 1 })
  const b = await extractFeatures(backbone, items, { imageSize: 32, batchSize: 11, workers: 3 })
  assert.equal(
    [...a.labels],
    items.map(({ label }) => label),
  )
  a.values.forEach((value, i) => assert.ok(Math.abs(value - b.values[i]!) < 1e-6))
  for (let i = 0; i < 11; ++i) assert.ok(Math.abs(Math.hypot(...a.values.subarray(i * a.dim, (i + 1) * a.dim)) - 1) < 1e-5)
  disposeState(backbone.state())
})

test.run()
