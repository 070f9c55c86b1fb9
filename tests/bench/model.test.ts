/** The model of kernels: its table, its rule for splits, its floors, and the tables of tiles that come from it. */
import { readdirSync, readFileSync } from 'node:fs'
import { basename, dirname, join } from 'node:path'

import fc from 'fast-check'
import * as assert from 'uvu/assert'

import { convolutionCases } from '../../src/bench/cases/conv2d.js'
import { type Constant, type ConstantName, constants, constantsOf } from '../../src/bench/constants.js'
import { type Architecture, architectures, gpus, predict, type Predicted, splitsOf, tiles, timedTiles } from '../../src/bench/model.js'
import { readCodeTable } from '../../src/bench/code/table.js'
import { type Call, callOf, type CallTensor } from '../../src/bench/step/calls.js'
import { type Cost, Machine } from '../../src/bench/step/machine.js'
import { costsOf, stepTimes } from '../../src/bench/step/predict.js'
import { regionCounts } from '../../src/bench/step/regions.js'
import { tune } from '../../src/cli/benchTune.js'
import { type Product, tuningFile, type TuningTable } from '../../src/ops/tuning.js'
import { packageRoot } from '../../src/tensor/addon.js'
import { runCli, suite } from '../support/suite.js'

const test = suite('model')

test('what was read off the machine code is, to a twentieth, in the machine-code table that is kept', () => {
  const { kernels } = readCodeTable(join(packageRoot, 'bench', 'results', 'code-sm_90a.json'))
  for (const [name, { now, how }] of Object.entries(constants as Record<string, Constant>)) {
    if (typeof how === 'string') continue
    const found = kernels.filter((kernel) => kernel.name.startsWith(how.kernel))
    assert.is(found.length, 1, `${name}: ${found.length} kernels start with ${how.kernel}`)
    const telling = found[0]!.loops.filter(({ kinds }) => kinds[how.loop] !== undefined)
    const innermost = telling.filter(
      ({ from, to }) => !telling.some((other) => other.from >= from && other.to <= to && (other.from !== from || other.to !== to)),
    )
    const read = Math.max(...innermost.map((loop) => loop[how.of]))
    assert.ok(
      Math.abs(now - read) <= 0.05 * read,
      `src/bench/constants.ts has ${now} for ${name}, bench/results/code-sm_90a.json ${read}: then also renew the tables, ` +
        'densecl bench tune --model',
    )
  }
})

test('splits cover every pixel in whole slices, 16 of them at least, and keep nine tenths of the machine busy where they can', () => {
  const problem = fc.record({
    pixels: fc.integer({ min: 1, max: 3_000_000 }),
    tileCount: fc.integer({ min: 1, max: 400 }),
    blocks: fc.integer({ min: 1, max: 264 }),
    slice: fc.constantFrom(16, 32, 64),
    results: fc.integer({ min: 64, max: 3_000_000 }),
    filled: fc.boolean(),
  })
  fc.assert(
    fc.property(problem, ({ pixels, tileCount, blocks, slice, results, filled }) => {
      const { share, count } = splitsOf(pixels, tileCount, blocks, slice, results, filled)
      assert.is(share % slice, 0)
      assert.ok(count * share >= pixels && (count - 1) * share < pixels)
      assert.ok(count === 1 || share >= 16 * slice - slice)
      if (!filled) return
      const busy = (n: number, of: number): number => (tileCount * pixels) / (Math.ceil((tileCount * n) / blocks) * blocks * of)
      if (busy(count, share) >= 0.9) return
      for (let n = 1; n <= Math.min(4 * blocks, Math.max(1, Math.floor(pixels / (16 * slice)))); ++n) {
        const each = Math.ceil(Math.ceil(pixels / n) / slice) * slice
        if (Math.ceil(pixels / each) === n) assert.ok(busy(n, each) < 0.9, `${n} splits instead of ${count} would keep the machine busy`)
      }
    }),
  )
})

test('no layer of ResNet-50 leaves a tenth of an H200 idle in its weight gradient, which half of them did', () => {
  const busy = (filled: boolean): number[] =>
    convolutionCases(256)
      .filter(({ product, wholeSlices }) => product.direction === 'backward weight' && wholeSlices)
      .map(({ product: { rows, columns, depth } }) => {
        const [m, n] = rows <= 64 ? [64, 128] : [128, 128]
        const count = Math.ceil(rows / m) * Math.ceil(columns / n)
        const { share, count: splits } = splitsOf(depth, count, 132, 64, rows * columns, filled)
        return (count * depth) / (Math.ceil((count * splits) / 132) * 132 * share)
      })
  assert.ok(Math.min(...busy(true)) >= 0.9)
  assert.ok(busy(false).filter((share) => share < 0.62).length >= busy(false).length / 3)
})

