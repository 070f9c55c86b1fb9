import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, readdirSync, readFileSync, statSync, utimesSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

import fc from 'fast-check'
import * as assert from 'uvu/assert'

import { Tape } from '../../src/autograd/tape.js'
import { openSource } from '../../src/data/sources.js'
import { FeatureFile } from '../../src/eval/featureFile.js'
import { featureNames, featureRows, overImages, poolFeature } from '../../src/eval/features.js'
import { batchesOf, evaluateLinear, type LinearOptions } from '../../src/eval/linear.js'
import { linearProtocols, stepRate, stretched } from '../../src/eval/linearProtocols.js'
import { needsRate, tryLinearRates } from '../../src/eval/linearRate.js'
import { LinearHeads } from '../../src/eval/linearHeads.js'
import { disposeState } from '../../src/nn/module.js'
import { Random } from '../../src/tensor/random.js'
import { ResNet } from '../../src/nn/resnet.js'
import { crossEntropy } from '../../src/ops/losses.js'
import { type FloatDType, scope, sizeOf, Tensor } from '../../src/tensor/tensor.js'
import { rejectsError, suite, testWhere, withFolder } from '../support/suite.js'
import { colourPng } from '../support/vocTree.js'

const test = suite('linear')
const network = (seed = 1, compute: FloatDType = 'f32'): ResNet =>
  new ResNet({ random: new Random(seed), dtype: 'f32', compute }, { depth: 18, baseChannels: 4 })

test('features have the published sizes on the maps of a ResNet-50 at 224 pixels', () => {
  scope(() => {
    const maps = [
      [64, 112],
      [256, 56],
      [512, 28],
      [1024, 14],
      [2048, 7],
    ].map(([c, size]) => Tensor.zeros([1, size!, size!, c!]))
    const sizes = featureNames.map((name) => poolFeature(maps, name).size)
    assert.equal(sizes, [2048, 9216, 9216, 8192, 9216, 8192])
  })
})

test('windows of the published maps are where they were published; of maps with one such side the grid is even', () => {
  scope(() => {
    /** A map whose values are the column, or the row, of their place. */
    const ramp = (height: number, width: number, column: boolean): Tensor =>
      Tensor.from(
        Float32Array.from({ length: height * width }, (_, i) => (column ? i % width : Math.floor(i / width))),
        [1, height, width, 1],
      )
    const published = { feature2: [56, 16, 8, 6], feature3: [28, 13, 5, 4], feature4: [14, 8, 3, 3], feature5: [7, 6, 1, 2] } as const
    for (const [level, [name, [size, kernel, stride, grid]]] of Object.entries(published).entries()) {
      const stages = (map: Tensor): Tensor[] => Array.from({ length: 4 }, (_, i) => (i === level ? map : Tensor.zeros([1, 1, 1, 1])))
      for (const column of [true, false]) {
        const values = poolFeature(stages(ramp(size, size, column)), name as keyof typeof published).data()
        const centres = Array.from({ length: grid }, (_, i) => i * stride + (kernel - 1) / 2)
        values.forEach((value, i) => assert.ok(Math.abs(value - centres[column ? i % grid : Math.floor(i / grid)]!) < 1e-4, name))
      }
      // Twice as wide: both sides in as many parts as the grid has.
      const wide = poolFeature(stages(ramp(size, 2 * size, true)), name as keyof typeof published)
      assert.equal(wide.shape, [1, grid, grid, 1])
      const mean = [...wide.data()].reduce((sum, value) => sum + value, 0) / wide.size
      assert.ok(Math.abs(mean - (2 * size - 1) / 2) < 0.01 * size, `${name} ${mean}`)
    }
  })
})

test('on maps of other sizes the same grids, or the map where it is smaller; constants stay what they are', () => {
  scope(() => {
    const maps = [48, 24, 12, 6, 3].map((size) => Tensor.full([2, size, size + 1, 5], 0.25))
    assert.equal(
      featureNames.map((name) => poolFeature(maps, name).shape.slice(1, 3).join('x')),
      ['1x1', '12x12', '6x6', '4x4', '3x3', '2x2'],
    )
    const tiny = [2, 1, 1, 1, 1].map((size) => Tensor.full([1, size, size, 3], 0.25))
    for (const all of [maps, tiny])
      for (const name of featureNames) for (const value of poolFeature(all, name).data()) assert.is(value, 0.25)
  })
})

