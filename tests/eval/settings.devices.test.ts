/** Commands, studies and library evaluate in one precision, whatever was computed before them. */
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

import * as assert from 'uvu/assert'

import { openBackbone } from '../../src/cli/evalShared.js'
import { openSegmentation } from '../../src/data/segmentationSources.js'
import { openSource } from '../../src/data/sources.js'
import { extractFeatures } from '../../src/eval/knn.js'
import { evaluateLinear } from '../../src/eval/linear.js'
import { linearProtocols, stretched } from '../../src/eval/linearProtocols.js'
import { evaluateSegmentation } from '../../src/eval/segmentation.js'
import { segmentationProtocols } from '../../src/eval/segmentationProtocols.js'
import type { Backbone } from '../../src/nn/backbone.js'
import { ResNet } from '../../src/nn/resnet.js'
import { type StudySize } from '../../src/study/sizes.js'
import { runStudy } from '../../src/study/study.js'
import { type ComputeOptions, currentCompute } from '../../src/tensor/compute.js'
import { native, observe, tensorsOf } from '../../src/tensor/native.js'
import { Random } from '../../src/tensor/random.js'
import type { Tensor } from '../../src/tensor/tensor.js'
import { deviceTraits } from '../../src/tensor/traits.js'
import { writeBackbone } from '../../src/weights/export.js'
import { device, thorough } from '../support/devices.js'
import { suite, withFolder } from '../support/suite.js'
import { colourPng, drawn, writeVocTree } from '../support/vocTree.js'

const test = suite(`settings of evaluations on ${device}`, device)

/** The precisions of the products that `body` computes on the device. */
async function precisionsOf<R>(body: () => Promise<R>): Promise<{ result: R; seen: string[] }> {
  const seen = new Set<string>()
  observe.op = (op, run, tensors, numbers) => {
    run()
    if (/^conv2d(Backward\w+)?$/.test(op) && (tensorsOf(tensors)[0] as Tensor).device === device)
      seen.add(numbers.tf32 === true ? 'tf32' : 'f32')
  }
  try {
    const result = await body()
    return { result, seen: [...seen] }
  } finally {
    delete observe.op
  }
}

const [depth, baseChannels, imageSize, seed] = [18, 4, 32, 0] as const
const size: StudySize = {
  describe: 'for a test',
  config: { depth, baseChannels, imageSize, batchSize: 2, epochs: 1, queueLength: 8, denseWeight: 0.5, device, workers: 1 },
  seeds: 1,
  equalTime: 1,
  correspondence: { images: 4 },
  objects: { window: 32, windows: 8 },
  scenes: { window: 32, windows: 1 },
  linearEpochs: 1,
  segmentation: { iterations: 1, batchSize: 2, crop: 32, scale: [40, 32] },
}

/** Two classes of drawings, three to train and two to test with, and a tree for segmentation. */
function writeData(folder: string): { images: string; segmentation: string } {
  const [images, segmentation] = [join(folder, 'images'), join(folder, 'voc')]
  for (const [split, count] of [
    ['train', 3],
    ['val', 2],
  ] as const)
    for (const name of ['a', 'b']) {
      const path = join(images, split, name)
      mkdirSync(path, { recursive: true })
      for (let i = 0; i < count; ++i)
        writeFileSync(join(path, `${i}.png`), colourPng(drawn(new Random(i, name.charCodeAt(0)), 40, 36).rgb, 40, 36))
    }
  mkdirSync(segmentation)
  writeVocTree(segmentation, { train: 4, val: 4, width: 120, height: 96 })
  return { images, segmentation }
}

function randomWeights(folder: string): string {
  const path = join(folder, 'backbone.safetensors')
  const network = new ResNet({ random: new Random(1), dtype: 'f32' }, { depth, baseChannels })
  writeBackbone(path, network, 'torchvision')
  network.dispose()
  return path
}