const faster = ({ gigabytesPerSecond, ...rest }: Architecture, factor: number): Architecture => ({
  ...rest,
  gigabytesPerSecond: factor * gigabytesPerSecond,
})
const tensor = (shape: readonly number[], dtype = 'bf16'): CallTensor => ({
  shape,
  dtype,
  bytes: shape.reduce((a, b) => a * b, 1) * (dtype === 'bf16' ? 2 : 4),
})

/** Calls of a convolution and its norm, forward and backward, and of what else is more than a pass. */
const callsOf = fc
  .record({
    n: fc.integer({ min: 1, max: 64 }),
    side: fc.constantFrom(7, 14, 28, 56),
    c: fc.constantFrom(3, 64, 96, 256),
    o: fc.constantFrom(64, 128, 512),
    kernel: fc.constantFrom(1, 3, 7),
    stride: fc.constantFrom(1, 2),
    deferred: fc.boolean(),
  })
  .map(({ n, side, c, o, kernel, stride, deferred }): Call[] => {
    const out = Math.ceil(side / stride)
    const [x, y, w, vector] = [tensor([n, side, side, c]), tensor([n, out, out, o]), [o, kernel, kernel, c], tensor([1, o], 'f32')]
    const padding = (kernel - 1) / 2
    const windows = { strideH: stride, strideW: stride, paddingH: padding, paddingW: padding, dilationH: 1, dilationW: 1 }
    const numbers = { ...windows, tile: 0, tf32: false }
    const pool = { kernelH: 3, kernelW: 3, strideH: 2, strideW: 2, paddingH: 1, paddingW: 1 }
    const [mean, invstd, runningMean, runningVar, weight, bias, shift] = Array<CallTensor>(7).fill(vector)
    const [statistics, sums] = [
      tensor([Math.ceil((n * out * out) / 64), 2, o], 'f32'),
      tensor([Math.ceil((n * side * side) / 64), 2, c], 'f32'),
    ]
    const scale = deferred && c % 8 === 0 ? tensor([1, c], 'f32') : undefined
    return [
      callOf('conv2d', { y, x, weight: tensor(w), statistics, scale, shift: scale }, { ...numbers, relu: true }),
      callOf(
        'batchNormTrain',
        { y: deferred ? undefined : y, mean, invstd, runningMean, runningVar, x: y, weight, bias, statistics, scale: vector, shift },
        { eps: 1e-5, momentum: 0.1, relu: true },
      ),
      callOf(
        'batchNormBackward',
        { dx: y, dweight: vector, dbias: vector, dy: y, x: y, weight, mean, invstd, scale: vector, shift },
        { train: true },
      ),
      callOf('conv2dBackwardWeight', { dweight: tensor(w, 'f32'), dy: y, x }, { ...numbers, relu: false, splits: 0 }),
      callOf(
        'conv2dBackwardInput',
        { dx: x, dy: y, weight: tensor(w), x, scale, shift: scale, mean: scale, sums: scale === undefined ? undefined : sums },
        numbers,
      ),
      callOf(
        'maxPool2d',
        { y: tensor([n, 28, 28, 64]), index: tensor([n, 28, 28, 64], 'i32'), x: tensor([n, 56, 56, 64]) },
        { ...pool, relu: false },
      ),
      callOf(
        'maxPool2dBackward',
        { dx: tensor([n, 56, 56, 64]), dy: tensor([n, 28, 28, 64]), index: tensor([n, 28, 28, 64], 'i32') },
        pool,
      ),
      callOf(
        'infoNce',
        {
          loss: tensor([], 'f32'),
          dquery: tensor([49 * n, 128]),
          statistics: tensor([4], 'f32'),
          query: tensor([49 * n, 128]),
          positive: tensor([49 * n, 128]),
          queue: tensor([4096, 128]),
        },
        { temperature: 0.2, unit: false },
      ),
      callOf('denseMatch', { index: tensor([n, 49], 'i32'), query: tensor([n, 49, 2048]), key: tensor([n, 49, 2048]) }, { cosine: true }),
      callOf('sumRows', { sum: tensor([o], 'f32'), x: y }, {}),
      callOf('relu', { y: x, x }, {}),
    ]
  })