test('kept features are those that are computed, in any order of rows, and other weights or dtypes have a file of their own', async () => {
  await withFolder(async (folder) => {
    const { items } = await openSource('scenes:7')
    const files: string[] = []
    for (const [seed, compute] of [
      [1, 'f32'],
      [2, 'f32'],
      [1, 'bf16'],
    ] as const) {
      const backbone = network(seed, compute)
      const shapes = [
        { name: 'feature2' as const, shape: [6, 6, 4], size: 144 },
        { name: 'pooled' as const, shape: [1, 1, 32], size: 32 },
      ]
      const file = await FeatureFile.open(folder, backbone, items, shapes, { imageSize: 48, pipeline: 'centre', workers: 1, batchSize: 3 })
      const expected = await featureRows(backbone, items, 'feature2', { imageSize: 48, workers: 1 })
      const [rows, pooled] = file.rows([6, 0, 3])
      assert.equal(rows!.subarray(0, 144), expected.values.subarray(6 * 144, 7 * 144))
      assert.equal(rows!.subarray(144, 288), expected.values.subarray(0, 144))
      assert.is(pooled!.length, 3 * 32)
      file.close()
      // The second time nothing is computed.
      utimesSync(file.path, 1, 1)
      const again = await FeatureFile.open(folder, backbone, items, shapes, { imageSize: 48, pipeline: 'centre' })
      assert.is(statSync(again.path).mtimeMs, 1000)
      again.close()
      files.push(file.path)
      disposeState(backbone.state())
    }
    assert.is(new Set(files).size, files.length)
  })
})

test('features of images that could not be read are kept for nobody: the next one hears of them too, or reads them once repaired', () =>
  withFolder(async (folder) => {
    const images = join(folder, 'images')
    mkdirSync(images)
    const picture = (value: number): Buffer => Buffer.from(colourPng(new Uint8Array(3 * 8 * 8).fill(value), 8, 8))
    for (const [i, bytes] of [picture(10), Buffer.from('torn'), picture(90)].entries()) writeFileSync(join(images, `${i}.png`), bytes)
    const { items } = await openSource(images)
    const backbone = network()
    const opened = async (): Promise<{ rows: Float32Array; broken: string[]; left: string[] }> => {
      const broken = new Map<string, string>()
      const shapes = [{ name: 'pooled' as const, shape: [1, 1, 32], size: 32 }]
      const options = { imageSize: 32, pipeline: 'centre', workers: 1, maxBroken: 0.5, broken } as const
      const file = await FeatureFile.open(folder, backbone, items, shapes, options)
      const [rows] = file.rows([0, 1, 2])
      file.close()
      return { rows: rows!, broken: [...broken.keys()], left: readdirSync(folder).filter((name) => name.startsWith('features')) }
    }
    const torn = await opened()
    assert.is(torn.broken.length, 1)
    assert.equal(torn.left, [])
    assert.equal(await opened(), torn)
    writeFileSync(join(images, '1.png'), picture(200))
    const whole = await opened()
    assert.equal([whole.broken, whole.left.length], [[], 1])
    assert.equal([whole.rows.subarray(0, 32), whole.rows.subarray(64)], [torn.rows.subarray(0, 32), torn.rows.subarray(64)])
    assert.not.equal(whole.rows.subarray(32, 64), torn.rows.subarray(32, 64))
    disposeState(backbone.state())
  }))

testWhere(
  process.platform !== 'win32',
  'Windows has no limits of files',
  test,
  'a disk that fills up while features are written is an error with their file, which is not left there',
  () =>
    withFolder((folder) => {
      const at = (module: string): string => JSON.stringify(new URL(`../../src/${module}.js`, import.meta.url).href)
      const source = `
      const { FeatureFile } = await import(${at('eval/featureFile')})
      const { openSource } = await import(${at('data/sources')})
      const { ResNet } = await import(${at('nn/resnet')})
      const { Random } = await import(${at('tensor/random')})
      const backbone = new ResNet({ random: new Random(1), dtype: 'f32' }, { depth: 18, baseChannels: 4 })
      const { items } = await openSource('scenes:9')
      const shapes = [{ name: 'feature5', shape: [2, 2, 32], size: 128 }]
      try {
        const options = { imageSize: 64, pipeline: 'centre', workers: 1 }
        await FeatureFile.open(${JSON.stringify(join(folder, 'kept'))}, backbone, items, shapes, options)
      } catch (error) {
        console.log(error.code, error.message)
      }`
      const program = join(folder, 'program.mjs')
      writeFileSync(program, source)
      mkdirSync(join(folder, 'kept'))
      // A file may have 4 blocks of 512 or 1024 bytes; the features have 4608.
      const command = ['-c', 'ulimit -f 4; exec "$0" "$1"', process.execPath, program]
      const { stdout, stderr } = spawnSync('sh', command, { encoding: 'utf8' })
      assert.match(stdout, /^WRITE .*features-\w+\.f32: features cannot be written \(EFBIG\)/, stderr)
      assert.equal(readdirSync(join(folder, 'kept')), [])
    }),
)