if (thorough)
  test('a study, the commands and the library give the same scores by products of the same precision', async () => {
    await withFolder(async (folder) => {
      const data = writeData(folder)
      // Random weights, and then no more: the five measures of the study ask once each.
      let asked = 0
      const interrupted = (): boolean => ++asked > 5
      const study = await precisionsOf(() =>
        runStudy({
          size,
          sizeName: 'test',
          arms: ['random', 'geometry'],
          images: data.images,
          segmentation: [data.segmentation],
          also: ['linear', 'segmentation'],
          seeds: 1,
          out: join(folder, 'study'),
          settings: [],
          line: () => undefined,
          interrupted,
        }),
      )
      assert.is(study.result, 'interrupted')
      const expected = deviceTraits(device).tf32 ? 'tf32' : 'f32'
      assert.equal(study.seen, [expected])
      const run = join(folder, 'study', 'pretrain', `random-seed${seed}`)
      const scores = (name: string): Record<string, number> =>
        (JSON.parse(readFileSync(join(run, 'eval', `study-${name}.json`), 'utf8')) as { scores: Record<string, number> }).scores

      const weights = join(run, 'backbone.safetensors')
      const [train, val] = await Promise.all((['train', 'val'] as const).map((split) => openSource(join(data.images, split), { split })))
      const linear = async (backbone: Backbone, name: string, compute: ComputeOptions | undefined): Promise<Record<string, number>> => {
        const { heads } = await evaluateLinear(backbone, {
          protocol: { ...stretched(linearProtocols['imagenet-features']!, 1), heads: ['feature4', 'feature5'], pipeline: 'centre' },
          train: train!.items,
          val: val!.items,
          classes: 2,
          imageSize,
          out: join(folder, `linear-${name}`),
          quiet: true,
          seed,
          workers: 1,
          compute,
        })
        return Object.fromEntries(heads.map(({ head, top1 }) => [`linear ${head}`, 100 * top1]))
      }
      const segment = async (backbone: Backbone, name: string, compute: ComputeOptions | undefined): Promise<Record<string, number>> => {
        const { scores: found } = await evaluateSegmentation(backbone, {
          protocol: { ...segmentationProtocols.voc12aug!, ...size.segmentation },
          train: openSegmentation(data.segmentation, ['train']),
          val: openSegmentation(data.segmentation, ['val']),
          out: join(folder, `segmentation-${name}`),
          quiet: true,
          seed,
          workers: 1,
          compute,
        })
        return { 'segmentation mIoU, voc': 100 * found!.meanIou }
      }
      const flags = { device, threads: '0', precision: 'auto' } as const
      for (const [name, evaluate, layout] of [
        ['linear', linear, {}],
        ['segmentation-voc', segment, { outputStride: 8 }],
      ] as const)
        for (const how of ['command', 'library'] as const) {
          const { backbone, compute } = await openBackbone(weights, flags, layout)
          const { result, seen } = await precisionsOf(() => evaluate(backbone, how, how === 'command' ? compute : undefined))
          assert.equal(seen, [expected], `${name} by ${how}`)
          assert.equal(result, scores(name), `${name} by ${how}`)
          backbone.dispose()
        }
    })
  })

test('features are extracted with the settings that are asked for, in any order', async () => {
  await withFolder(async (folder) => {
    const { images } = writeData(folder)
    const { items } = await openSource(join(images, 'val'), { split: 'val' })
    const { backbone } = await openBackbone(randomWeights(folder), { device, threads: '0', precision: 'auto' })
    const features = async (compute?: ComputeOptions): Promise<Float32Array> =>
      (await extractFeatures(backbone, items, { imageSize, workers: 1, compute })).values
    const before = { ...currentCompute(), threads: native.threads() }
    const [usual, exact] = [await features(), await features({ precision: 'f32' })]
    assert.not.equal(usual, exact)
    // Two at a time do not disturb each other.
    assert.equal(await Promise.all([features({ precision: 'f32', threads: 1 }), features({ fusion: 'pointwise' })]), [exact, usual])
    assert.equal({ ...currentCompute(), threads: native.threads() }, before)
    backbone.dispose()
  })
})

test.run()