test('no launch takes less than its bytes, its operations and its ramp; more bandwidth never takes longer', () => {
  fc.assert(
    fc.property(
      callsOf,
      fc.constantFrom(...Object.values(gpus)),
      fc.constantFrom('now' as const, 'before' as const),
      fc.double({ min: 1, max: 8, noNaN: true }),
      (calls, gpu, state, factor) => {
        const [machine, better] = [new Machine(gpu, state), new Machine(faster(gpu, factor), state)]
        for (const call of calls) {
          const [costs, sooner] = [costsOf(machine, call), costsOf(better, call)]
          assert.ok(costs.length > 0)
          for (const [i, cost] of costs.entries()) {
            const { kernel, microseconds, floor, launches, bytes, operations } = cost
            assert.ok(Number.isFinite(microseconds) && launches >= 1, kernel)
            assert.ok(floor >= Math.max(bytes / gpu.gigabytesPerSecond / 1e3, operations / gpu.teraflops / 1e6) * 0.999, kernel)
            assert.ok(microseconds >= floor, `${kernel} ${cost.what}: ${microseconds} us, floor ${floor}`)
            assert.ok(sooner[i]!.microseconds <= microseconds + 1e-9, `${kernel} takes longer with more bandwidth`)
          }
        }
        const all = calls.flatMap((call) => costsOf(machine, call))
        const sum = all.reduce((total, { microseconds }) => total + microseconds / 1e3, 0)
        assert.ok(Math.abs(stepTimes(all).milliseconds - sum) < 1e-6 * sum)
      },
    ),
  )
})

test('kernels as they are take no longer than before, and each repair shows where it was made', () => {
  const gpu = gpus.H200!
  const y = tensor([256, 112, 112, 64])
  const vector = tensor([1, 64], 'f32')
  const statistics = tensor([50_176, 2, 64], 'f32')
  const plain = { dilationH: 1, dilationW: 1, tile: 0, tf32: false, relu: false }
  const stem = callOf(
    'conv2d',
    { y, x: tensor([256, 224, 224, 3]), weight: tensor([64, 7, 7, 3]), statistics },
    { ...plain, strideH: 2, strideW: 2, paddingH: 3, paddingW: 3 },
  )
  const [mean, invstd, runningMean, runningVar, gamma, bias, scale, shift] = Array<CallTensor>(8).fill(vector)
  const norm = callOf(
    'batchNormTrain',
    { mean, invstd, runningMean, runningVar, x: y, weight: gamma, bias, statistics, scale, shift },
    { eps: 1e-5, momentum: 0.1, relu: true },
  )
  const x = tensor([256, 28, 28, 128])
  const weight = callOf(
    'conv2dBackwardWeight',
    { dweight: tensor([128, 3, 3, 128], 'f32'), dy: x, x },
    { ...plain, strideH: 1, strideW: 1, paddingH: 1, paddingW: 1, splits: 0 },
  )
  const time = (call: Call, state: 'now' | 'before', overrides: Partial<Record<ConstantName, number>> = {}): number =>
    costsOf(new Machine(gpu, state, overrides), call).reduce((sum, { microseconds }) => sum + microseconds, 0)
  for (const call of [stem, norm, weight]) assert.ok(time(call, 'now') < time(call, 'before') / 2)
  // Each alone.
  const was = constantsOf('before')
  assert.ok(time(weight, 'now', { splitsFilled: 0 }) > 1.3 * time(weight, 'now'))
  assert.ok(time(weight, 'now', { producerWeight: was.producerWeight }) > 1.3 * time(weight, 'now'))
  assert.ok(time(norm, 'now', { mergeParts: 0, mergeTogether: 1, mergeLines: 8 }) > 10 * time(norm, 'now'))
  assert.ok(time(stem, 'now', { unfolds: 0 }) > 2 * time(stem, 'now'))
})

test('tile 5 of a weight gradient lies on its side', () => {
  const tile = tiles.find(({ id }) => id === 5)!
  const time = (rows: number, columns: number): number =>
    predict(architectures.sm_90!, { direction: 'backward weight', rows, columns, depth: 200_704 }, tile, 1).splits
  // 64 rows fill it: 9 tiles of 128 columns, not 9 half empty ones of 64 beside each other.
  assert.is(time(64, 1152), splitsOf(200_704, 9, 132, 64, 64 * 1152).count)
})

test('tables that say they are of the model are what it says now', () => {
  for (const file of readdirSync(dirname(tuningFile('x')))) {
    const table = JSON.parse(readFileSync(tuningFile(basename(file, '.json')), 'utf8')) as TuningTable
    if (table.how !== 'model') continue
    const { entries } = tune({ model: table.architecture, device: 'cpu', batch: 256 }, () => {})
    assert.equal(table.entries, entries, `${file}: densecl bench tune --model ${table.architecture} makes another`)
    for (const { product, wholeSlices } of convolutionCases(256)) {
      const { tile } = table.entries.find(
        (entry) =>
          entry.direction === product.direction &&
          entry.rows === product.rows &&
          entry.columns === product.columns &&
          entry.depth === product.depth,
      )!
      assert.ok(timedTiles(architectures[table.architecture]!, wholeSlices).some(({ id }) => id === tile))
    }
  }
})

