/** Evaluations in bf16: what they find is what they find in f32, to the rounding of its 8 bits; what a device has not is refused. */
import { existsSync } from 'node:fs'
import { join } from 'node:path'

import * as assert from 'uvu/assert'

import { scene } from '../../src/data/scenes.js'
import { openSegmentation } from '../../src/data/segmentationSources.js'
import { openSource } from '../../src/data/sources.js'
import { type DetectorForm, joined } from '../../src/detection/detector.js'
import { openDetector, saveDetector } from '../../src/detection/detectorFile.js'
import { detectorOf } from '../../src/detection/detectorShape.js'
import { publishedPyramid } from '../../src/detection/maskRcnn.js'
import { correspondence } from '../../src/eval/correspondence.js'
import { embedImages } from '../../src/eval/embed.js'
import { featureNames, pooledFeatures, poolFeature } from '../../src/eval/features.js'
import { frozenSegmentation } from '../../src/eval/frozenSegmentation.js'
import { extractFeatures, knnAccuracy } from '../../src/eval/knn.js'
import { finetuneOfLength, finetuneProtocols } from '../../src/eval/finetuneProtocols.js'
import { finetune } from '../../src/eval/finetune.js'
import { evaluateLinear } from '../../src/eval/linear.js'
import { linearProtocols, stretched } from '../../src/eval/linearProtocols.js'
import { backboneKinds } from '../../src/nn/backbones.js'
import { evaluation } from '../../src/nn/layers.js'
import { Classifier } from '../../src/nn/classifier.js'
import { ResNet } from '../../src/nn/resnet.js'
import { softmax } from '../../src/ops/softmax.js'
import { seeImage } from '../../src/report/pairs.js'
import { Random } from '../../src/tensor/random.js'
import { type FloatDType, scope, Tensor } from '../../src/tensor/tensor.js'
import { writeBackbone } from '../../src/weights/export.js'
import { relativeDifference } from '../support/gradients.js'
import { rejectsError, runCli, suite, withFolder } from '../support/suite.js'
import { writeVocTree } from '../support/vocTree.js'

const test = suite('evaluations in bf16')

const [depth, baseChannels] = [18, 8] as const
/** Writes a detector of random weights. */
function writeDetectorFile(path: string, form: DetectorForm): void {
  const backbone = network('f32')
  const [style, anchors, ratios] = ['detectron2', [8, 16, 32, 64, 128], [1]] as const
  const pyramid = { ...publishedPyramid, channels: 16, width: 32, levels: style }
  const shape = { form, style, classes: 2, anchors, ratios, pyramid }
  const model = detectorOf({ random: new Random(4), dtype: 'f32' }, backbone, shape)
  const test = { testScale: 64, longest: 96, testRegions: 20 }
  saveDetector(path, model, { style, classes: ['one', 'other'], anchors: [...anchors], ratios: [...ratios], ...test })
  model.dispose()
  backbone.dispose()
}

const network = (compute: FloatDType): ResNet => new ResNet({ random: new Random(1), dtype: 'f32', compute }, { depth, baseChannels })

/** Rounding to 8 bits errs by 2^-9 at most; in each layer activations and weights are rounded, and errors add up like independent ones. */
const bound = Math.sqrt(2 * depth) * 2 ** -9

/** What `body` gives of a network in f32 and of one with the same weights in bf16. */
async function ofBoth<R>(body: (backbone: ResNet) => R | Promise<R>): Promise<[f32: R, bf16: R]> {
  const of = async (compute: FloatDType): Promise<R> => {
    const backbone = network(compute)
    try {
      return await body(backbone)
    } finally {
      backbone.dispose()
    }
  }
  return [await of('f32'), await of('bf16')]
}

/** Random images [count, side, side, 3]. */
function noise(count: number, side: number): Tensor {
  const random = new Random(7)
  return Tensor.from(
    Float32Array.from({ length: count * side * side * 3 }, () => random.normal()),
    [count, side, side, 3],
  )
}

test('features of bf16 maps are those of f32 within its rounding, and means that are not rounded again', async () => {
  const [exact, rounded] = await ofBoth((backbone) =>
    scope(() => pooledFeatures(backbone, noise(20, 64), featureNames).map((feature) => [feature.dtype, feature.data()] as const)),
  )
  for (const [i, name] of featureNames.entries()) {
    assert.equal([exact[i]![0], rounded[i]![0]], ['f32', 'f32'])
    const difference = relativeDifference(rounded[i]![1], exact[i]![1])
    assert.ok(difference > 0 && difference < bound, `${name} ${difference}`)
  }
  scope(() => {
    const maps = [Tensor.from([1, 1 + 2 ** -7], [1, 2, 1, 1], 'bf16')]
    assert.equal([...poolFeature(maps, 'pooled').data()], [1 + 2 ** -8])
  })
})

