/** Linear classifiers of the cells of frozen maps: what they must find, what places alone tell, and scores by another way. */
import { join } from 'node:path'

import fc from 'fast-check'
import * as assert from 'uvu/assert'

import { openSegmentation } from '../../src/data/segmentationSources.js'
import {
  areaUnderRoc,
  type Cells,
  classCounts,
  objectScores,
  placeLogits,
  predictedClasses,
  probeLogits,
  standardise,
} from '../../src/eval/cellProbe.js'
import { checkFrozenMemory } from '../../src/eval/frozenMemory.js'
import { type FrozenScores, frozenSegmentation } from '../../src/eval/frozenSegmentation.js'
import { Random } from '../../src/tensor/random.js'
import { Colours } from '../support/colours.js'
import { pretrainSmall } from '../support/smallRun.js'
import { rejectsError, runCli, suite, throwsError, withFolder } from '../support/suite.js'
import { writeVocTree } from '../support/vocTree.js'

const test = suite('frozen segmentation')

test('the area under the ROC curve is the share of pairs in the right order', () => {
  fc.assert(
    fc.property(fc.array(fc.tuple(fc.integer({ min: -3, max: 3 }), fc.boolean()), { minLength: 1, maxLength: 30 }), (rows) => {
      const scores = Float64Array.from(rows, ([score]) => score)
      const [up, down] = [true, false].map((which) => rows.filter(([, positive]) => positive === which).map(([score]) => score)) as [
        number[],
        number[],
      ]
      const pairs = up.flatMap((a) => down.map((b) => (a > b ? 1 : a === b ? 0.5 : 0)))
      const area = areaUnderRoc(scores, (at) => rows[at]![1])
      if (pairs.length === 0) assert.ok(Number.isNaN(area))
      else assert.ok(Math.abs(area - pairs.reduce((a: number, b) => a + b, 0) / pairs.length) < 1e-12)
    }),
  )
})

test('object scores are the odds of the softmax that no class is the first', () => {
  const random = new Random(1)
  const logits = Float32Array.from({ length: 40 }, () => 3 * random.normal())
  objectScores(logits, 4).forEach((score, row) => {
    const e = [...logits.subarray(4 * row, 4 * row + 4)].map(Math.exp)
    const odds = (e[1]! + e[2]! + e[3]!) / e[0]!
    assert.ok(Math.abs(score - Math.log(odds)) < 1e-6)
  })
})

/** Cells whose class is that of the nearest of some centres, in `dim` features of very different sizes. */
function clusters(seed: number, count: number, shares: readonly number[]): Cells {
  const random = new Random(seed)
  const [centres, dim] = [new Random(99), 5]
  const means = shares.map(() => Array.from({ length: dim }, () => 4 * centres.normal()))
  const labels = Uint8Array.from({ length: count }, () => {
    let at = random.uniform()
    return shares.findIndex((share) => (at -= share) < 0)
  }).map((label) => (label === 255 ? 0 : label))
  const sizes = [1, 1000, 1e-3, 10, 1]
  const features = Float32Array.from(
    { length: count * dim },
    (_, i) => sizes[i % dim]! * (means[labels[Math.floor(i / dim)]!]![i % dim]! + random.normal()),
  )
  return { features, dim, labels, places: Int32Array.from({ length: count }, (_, at) => at % 4) }
}

test('what can be told apart linearly is told apart, whatever the sizes of features; the same in each run', () => {
  const run = (balanced: boolean): number => {
    const [train, val] = [clusters(1, 2000, [0.7, 0.25, 0.05]), clusters(2, 500, [0.7, 0.25, 0.05])]
    standardise(train, val)
    const predicted = predictedClasses(probeLogits(train, val, 3, { seed: 4, balanced }), 3)
    return predicted.filter((label, at) => label === val.labels[at]).length / predicted.length
  }
  assert.ok(run(false) > 0.97, `${run(false)}`)
  assert.is(run(true), run(true))
  assert.ok(run(true) > 0.9)
})

test('standardised features of the training cells have mean 0 and deviation 1, and a constant one does no harm', () => {
  const [train, val] = [clusters(1, 300, [0.5, 0.5]), clusters(2, 10, [0.5, 0.5])]
  for (const cells of [train, val]) for (let i = 0; i < cells.features.length; i += 5) cells.features[i] = 7
  standardise(train, val)
  for (let c = 1; c < 5; ++c) {
    const column = train.features.filter((_, i) => i % 5 === c)
    const mean = column.reduce((a, b) => a + b, 0) / column.length
    assert.ok(Math.abs(mean) < 1e-4)
    assert.ok(Math.abs(column.reduce((a, b) => a + (b - mean) ** 2, 0) / column.length - 1) < 1e-3)
  }
  assert.ok([...train.features, ...val.features].every(Number.isFinite))
})

