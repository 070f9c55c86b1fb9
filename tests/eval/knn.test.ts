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
  assert.is(accuracy(Int32Array.of(1, 0, 1, 1), Int32Array.of(1, 1, 1, 1)), 0.75)
  throwsError(() => knnPredict(bank, features([[1, 2, 3]], [0]), { k: 1 }), 'SHAPE', /2 channels/, /3/)
})

test('agrees with a plain computation in f64', () => {
  const random = new Random(6)
  const rows = (n: number): number[][] => Array.from({ length: n }, () => Array.from({ length: 7 }, () => random.normal()))
  const labels = (n: number): number[] => Array.from({ length: n }, () => random.below(4))
  const [bank, queries] = [features(rows(90), labels(90)), features(rows(70), labels(70))]
  const plain = Array.from(queries.labels, (_, q) => {
    const scored = Array.from(bank.labels, (label, i) => ({
      label,
      s: Array.from({ length: 7 }, (__, c) => bank.values[7 * i + c]! * queries.values[7 * q + c]!).reduce((a, b) => a + b),
    }))
    const votes = [0, 0, 0, 0]
    for (const { label, s } of scored.sort((a, b) => b.s - a.s).slice(0, 9)) votes[label]! += Math.exp(s / 0.07)
    return votes.indexOf(Math.max(...votes))
  })
  assert.equal([...knnPredict(bank, queries, { k: 9 })], plain)
})

test('a classification that is told to end ends between two blocks of queries', () => {
  const [bank, queries] = [
    features([[1, 0]], [0]),
    features(
      Array.from({ length: 200 }, () => [1, 0]),
      new Array<number>(200).fill(0),
    ),
  ]
  for (const blocks of [0, 1, 2, 3]) {
    let asked = 0
    throwsError(
      () =>
        withInterruption(
          () => ++asked > blocks,
          () => knnPredict(bank, queries, { k: 1 }),
        ),
      'INTERRUPTED',
    )
    assert.is(asked, blocks + 1)
  }
  assert.is(
    withInterruption(
      () => false,
      () => knnPredict(bank, queries, { k: 1 }),
    ).length,
    200,
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