test('commands that look at frozen features find in bf16 what they find in f32', () =>
  withFolder(async (folder) => {
    const { items: bank } = await openSource('scenes:60')
    const { items: queries } = await openSource('scenes:40', { split: 'val' })
    const read = { imageSize: 48, workers: 1 }
    const near = ([one, other]: [number, number], count: number, what: string): void =>
      // One in twenty may be on the other side of a border.
      assert.ok(Math.abs(one - other) <= 1 / 20 + 1 / count, `${what}: ${one} ${other}`)

    const [exact, rounded] = await ofBoth(async (backbone) => (await extractFeatures(backbone, queries, read)).values)
    assert.ok(relativeDifference(rounded, exact) < bound)
    near(await ofBoth((backbone) => knnAccuracy(backbone, bank, queries, { ...read, k: 5 })), queries.length, 'kNN')
    const places = await ofBoth(async (backbone) => (await correspondence(backbone, queries, read)).map(({ found }) => found.exact))
    for (const level of [0, 1]) near([places[0][level]!, places[1][level]!], queries.length, 'correspondence')

    writeVocTree(folder, { train: 6, val: 4 })
    const [train, val] = [openSegmentation(folder, ['train']), openSegmentation(folder, ['val'])]
    const cells = await ofBoth(async (backbone) => {
      const [last] = await frozenSegmentation(backbone, { train, val }, { window: 64, windows: 4, workers: 1, balanced: false })
      return last!.features.objectAuc
    })
    near(cells, 4, 'frozen segmentation')

    const embedded = await ofBoth(async (backbone) => {
      const rows: number[] = []
      await embedImages(backbone, queries.slice(0, 5), 'dense', read, (_, values) => rows.push(...values))
      return rows
    })
    assert.ok(relativeDifference(embedded[1], embedded[0]) < bound)
  }))

test('a classifier on a backbone in bf16 has logits in f32, and probabilities of f32 within its rounding', async () => {
  const [exact, rounded] = await ofBoth((backbone) => {
    const model = new Classifier({ random: new Random(2), dtype: 'f32', compute: backbone.compute }, backbone, 5)
    const found = scope(() => {
      const logits = model.logits(noise(8, 64), evaluation)
      assert.is(logits.dtype, 'f32')
      return [...softmax(logits).data()]
    })
    model.dispose()
    return found
  })
  assert.ok(relativeDifference(rounded, exact) < bound)
})

test('a detector of a file in bf16 has the scores and moves of f32 within its rounding, in both forms', () =>
  withFolder((folder) => {
    const file = join(folder, 'detector.safetensors')
    for (const form of ['c4', 'fpn'] as const) {
      writeDetectorFile(file, form)
      const of = (compute: FloatDType): Record<string, ArrayLike<number>> => {
        const { model } = openDetector(file, (name) => backboneKinds.get(name), compute)
        const found = scope(() => {
          const maps = model.features(noise(2, 64), evaluation)
          const { logits, deltas } = joined(model.propose(maps))
          // A small region and a large one, which a pyramid takes from two maps.
          const regions = { boxes: Float64Array.of(3, 5, 20, 30, 0, 0, 63, 63), images: Int32Array.of(0, 1) }
          const classified = model.classify(maps, regions, evaluation)
          const masks = model.masks?.(maps, regions, evaluation)
          const all = { logits, deltas, classes: classified.logits, moves: classified.deltas, ...(masks === undefined ? {} : { masks }) }
          return Object.fromEntries(Object.entries(all).map(([name, tensor]) => [name, tensor.to('f32').data()]))
        })
        model.dispose()
        model.backbone.dispose()
        return found
      }
      const [exact, rounded] = [of('f32'), of('bf16')]
      assert.is('masks' in exact, form === 'fpn')
      for (const [name, values] of Object.entries(exact)) {
        const difference = relativeDifference(rounded[name]!, values)
        // Heads are up to seven layers more, and the largest of some thousand errors is over twice their deviation.
        assert.ok(difference > 0 && difference < 2 * bound, `${form} ${name} ${difference}`)
      }
    }
  }))

test('dense features of pictures in bf16 are unit vectors of f32, and those of f32 within its rounding', async () => {
  const [exact, rounded] = await ofBoth((backbone) => seeImage(backbone, scene(1, 2).pixels, 128))
  const { grid, channels, features } = rounded
  assert.equal([grid, channels], [exact.grid, exact.channels])
  const difference = relativeDifference(features, exact.features)
  assert.ok(difference > 0 && difference < bound, String(difference))
  for (let at = 0; at < features.length; at += channels) {
    const length = Math.hypot(...features.subarray(at, at + channels))
    assert.ok(Math.abs(length - 1) < channels * 2 ** -23, `position ${at / channels} has length ${length}`)
  }
})

