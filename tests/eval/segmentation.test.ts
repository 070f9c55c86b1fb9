import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

import fc from 'fast-check'
import * as assert from 'uvu/assert'

import { Tape } from '../../src/autograd/tape.js'
import { iterationBatches } from '../../src/data/sampler.js'
import { openSegmentation } from '../../src/data/segmentationSources.js'
import { ConfusionMatrix } from '../../src/eval/meanIou.js'
import { evaluateSegmentation, type SegmentationOptions } from '../../src/eval/segmentation.js'
import { polyRate, type SegmentationProtocol, segmentationProtocols } from '../../src/eval/segmentationProtocols.js'
import { segmentImage, windowStarts } from '../../src/eval/segmentImage.js'
import { Fcn } from '../../src/nn/fcn.js'
import { evaluation } from '../../src/nn/layers.js'
import { allTensors, disposeState } from '../../src/nn/module.js'
import { Random } from '../../src/tensor/random.js'
import { dilated8, ResNet } from '../../src/nn/resnet.js'
import { permute } from '../../src/ops/permute.js'
import { packageRoot } from '../../src/tensor/addon.js'
import { type FloatDType, scope, Tensor } from '../../src/tensor/tensor.js'
import { loadStored, toStored } from '../../src/weights/layout.js'
import { readSafetensors, storedValues } from '../../src/weights/safetensors.js'
import { relativeDifference } from '../support/gradients.js'
import { rejectsError, suite, withFolder } from '../support/suite.js'
import { writeVocTree } from '../support/vocTree.js'

const test = suite('segmentation')
const narrow = (seed: number, compute: FloatDType = 'f32'): ResNet =>
  new ResNet({ random: new Random(seed), dtype: 'f32', compute }, { depth: 18, baseChannels: 8, ...dilated8 })

test('the network, its losses and all gradients are PyTorch’s', () => {
  const { tensors, metadata } = readSafetensors(join(packageRoot, 'tests', 'fixtures', 'segmentation', 'fcn_r50_narrow.safetensors'))
  const losses = JSON.parse(metadata.losses!) as Record<'0' | '1', [number, number]>
  const stored = (name: string) => tensors.get(name)!
  const values = (name: string): Float64Array => Float64Array.from(storedValues(stored(name)))
  const build = { random: new Random(0), dtype: 'f64' as const }
  for (const alignCorners of [false, true]) {
    const model = new Fcn(build, new ResNet(build, { depth: 50, baseChannels: 4, ...dilated8 }), {
      classes: Number(metadata.classes),
      alignCorners,
      dropout: 0,
    })
    for (const [name, tensor] of allTensors(model.state()))
      if (!name.endsWith('num_batches_tracked')) loadStored('golden', name, tensor, stored(`init.${name}`))
    scope(() => {
      const x = permute(Tensor.from(values('x'), stored('x').shape, 'f64'), [0, 2, 3, 1])
      const labels = Tensor.from(Int32Array.from(values('labels')), stored('labels').shape, 'i32')
      const known = labels.data().filter((label) => label !== 255).length / labels.size
      const key = Number(alignCorners)
      const logits = permute(model.logits(x), [0, 3, 1, 2])
      assert.ok(relativeDifference(logits.data(), values(`logits.${key}`)) < 1e-9)
      const parameters = model.state().parameters
      const tape = new Tape().watch(parameters.values())
      const { total, main, auxiliary } = tape.record(() => model.loss(x, labels, known))
      assert.ok(relativeDifference([main.item(), auxiliary.item()], losses[`${key as 0 | 1}`]) < 1e-9)
      const gradients = tape.backward(total, [...parameters.values()])
      // The file holds those of the first rule, in f32.
      if (!alignCorners)
        [...parameters.keys()].forEach((name, i) =>
          assert.ok(relativeDifference(storedValues(toStored(name, gradients[i]!)), values(`grad.${name}`)) < 1e-6, name),
        )
    })
    disposeState(model.state())
  }
})

