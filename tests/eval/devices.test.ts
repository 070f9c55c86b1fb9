/** Evaluation on the device under test against the CPU: the same features, heads, segmentation network and products, in f32. */
import { join } from 'node:path'

import * as assert from 'uvu/assert'

import { Tape } from '../../src/autograd/tape.js'
import { openSegmentation, type SegmentationSource } from '../../src/data/segmentationSources.js'
import { openSource } from '../../src/data/sources.js'
import { extractFeatures } from '../../src/eval/knn.js'
import { evaluateLinear } from '../../src/eval/linear.js'
import { linearProtocols, stretched } from '../../src/eval/linearProtocols.js'
import { InnerProducts } from '../../src/eval/innerProducts.js'
import { evaluateSegmentation } from '../../src/eval/segmentation.js'
import { segmentationProtocols } from '../../src/eval/segmentationProtocols.js'
import { segmentImage } from '../../src/eval/segmentImage.js'
import { Fcn } from '../../src/nn/fcn.js'
import { disposeState } from '../../src/nn/module.js'
import { Random } from '../../src/tensor/random.js'
import { dilated8, ResNet, type ResNetOptions } from '../../src/nn/resnet.js'
import { withCompute } from '../../src/tensor/compute.js'
import { scope, Tensor, withDevice } from '../../src/tensor/tensor.js'
import { writeBackbone } from '../../src/weights/export.js'
import { device, thorough } from '../support/devices.js'
import { relativeDifference } from '../support/gradients.js'
import { suite, withFolder } from '../support/suite.js'
import { writeVocTree } from '../support/vocTree.js'

const test = suite(`evaluation on ${device}`, device)
const network = (where: string, more: Partial<ResNetOptions> = {}): ResNet =>
  withDevice(where, () => new ResNet({ random: new Random(1), dtype: 'f32' }, { depth: 18, baseChannels: 4, ...more }))

test('features for kNN', async () => {
  const { items } = await openSource('scenes:3')
  const [expected, actual] = await Promise.all(
    ['cpu', device].map(async (where) => {
      const backbone = network(where)
      const { values } = await extractFeatures(backbone, items, { imageSize: 32, workers: 1, compute: { precision: 'f32' } })
      disposeState(backbone.state())
      return values
    }),
  )
  assert.ok(relativeDifference(actual!, expected!) < 1e-4)
})

test('loss and gradients of the segmentation network, and its prediction', () => {
  const run = (where: string): { numbers: number[]; gradients: number[]; labels: Uint8Array } =>
    withDevice(where, () => {
      const random = new Random(2)
      const model = new Fcn({ random, dtype: 'f32' }, network(where, dilated8), { classes: 5, alignCorners: true })
      const result = scope(() => {
        const x = Tensor.from(
          Float32Array.from({ length: 2 * 32 * 40 * 3 }, () => random.normal()),
          [2, 32, 40, 3],
        )
        const labels = Tensor.from(
          Int32Array.from({ length: 2 * 32 * 40 }, (_, i) => (i % 7 === 0 ? 255 : random.below(5))),
          [2, 32, 40],
          'i32',
        )
        const parameters = [...model.state().parameters.values()]
        const tape = new Tape().watch(parameters)
        const { total, main, auxiliary } = tape.record(() => model.loss(x, labels, 6 / 7, 3))
        const numbers = [main.item(), auxiliary.item()]
        return { numbers, gradients: tape.backward(total, parameters).flatMap((gradient) => Array.from(gradient.data())) }
      })
      const pixels = { width: 40, height: 32, data: Uint8Array.from({ length: 40 * 32 * 3 }, () => random.below(256)) }
      const labels = segmentImage(model, pixels, { scale: [40, 32], crop: 24, slide: 16 })
      disposeState(model.state())
      return { ...result, labels }
    })
  const [expected, actual] = [run('cpu'), run(device)]
  assert.ok(relativeDifference(actual.numbers, expected.numbers) < 1e-4)
  assert.ok(relativeDifference(actual.gradients, expected.gradients) < 2e-2)
  const differ = actual.labels.reduce((sum, label, i) => sum + Number(label !== expected.labels[i]), 0)
  assert.ok(differ <= 0.02 * actual.labels.length, `${differ} pixels differ`)
})

test('inner products', () => {
  const random = new Random(4)
  const set = (n: number) => ({ dim: 20, values: Float32Array.from({ length: n * 20 }, () => random.normal()) })
  const [examples, others] = [set(30), set(11)]
  const vector = Float64Array.from({ length: 30 }, () => random.normal())
  // Products are exact also where convolutions are not.
  const [expected, actual] = ['cpu', device].map((where) =>
    withCompute({ precision: 'tf32' }, () =>
      withDevice(where, () => {
        const { gram, cross } = InnerProducts.of(
          { ...examples, values: examples.values.slice() },
          { ...others, values: others.values.slice() },
        )
        const results = [...gram.times([vector])[0]!, ...cross.times([vector])[0]!]
        gram.dispose()
        cross.dispose()
        return results
      }),
    ),
  )
  assert.ok(relativeDifference(actual!, expected!) < 2e-5)
})

if (thorough)
  test('linear classifiers', async () => {
    await withFolder(async (folder) => {
      const [train, val] = [(await openSource('scenes:20')).items, (await openSource('scenes:10', { split: 'val' })).items]
      const results: number[][] = []
      for (const where of ['cpu', device]) {
        const backbone = network(where)
        const weights = join(folder, `${where.replace(':', '')}.safetensors`)
        writeBackbone(weights, backbone, 'torchvision')
        const protocol = { ...stretched(linearProtocols['imagenet-features']!, 2), batchSize: 10, pipeline: 'centre' as const }
        const { heads } = await evaluateLinear(backbone, {
          protocol,
          train,
          val,
          classes: 10,
          imageSize: 32,
          out: join(folder, where.replace(':', '')),
          quiet: true,
          workers: 1,
          compute: { precision: 'f32' },
        })
        results.push(heads.map(({ top5 }) => top5))
        disposeState(backbone.state())
      }
      // A rank may change within rounding: of ten images one at most.
      results[1]!.forEach((top5, h) => assert.ok(Math.abs(top5 - results[0]![h]!) <= 0.1 + 1e-9))
    })
  })

if (thorough)
  test('segmentation from files to scores', async () => {
    await withFolder(async (folder) => {
      writeVocTree(folder, { train: 3, val: 2, width: 40, height: 32 })
      const backbone = network(device, dilated8)
      const [train, val] = ['train', 'val'].map((split) => openSegmentation(folder, [split])) as [SegmentationSource, SegmentationSource]
      const protocol = { ...segmentationProtocols.voc12aug!, crop: 32, scale: [40, 32] as const, iterations: 2, batchSize: 2 }
      const { scores, iterations } = await evaluateSegmentation(backbone, {
        protocol,
        train,
        val,
        out: join(folder, 'out'),
        quiet: true,
        workers: 1,
      })
      assert.is(iterations, 2)
      assert.ok(scores!.pixelAccuracy >= 0 && scores!.pixelAccuracy <= 1)
      disposeState(backbone.state())
    })
  })

test.run()