const labelled = async () => {
  const [train, val] = [await openSource('scenes:30'), await openSource('scenes:10', { split: 'val' })]
  return { train: train.items, val: val.items, classes: train.classes! }
}

test('fine-tuning and linear classifiers that were begun in one dtype are not continued in another', () =>
  withFolder(async (folder) => {
    const { classes, ...items } = await labelled()
    const shared = { ...items, imageSize: 32, quiet: true, workers: 1 }
    const evaluations = {
      finetune: async (backbone: ResNet, out: string, resume: boolean, interrupted = () => false) => {
        const protocol = { ...finetuneOfLength(finetuneProtocols['imagenet-full']!, 2), batchSize: 10 }
        return await finetune(backbone, { ...shared, protocol, classes, chooseBy: 'held-out', out, resume, interrupted })
      },
      linear: async (backbone: ResNet, out: string, resume: boolean, interrupted = () => false) => {
        const protocol = { ...stretched(linearProtocols['imagenet-features']!, 2), batchSize: 10 }
        return await evaluateLinear(backbone, { ...shared, protocol, classes: classes.length, out, resume, interrupted })
      },
    }
    for (const [name, evaluate] of Object.entries(evaluations))
      for (const [began, now] of [
        ['f32', 'bf16'],
        ['bf16', 'f32'],
      ] as const) {
        const out = join(folder, `${name}-${began}`)
        // Fine-tuning trains the network that it is given: the weights that it begins with are those of another.
        const [first, second, again] = [network(began), network(now), network(began)]
        let asked = 0
        assert.ok((await evaluate(first, out, false, () => ++asked > 4)).interrupted)
        await rejectsError(() => evaluate(second, out, true), 'CONFIG', `compute was "${began}" and is now "${now}"`)
        assert.not((await evaluate(again, out, true)).interrupted)
        for (const each of [first, second, again]) each.dispose()
      }
  }))

test('commands say that they compute in bf16, and refuse what the device has not', () =>
  withFolder((folder) => {
    const weights = join(folder, 'weights.safetensors')
    const backbone = network('f32')
    writeBackbone(weights, backbone, 'torchvision')
    backbone.dispose()
    const voc = join(folder, 'voc')
    writeVocTree(voc, { train: 4, val: 4 })
    const image = join(voc, 'JPEGImages', 'val_1.png')
    const placed = ['--device', 'cpu', '--workers', '1']
    const labels = ['--train', 'scenes:20', '--val', 'scenes:10', '--image-size', '32']
    const out = ['--out', join(folder, 'out')]
    const evaluations: string[][] = [
      ['knn', weights, ...labels, ...out],
      ['linear', weights, ...labels, ...out, '--epochs', '1'],
      ['finetune', weights, ...labels, ...out, '--epochs', '1', '--lr', '0.01', '--head-multiplier', '1'],
      ['correspondence', weights, '--data', 'scenes:10', '--image-size', '32', ...out],
      ['segmentation', weights, '--data', voc, '--frozen', '--window', '32', ...out],
    ]
    for (const command of evaluations) {
      const run = (precision: string) => runCli(['eval', ...command, ...placed, '--precision', precision, '--json'])
      assert.match(run('tf32').err, /--precision is tf32: expected f32 or bf16 on cpu/)
      const { code, out: printed, err } = run('bf16')
      assert.is(code, 0, err)
      assert.match(printed, /ResNet-18 of 8 base channels.*, activations in bf16/)
    }
    const detector = join(folder, 'detector.safetensors')
    writeDetectorFile(detector, 'c4')
    const classifier = join(folder, 'out', 'finetune-imagenet-full', 'classifier.safetensors')
    for (const command of [
      ['embed', image, '--weights', weights, '--out', join(folder, 'features.npy')],
      ['search', image, voc, '--weights', weights, '--out', join(folder, 'found')],
      ['predict', image, '--weights', classifier],
      ['detect', image, '--weights', detector, '--out', join(folder, 'detected')],
      ['match', image, '--weights', weights, '--size', '64', '--out', join(folder, 'matches')],
    ]) {
      // Those two read their images themselves.
      const own = ['detect', 'match'].includes(command[0]!) ? placed.slice(0, 2) : placed
      const run = (precision: string) => runCli([...command, ...own, '--precision', precision])
      assert.match(run('tf32').err, /--precision is tf32: expected f32 or bf16 on cpu/)
      assert.is(run('bf16').code, 0)
    }
    assert.ok(existsSync(join(folder, 'features.npy')))
  }))

test.run()
