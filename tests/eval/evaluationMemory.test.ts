/** What segmentation and linear classification are said to take of the memory, against what they take; and what cannot fit is refused. */
import { existsSync } from 'node:fs'
import { join } from 'node:path'

import * as assert from 'uvu/assert'

import { openSegmentation } from '../../src/data/segmentationSources.js'
import { openSource } from '../../src/data/sources.js'
import { linearProtocols } from '../../src/eval/linearProtocols.js'
import { checkLinearMemory, estimateLinearMemory } from '../../src/eval/linearMemory.js'
import { checkSegmentationMemory, estimateSegmentationMemory } from '../../src/eval/segmentationMemory.js'
import { segmentationProtocols } from '../../src/eval/segmentationProtocols.js'
import { dilated8, ResNet, resnet } from '../../src/nn/resnet.js'
import type { MemoryEstimate } from '../../src/run/memory.js'
import { native } from '../../src/tensor/native.js'
import { Random } from '../../src/tensor/random.js'
import { writeBackbone } from '../../src/weights/export.js'
import { assertClose, estimateOverResident, flagsOf } from '../support/memory.js'
import { rejectsError, runCli, suite, throwsError, withFolder } from '../support/suite.js'
import { writeVocTree } from '../support/vocTree.js'

const test = suite('memory of evaluations')

const build = { random: new Random(1), dtype: 'f32' } as const
const bytesOf = ({ host }: MemoryEstimate, start: string): number => host.find(({ what }) => what.startsWith(start))?.bytes ?? 0

/** Weights of a network of so many channels, in the folder. */
function weightsOf(folder: string, baseChannels: number): string {
  const backbone = resnet({ depth: 18, baseChannels })(build)
  const path = join(folder, `weights${baseChannels}.safetensors`)
  writeBackbone(path, backbone, 'torchvision')
  backbone.dispose()
  return path
}

test('segmentation: the estimate is 0.7 to 1.4 times the largest resident memory, where training is the largest and where a test is', () =>
  withFolder((folder) => {
    const data = join(folder, 'data')
    writeVocTree(data, { train: 8, val: 2 })
    const weights = weightsOf(folder, 16)
    assertClose(
      [
        { crop: 128, 'batch-size': 8, scale: '256,128' },
        { crop: 32, 'batch-size': 2, scale: '1024,768' },
      ].map((sizes) => {
        const others = { data, out: join(folder, 'out'), protocol: 'voc12aug', iterations: 1, device: 'cpu', workers: 1 }
        return estimateOverResident(['eval', 'segmentation', weights, ...flagsOf({ ...sizes, ...others }), '--overwrite'])
      }),
    )
  }))

test('frozen segmentation: the same, where maps of the network are the largest and where cells are', () =>
  withFolder((folder) => {
    const data = join(folder, 'data')
    // Of the size of the second windows, so that all cells of these are labelled: a few large windows fill the memory as many small ones.
    writeVocTree(data, { train: 16, val: 4, width: 128, height: 128 })
    assertClose(
      [
        { channels: 32, window: 256, windows: 1 },
        { channels: 32, window: 128, windows: 64 },
      ].map(({ channels, ...sizes }) => {
        const others = { data, out: join(folder, 'out'), 'train-split': 'train', device: 'cpu', workers: 1 }
        return estimateOverResident(['eval', 'segmentation', weightsOf(folder, channels), '--frozen', ...flagsOf({ ...sizes, ...others })])
      }),
    )
  }))

test('linear: the same, where maps of the network are the largest and where classifiers are, whose features are kept', () =>
  withFolder((folder) =>
    assertClose(
      [
        { channels: 16, size: 128, augmentation: 'protocol', precision: 'f32' },
        { channels: 64, size: 128, augmentation: 'protocol', precision: 'bf16' },
        { channels: 64, size: 32, augmentation: 'none', precision: 'f32' },
      ].map(({ channels, size, ...how }) => {
        const data = { train: 'scenes:64', val: 'scenes:32', out: join(folder, 'out'), protocol: 'imagenet-features', epochs: 1 }
        const sizes = { 'image-size': size, 'batch-size': 64, ...how, device: 'cpu', workers: 1 }
        return estimateOverResident(['eval', 'linear', weightsOf(folder, channels), ...flagsOf({ ...data, ...sizes }), '--overwrite'])
      }),
    ),
  ))