test('tiles of 128x256 are bound by tensor cores where shared memory bounds those of 128x128, and what they finish shows', () => {
  const [usual, widest] = [4, 6].map((id) => tiles.find((tile) => tile.id === id)!) as [(typeof tiles)[number], (typeof tiles)[number]]
  const deep: Product = { direction: 'backward weight', rows: 512, columns: 4608, depth: 12_544 }
  const short: Product = { direction: 'forward', rows: 200_704, columns: 512, depth: 128 }
  const of = (product: Product, tile: (typeof tiles)[number]): Predicted => predict(architectures.sm_90!, product, tile, 1)
  assert.equal([of(deep, usual).bound, of(deep, widest).bound], ['shared memory', 'tensor cores'])
  assert.ok(of(deep, widest).math < of(deep, usual).math)
  assert.ok(of(short, widest).epilogue > 1.9 * of(short, usual).epilogue)
  assert.ok(of(short, widest).math > of(short, usual).math)
})

test('a machine takes tiles of 128x256 where they are faster and asked for, and nowhere else', () => {
  for (const gpu of [gpus.H100!, gpus.H200!, gpus.A100!]) {
    const [usual, widest] = [new Machine(gpu, 'now'), new Machine(gpu, 'now', {}, [6])]
    const around = { epilogue: 'store', gathered: false, prologue: 'none' } as const
    let taken = 0
    for (const { name, product, bytes, wholeSlices } of convolutionCases(256)) {
      const [before, now] = [usual, widest].map((machine) =>
        machine.product('product', name, product, { ...around, tile: machine.tile(product), whole: wholeSlices }, bytes),
      ) as [Cost, Cost]
      assert.not.match(before.what, /tile 6/)
      const takes = now.what.includes('tile 6')
      if (takes) ++taken
      assert.ok(takes ? now.microseconds < before.microseconds : now.microseconds === before.microseconds, name)
    }
    assert.is(taken > 0, gpu.name === 'sm_90', `${gpu.gpu}: ${taken}`)
  }
})

test('a product stored by bulk copies is that of its width whose epilogue stores nothing itself', () => {
  for (const columns of [64, 72, 256]) {
    const product: Product = { direction: 'forward', rows: 200_704, columns, depth: 128 }
    const of = (id: number): Predicted =>
      predict(
        architectures.sm_90!,
        product,
        tiles.find((tile) => tile.id === id)!,
        1,
      )
    const [usual, stored] = [of(columns <= 64 ? 5 : 4), of(7)]
    const { bulkStore, statistics, stage, store } = constantsOf('now')
    const without = (stage + bulkStore + statistics) / (stage + store + statistics)
    assert.ok(Math.abs(stored.epilogue / usual.epilogue - without) < 1e-9)
    assert.ok(Math.abs(usual.math - usual.epilogue - (stored.math - stored.epilogue)) < 1e-9)
  }
})

test('what RoIAlign meets of a region: no more cells than it has, in groups and steps that hold them', () => {
  const regions = fc.record({ side: fc.integer({ min: 3, max: 120 }), bins: fc.integer({ min: 1, max: 40 }) })
  fc.assert(
    fc.property(regions, ({ side, bins }) => {
      const { cells, taps, depth, tiles, groups, blocks } = regionCounts(side, bins)
      // Samples lie in the region, by at most a cell from one another, and each has two cells.
      assert.ok(cells >= side - 1 && cells <= side + 2, `${cells} cells`)
      assert.ok(taps >= Math.max(cells, 2 * bins) && taps <= side + 2 * bins + 1e-9, `${taps} weights`)
      assert.ok(depth >= cells / 16 && groups >= cells / 4 && tiles >= cells / 8 && tiles <= groups)
      // Every bin is a quarter of a step, once for each group that it reaches.
      assert.ok(blocks >= groups && 4 * blocks >= bins && blocks <= groups + taps / 4)
    }),
    { numRuns: 60 },
  )
})

test('bench step refuses what it does not know', () => {
  const refused = (...args: string[]): string => {
    const { code, err } = runCli(['bench', 'step', ...args])
    assert.is(code, 2)
    return err
  }
  assert.match(refused('epilog'), /no level epilog \(did you mean epilogue\?\)/)
  assert.match(refused('full', 'epilogue'), /too many arguments/)
  assert.match(refused('--kernels', 'later'), /--kernels is later: expected now or before/)
  assert.match(refused('--batch', '0'), /--batch is 0/)
  assert.match(refused('--step', 'detect'), /--step: there is no detect|--step.*detect.*detection/)
  assert.match(refused('full', '--step', 'detection'), /a detector has no levels of fusion/)
})

test.run()