test('places alone answer the class that is most frequent there, or balanced the one that is there more than elsewhere', () => {
  const labels = Uint8Array.from([0, 0, 0, 1, 0, 0, 0, 0, 1, 0])
  const places = Int32Array.from([0, 0, 0, 0, 1, 1, 1, 1, 0, 1])
  const cells: Cells = { features: new Float32Array(10), dim: 1, labels, places }
  assert.equal([...classCounts(labels, 2)], [8, 2])
  const asked = { ...cells, labels: labels.subarray(0, 2), places: Int32Array.of(0, 1) }
  assert.equal([...predictedClasses(placeLogits(cells, asked, 2, { balanced: false }), 2)], [0, 0])
  assert.equal([...predictedClasses(placeLogits(cells, asked, 2, { balanced: true }), 2)], [1, 0])
})

test('features that hold the class find it in pictures where the place says little; windows depend on the seed alone', async () => {
  await withFolder(async (folder) => {
    writeVocTree(folder, { train: 16, val: 8 })
    const sources = { train: openSegmentation(folder, ['train']), val: openSegmentation(folder, ['val']) }
    const options = { window: 32, windows: 3, workers: 1, seed: 2 }
    const [scores, ...none] = await frozenSegmentation(new Colours(4), sources, options)
    assert.equal(none, [])
    const { grid, features, position } = scores!
    assert.is(grid, 8)
    assert.ok(features.meanIou > 0.8, `${features.meanIou}`)
    assert.ok(features.balancedRecall > 0.85 && features.objectAuc > 0.95)
    assert.ok(position.meanIou < 0.35 && position.balancedRecall < 0.5, `${position.meanIou}`)
    assert.equal(await frozenSegmentation(new Colours(4), sources, { ...options, workers: 2 }), [scores])
    assert.not.equal(await frozenSegmentation(new Colours(4), sources, { ...options, seed: 3 }), [scores])
  })
})

test('both ways are the mean of one way and the other, where windows are whole pictures; what is not asked for is not there', async () => {
  await withFolder(async (folder) => {
    writeVocTree(folder, { train: 8, val: 4 })
    const [train, val] = [openSegmentation(folder, ['train']), openSegmentation(folder, ['val'])]
    const options = { window: 64, windows: 1, workers: 1 }
    const scored = async (sets: { train: typeof train; val: typeof val }, more: object = {}): Promise<FrozenScores> =>
      (await frozenSegmentation(new Colours(4), sets, { ...options, ...more }))[0]!
    const [there, back] = [await scored({ train, val }), await scored({ train: val, val: train })]
    const both = await scored({ train, val }, { bothWays: true, maps: 1 })
    for (const of of ['features', 'position'] as const)
      for (const key of ['meanIou', 'balancedRecall', 'objectAuc'] as const)
        assert.ok(Math.abs(both[of][key] - (there[of][key] + back[of][key]) / 2) < 1e-3, `${of} ${key}`)
    assert.not.equal(there.position, back.position)
    const plain = await scored({ train, val }, { balanced: false })
    assert.equal({ ...plain.features, balancedRecall: 0 }, { ...there.features, balancedRecall: 0 })
    assert.ok(Number.isNaN(plain.features.balancedRecall))
  })
})

test('the command prints a row for each map and one for its places; windows without a label are an error', async () => {
  await withFolder(async (folder) => {
    writeVocTree(folder, { train: 6, val: 4 })
    const weights = pretrainSmall(join(folder, 'w'))
    const { code, out, err } = runCli([
      'eval',
      'segmentation',
      weights,
      '--data',
      folder,
      '--frozen',
      '--window',
      '32',
      '--windows',
      '2',
      '--json',
    ])
    assert.is(code, 0, err)
    const { table } = JSON.parse(out) as { table: { columns: string[]; rows: [string, ...unknown[]][] } }
    assert.equal(
      table.rows.map(([name]) => name),
      ['last', 'last: position alone', 'before', 'before: position alone'],
    )
    assert.is(table.columns.at(-1), 'object AUC')
    assert.match(runCli(['eval', 'segmentation', weights, '--data', folder, '--frozen', '--window', '4']).err, /window is 4/)

    const idle = (...flags: string[]): string => runCli(['eval', 'segmentation', weights, '--data', folder, ...flags]).err
    assert.match(idle('--frozen', '--iterations', '5'), /--iterations is of the training, which --frozen has not/)
    assert.match(idle('--window', '32'), /--window is of --frozen/)

    const [train, val] = [openSegmentation(folder, ['train']), openSegmentation(folder, ['val'])]
    // Windows of 32 px: one map of 8 x 8 cells of 3 channels as 4 bytes, twice, of 10 images; and the program.
    const memory = (windows: number) => () =>
      checkFrozenMemory(new Colours(4), { train, val }, { window: 32, windows, workers: 1 }, { host: 2e9, device: 0 })
    assert.match(memory(1)(), /^memory {2}about/)
    throwsError(memory(1_000_000), 'CONFIG', /cells of 1000000 windows of 10 images/, /--windows/)
    const unlabelled = { ...val, map: Array.from({ length: 256 }, () => 255) }
    await rejectsError(
      () => frozenSegmentation(new Colours(4), { train, val: unlabelled }, { window: 32, windows: 1 }),
      'DATA',
      /labelled pixels/,
    )
  })
})

test.run()