test('every image is passed once, in order, whatever the batch', async () => {
  const backbone = network()
  const { items } = await openSource('scenes:10')
  const seen: [number, number][] = []
  await overImages(backbone, items, { imageSize: 32, batchSize: 4, workers: 2 }, (_, first, count) => seen.push([first, count]))
  assert.equal(seen, [
    [0, 4],
    [4, 4],
    [8, 2],
  ])
  disposeState(backbone.state())
})

test('heads begin at chance, and each learns as if it were alone', () => {
  scope(() => {
    const random = new Random(3)
    const shapes = [
      { name: 'pooled' as const, shape: [1, 1, 5], size: 5 },
      { name: 'feature5' as const, shape: [2, 2, 3], size: 12 },
    ]
    const pooled = shapes.map(({ shape }) =>
      Tensor.from(
        Float32Array.from({ length: 6 * sizeOf(shape) }, () => random.normal()),
        [6, ...shape],
      ),
    )
    const target = Tensor.from(Int32Array.of(0, 1, 2, 3, 0, 1), [6], 'i32')
    const heads = new LinearHeads(shapes, 4, random)
    const parameters = heads.parameters()
    const gradients = (chosen: 'both' | number): ArrayLike<number>[] => {
      const tape = new Tape().watch(parameters.values())
      const loss = tape.record(() =>
        chosen === 'both' ? heads.loss(pooled, target) : crossEntropy(heads.logits(pooled, { train: true, groups: 1 })[chosen]!, target),
      )
      if (chosen === 'both') assert.ok(Math.abs(loss.item() - 2 * Math.log(4)) < 0.1)
      return tape.backward(loss, [...parameters.values()]).map((gradient) => gradient.data())
    }
    const both = gradients('both')
    // Weight and bias of the first head, then of the second.
    assert.equal(both.slice(0, 2), gradients(0).slice(0, 2))
    assert.equal(both.slice(2), gradients(1).slice(2))
    heads.dispose()
  })
})

const quick = { ...stretched(linearProtocols['imagenet-features']!, 6), heads: ['feature4', 'feature5'] as const, batchSize: 20, lr: 0.05 }

async function options(folder: string, name: string, more: Partial<LinearOptions> = {}): Promise<LinearOptions> {
  const [train, val] = [await openSource('scenes:100'), await openSource('scenes:40', { split: 'val' })]
  return {
    protocol: quick,
    train: train.items,
    val: val.items,
    classes: 10,
    imageSize: 48,
    out: join(folder, name),
    quiet: true,
    seed: 2,
    workers: 1,
    ...more,
  }
}

for (const compute of ['f32', 'bf16'] as const)
  test(`classifiers of maps in ${compute} learn, from views and from kept features; what is cut off ends with the same bytes`, async () => {
    await withFolder(async (folder) => {
      const backbone = network(4, compute)
      const own = await options(folder, 'kept', { protocol: { ...quick, pipeline: 'centre', epochs: 30, steps: [20, 28] } })
      const kept = await evaluateLinear(backbone, { ...own, val: own.train })
      // Chance is 10 %; what was trained on is tested.
      for (const { top1, top5, best } of kept.heads) assert.ok(top1 > 0.4 && top5 >= top1 && best >= top1, JSON.stringify(kept.heads))
      const whole = await evaluateLinear(backbone, await options(folder, 'whole'))
      assert.equal(
        whole.heads.map(({ head }) => head),
        ['feature4', 'feature5'],
      )

      let asked = 0
      const cut = await evaluateLinear(backbone, await options(folder, 'cut', { interrupted: () => ++asked > 13 }))
      assert.equal([cut.interrupted, cut.epochs], [true, 2])
      await rejectsError(async () => evaluateLinear(backbone, await options(folder, 'cut')), 'RUN', /--resume/)
      const other = new ResNet({ random: new Random(1), dtype: 'f32' }, { depth: 34, baseChannels: 4 })
      await rejectsError(
        async () => evaluateLinear(other, await options(folder, 'cut', { resume: true })),
        'CONFIG',
        /backbone was "ResNet-18 of 4 base channels" and is now "ResNet-34 of 4/,
      )
      disposeState(other.state())
      const continued = await evaluateLinear(backbone, await options(folder, 'cut', { resume: true }))
      assert.equal(continued.heads, whole.heads)
      assert.equal(readFileSync(join(folder, 'cut', 'state.safetensors')), readFileSync(join(folder, 'whole', 'state.safetensors')))
      assert.ok(readdirSync(join(folder, 'whole')).some((name) => name.startsWith('features-')))
      disposeState(backbone.state())
    })
  })