test('a network of stride 8 has maps of an eighth, and the weights of one of stride 32', () => {
  scope(() => {
    const network = narrow(1)
    const plain = new ResNet({ random: new Random(1), dtype: 'f32' }, { depth: 18, baseChannels: 8 })
    assert.equal(network.forward(Tensor.zeros([1, 64, 80, 3]), evaluation).shape, [1, 8, 10, 64])
    assert.is(network.stride, 8)
    assert.equal(
      [...allTensors(network.state())].map(([name, { shape }]) => [name, shape]),
      [...allTensors(plain.state())].map(([name, { shape }]) => [name, shape]),
    )
    disposeState(network.state())
    disposeState(plain.state())
  })
})

test('scores by hand: an ignored pixel, a class that is nowhere, one that is only predicted', () => {
  const matrix = new ConfusionMatrix(4)
  matrix.add([0, 0, 0, 1, 1, 255], [0, 0, 1, 1, 2, 0])
  const { iou, accuracy, meanIou, meanAccuracy, pixelAccuracy } = matrix.scores()
  assert.equal(iou, [2 / 3, 1 / 3, 0, NaN])
  assert.equal(accuracy, [2 / 3, 1 / 2, NaN, NaN])
  assert.is(meanIou, 1 / 3)
  assert.ok(Math.abs(meanAccuracy - 7 / 12) < 1e-12)
  assert.is(pixelAccuracy, 3 / 5)
})

test('scores depend on the counts alone: order and grouping of images do not matter, and truth scores 1', () => {
  const pixels = fc
    .array(fc.tuple(fc.constantFrom(0, 1, 2, 255), fc.integer({ min: 0, max: 2 })), { minLength: 2, maxLength: 60 })
    .filter((all) => all.some(([label]) => label !== 255))
  fc.assert(
    fc.property(pixels, fc.integer({ min: 1, max: 59 }), (all, cut) => {
      const [labels, predicted] = [all.map(([label]) => label), all.map(([, prediction]) => prediction)]
      const [one, two, perfect] = [new ConfusionMatrix(3), new ConfusionMatrix(3), new ConfusionMatrix(3)]
      one.add(labels, predicted)
      two.add(labels.slice(cut), predicted.slice(cut))
      two.add(labels.slice(0, cut), predicted.slice(0, cut))
      assert.equal(one.scores(), two.scores())
      perfect.add(
        labels,
        labels.map((label) => (label === 255 ? 0 : label)),
      )
      assert.is(perfect.scores().meanIou, 1)
    }),
  )
})

test('windows cover every pixel, stay inside, and the last ends at the border', () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 1, max: 300 }),
      fc.integer({ min: 1, max: 120 }),
      fc.integer({ min: 1, max: 120 }),
      (length, size, step) => {
        fc.pre(step <= size)
        const starts = windowStarts(length, size, step)
        assert.is(starts[0], 0)
        assert.is(starts.at(-1)! + Math.min(size, length), length)
        starts.slice(1).forEach((start, i) => assert.ok(start > starts[i]! && start - starts[i]! <= size))
      },
    ),
  )
})

test('one window over all of the image is the whole image; windows of one colour agree with it', () => {
  const backbone = narrow(2)
  const model = new Fcn({ random: new Random(3), dtype: 'f32' }, backbone, { classes: 3, alignCorners: true })
  const random = new Random(4)
  const pixels = { width: 50, height: 40, data: Uint8Array.from({ length: 50 * 40 * 3 }, () => random.below(256)) }
  const segment = (slide: number, crop: number): Uint8Array => segmentImage(model, pixels, { scale: [50, 40], crop, slide })
  assert.equal(segment(30, 64), segment(0, 64))
  const windows = segment(20, 32)
  assert.is(windows.length, 2000)
  assert.ok(windows.every((label) => label < 3))
  disposeState(model.state())
})

test('the rate falls from its start to 1e-4 by a power of 0.9', () => {
  const { voc12aug } = segmentationProtocols
  assert.is(polyRate(voc12aug!, 0), 0.01)
  assert.ok(Math.abs(polyRate(voc12aug!, 10_000) - ((0.01 - 1e-4) * 0.5 ** 0.9 + 1e-4)) < 1e-12)
  assert.is(polyRate(voc12aug!, 20_000), 1e-4)
})