test('the published segmentation does not fit a machine of 8 GB, and its parts and what to change are said; nothing is left behind', () =>
  withFolder(async (folder) => {
    writeVocTree(folder, { train: 4, val: 4, width: 500, height: 375 })
    const [train, val] = ['train', 'val'].map((split) => openSegmentation(folder, [split])) as [
      ReturnType<typeof openSegmentation>,
      ReturnType<typeof openSegmentation>,
    ]
    const backbone = new ResNet(build, { depth: 50, ...dilated8 })
    const before = native.memory('dry:cpu').live
    const protocol = segmentationProtocols.voc12aug!
    const options = { protocol, train, val, workers: 1 }
    await rejectsError(
      () => checkSegmentationMemory(backbone, options, { host: 8e9, device: 0 }),
      'CONFIG',
      /^memory: this evaluation takes about [\d.]+ GiB, and this machine has 7\.45 GiB/,
      /a step of 16 crops of 512x512 px/,
      /--batch-size \(16\)/,
      /--crop \(512\)/,
      /--scale \(2048,512\)/,
      /--force/,
    )
    assert.match(await checkSegmentationMemory(backbone, options, { host: 256e9, device: 0 }), /^memory {2}about /)
    const step = (batchSize: number, crop: number): number =>
      bytesOf(
        estimateSegmentationMemory(backbone, { ...options, protocol: { ...protocol, batchSize, crop } }, { width: 64, height: 64 }),
        'a step',
      )
    const [one, two, wide] = [step(4, 128), step(8, 128), step(4, 256)]
    assert.ok(two > 1.5 * one && two < 2.1 * one && wide > 2.5 * one && wide < 4.2 * one, [one, two, wide].join(' '))
    // Each of four processes has a quarter of the batch, of which all of it is what can be changed.
    const size = { width: 64, height: 64 }
    const quarter = { ...options, protocol: { ...protocol, batchSize: 4 } }
    assert.equal(
      estimateSegmentationMemory(backbone, { ...options, processes: 4 }, size),
      estimateSegmentationMemory(backbone, quarter, size),
    )
    await rejectsError(
      () => checkSegmentationMemory(backbone, { ...options, processes: 4 }, { host: 1e9, device: 0 }),
      'CONFIG',
      /a step of 4 crops/,
      /--batch-size \(16\)/,
    )
    // Windows are no larger than a crop, whatever the image is.
    const tested = (slide: number, side: number): number =>
      bytesOf(
        estimateSegmentationMemory(
          backbone,
          { ...options, protocol: { ...protocol, batchSize: 1, crop: 64, scale: [side, side], slide } },
          { width: side, height: side },
        ),
        'the test',
      )
    // What a test takes beyond a step of training.
    assert.ok(tested(0, 2048) > 2 * tested(48, 2048), `${tested(0, 2048)} ${tested(48, 2048)}`)
    assert.is(native.memory('dry:cpu').live, before)
    assert.not.ok(existsSync(join(folder, 'out')))
    backbone.dispose()
  }))

test('linear: what is kept needs no batch of maps, classifiers grow with classes, and what cannot fit is refused', async () => {
  const { items: val } = await openSource('scenes:4')
  const backbone = resnet({ depth: 50 })(build)
  const before = native.memory('dry:cpu').live
  const published = linearProtocols['imagenet-features']!
  const options = { protocol: published, val, classes: 1000, imageSize: 224, workers: 1 }
  throwsError(
    () => checkLinearMemory(backbone, options, { host: 4e9, device: 0 }),
    'CONFIG',
    /^memory: this evaluation takes about [\d.]+ GiB, and this machine has 3\.73 GiB/,
    /maps and features of 256 images of 224 px/,
    /--batch-size \(256\)/,
    /--image-size \(224\)/,
    /--force/,
  )
  const kept = { ...options, protocol: { ...published, pipeline: 'centre' as const } }
  const maps = (planned: Parameters<typeof estimateLinearMemory>[1], of = backbone): number =>
    bytesOf(estimateLinearMemory(of, planned), 'maps')
  assert.ok(maps(options) > 3.5 * maps(kept) && maps(options) < 4.5 * maps(kept), `${maps(options)} ${maps(kept)}`)
  assert.is(maps({ ...kept, cacheBytes: 0 }), maps(options))
  // Maps are half as large in bf16, and the largest are averaged in parts.
  const inBf16 = resnet({ depth: 50 })({ ...build, compute: 'bf16' })
  assert.ok(maps(options, inBf16) < 0.65 * maps(options), `${maps(options, inBf16)} ${maps(options)}`)
  inBf16.dispose()
  const weights = (classes: number): number => bytesOf(estimateLinearMemory(backbone, { ...kept, classes }), 'weights')
  // Weights and momenta of 9,216, 9,216, 8,192, 9,216 and 8,192 values a class, and a bias each.
  const each = (9216 + 9216 + 8192 + 9216 + 8192 + 5) * 2 * 4
  assert.ok(Math.abs(weights(2000) - weights(1000) - 1000 * each) < 2 ** 20, `${weights(2000) - weights(1000)}`)
  assert.is(native.memory('dry:cpu').live, before)
  backbone.dispose()
})

test('a command refuses what cannot fit, before anything is made, and --force tries all the same', () =>
  withFolder((folder) => {
    const out = join(folder, 'out')
    const args = (batch: number, epochs: number) => {
      const data = { train: 'scenes:8', val: 'scenes:8', out, epochs, 'image-size': 32, 'batch-size': batch, device: 'cpu', workers: 1 }
      return ['eval', 'linear', weightsOf(folder, 4), ...flagsOf(data)]
    }
    const { code, err } = runCli(args(100_000_000, 1))
    assert.is(code, 2, err)
    assert.match(err, /^densecl: memory: /)
    assert.not.ok(existsSync(out))
    const forced = runCli([...args(4, 1), '--force'])
    assert.is(forced.code, 0, forced.err)
    assert.match(forced.out, /^memory {2}not looked at \(--force\)$/m)
  }))

test.run()