test('batches hold every image once, in order; only the last is of another size, and of no fewer than the least', () =>
  fc.assert(
    fc.property(fc.nat(20), fc.integer({ min: 2, max: 6 }), fc.constantFrom(1, 2), (count, batchSize, least) => {
      const order = Int32Array.from({ length: count }, (_, i) => count - i)
      const batches = batchesOf(order, batchSize, least)
      assert.equal(
        batches.flatMap((batch) => [...batch]),
        [...order],
      )
      const sizes = batches.map(({ length }) => length)
      assert.ok(sizes.slice(0, -1).every((size) => size === batchSize))
      assert.ok(sizes.every((size) => size >= Math.min(least, count) && size < batchSize + least))
    }),
  ))

test('where a feature is one cell and one image is left of the batches, it is learnt from with those before; alone it is an error', () =>
  withFolder(async (folder) => {
    const backbone = network(4)
    const { items } = await openSource('scenes:9')
    for (const pipeline of ['crop', 'centre'] as const) {
      const protocol = { ...quick, epochs: 1, steps: [], heads: ['feature4', 'feature5'] as const, batchSize: 4, pipeline }
      // At 32 px the last map is 1 x 1; of nine images one is left of batches of four, and of the one that is tested too.
      const own = { protocol, imageSize: 32, train: items, val: items.slice(0, 1), cacheBytes: 0 }
      const { heads } = await evaluateLinear(backbone, await options(folder, pipeline, own))
      assert.ok(heads.every(({ top1 }) => top1 === 0 || top1 === 1))
      const out = join(folder, `${pipeline}-alone`)
      await rejectsError(
        async () => evaluateLinear(backbone, await options(folder, `${pipeline}-alone`, { ...own, train: items.slice(0, 1) })),
        'DATA',
        /feature5 of an image of 32 px is one cell/,
        /1 training image/,
      )
      assert.not(existsSync(out))
    }
    backbone.dispose()
  }))

test('steps of the learning rate keep their places in another number of epochs', () => {
  assert.equal(stretched(linearProtocols['imagenet-avgpool']!, 10).steps, [6, 8])
  assert.equal(linearProtocols.places205!.steps, [7, 14, 21])
  // 60 epochs at 30, 20 at 3, 20 at 0.3.
  const rates = Array.from({ length: 100 }, (_, epoch) => stepRate(linearProtocols['imagenet-avgpool']!, epoch).toFixed(3))
  assert.equal(
    ['30.000', '3.000', '0.300'].map((rate) => rates.filter((own) => own === rate).length),
    [60, 20, 20],
  )
  const { lr, weightDecay, nesterov, epochs, heads } = linearProtocols['imagenet-avgpool']!
  assert.equal([lr, weightDecay, nesterov, epochs, heads], [30, 0, false, 100, ['pooled']])
})

test('few images get a learning rate of their own, chosen among those that do not blow up on images that are held out', async () => {
  const backbone = network(4)
  const { items: train } = await openSource('scenes:80')
  const protocol = linearProtocols['imagenet-avgpool']!
  assert.equal(
    [needsRate(protocol, 5000), needsRate(protocol, 1_281_167), needsRate(linearProtocols['imagenet-features']!, 5000)],
    [true, false, false],
  )
  const tried = await tryLinearRates(backbone, { protocol, train, classes: 10 }, { imageSize: 32, workers: 1 })
  assert.equal(
    tried.map(({ lr }) => lr).sort((a, b) => b - a),
    [30, 10, 3, 1, 0.3, 0.1, 0.03, 0.01],
  )
  for (const [i, { top1, loss }] of tried.slice(1).entries()) {
    const before = tried[i]!
    assert.ok(top1 < before.top1 || (top1 === before.top1 && loss >= before.loss), 'the best comes first')
  }
  const lossAt = (rate: number): number => tried.find(({ lr }) => lr === rate)!.loss
  assert.ok(tried[0]!.loss < lossAt(30), `${tried[0]!.loss} ${lossAt(30)}`)
  backbone.dispose()
})

test.run()