test('iterations pass over all images before one comes again, and go on from anywhere', () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 1, max: 30 }),
      fc.integer({ min: 1, max: 12 }),
      fc.integer({ min: 0, max: 20 }),
      (count, batchSize, from) => {
        const all = [...iterationBatches({ seed: 3, count, batchSize, from: 0, until: 40 })]
        const order = all.flatMap(({ indices }) => [...indices])
        for (let epoch = 0; (epoch + 1) * count <= order.length; ++epoch)
          assert.is(new Set(order.slice(epoch * count, (epoch + 1) * count)).size, count)
        assert.equal([...iterationBatches({ seed: 3, count, batchSize, from, until: 40 })], all.slice(from))
      },
    ),
  )
})

const quick: SegmentationProtocol = {
  ...segmentationProtocols.voc12aug!,
  crop: 48,
  scale: [64, 56],
  iterations: 160,
  batchSize: 4,
  lr: 0.1,
}
const options = (root: string, out: string, more: Partial<SegmentationOptions> = {}): SegmentationOptions => ({
  protocol: quick,
  train: openSegmentation(root, ['train']),
  val: openSegmentation(root, ['val']),
  out,
  quiet: true,
  seed: 1,
  workers: 1,
  ...more,
})

for (const compute of ['f32', 'bf16'] as const)
  test(`a short run in ${compute} learns colours; one that is cut off and continued ends with the same bytes`, () =>
    withFolder((folder) => learnsAndContinues(folder, compute)))

async function learnsAndContinues(folder: string, compute: FloatDType): Promise<void> {
  writeVocTree(folder, { train: 10, val: 4, width: 64, height: 56 })
  const run = async (name: string, more: Partial<SegmentationOptions>) => {
    const backbone = narrow(5, compute)
    try {
      return await evaluateSegmentation(backbone, options(folder, join(folder, name), more))
    } finally {
      disposeState(backbone.state())
    }
  }
  const { scores, samples } = await run('whole', {})
  // All background scores 0.19 and 0.74.
  assert.ok(scores!.meanIou > 0.25 && scores!.pixelAccuracy > 0.76, JSON.stringify(scores))
  assert.is(samples.length, 4)
  assert.is(samples[0]!.predicted.length, 64 * 56)

  let steps = 0
  const cut = await run('cut', { interrupted: () => ++steps > 60 })
  assert.equal([cut.interrupted, cut.iterations, cut.scores], [true, 60, undefined])
  await rejectsError(() => run('cut', {}), 'RUN', /--resume/)
  await rejectsError(() => run('cut', { resume: true, protocol: { ...quick, lr: 0.5 } }), 'CONFIG', /lr was 0\.1 and is now 0\.5/)
  const continued = await run('cut', { resume: true })
  assert.equal(continued.scores, scores)
  assert.equal(readFileSync(join(folder, 'cut', 'state.safetensors')), readFileSync(join(folder, 'whole', 'state.safetensors')))
}

test('a mask with an unknown class, or of another size, ends the run with its name', async () => {
  await withFolder(async (folder) => {
    writeVocTree(folder, { train: 3, val: 2 })
    const backbone = narrow(5)
    writeFileSync(join(folder, 'classes.txt'), 'background\nred\n')
    await rejectsError(
      () => evaluateSegmentation(backbone, options(folder, join(folder, 'out'))),
      'DATA',
      /SegmentationClass.*png/,
      /class [23]: expected 0 to 1, or 255/,
    )
    writeFileSync(join(folder, 'classes.txt'), 'background\nred\ngreen\nblue\n')
    writeFileSync(join(folder, 'JPEGImages', 'val_1.png'), readFileSync(join(folder, 'SegmentationClass', 'val_1.png')).subarray(0, 20))
    await rejectsError(
      () =>
        evaluateSegmentation(backbone, options(folder, join(folder, 'out'), { overwrite: true, protocol: { ...quick, iterations: 1 } })),
      'DECODE',
      /val_1/,
    )
    disposeState(backbone.state())
  })
})

test.run()
