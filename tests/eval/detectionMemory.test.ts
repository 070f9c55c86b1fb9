/** What a detector's training is said to take of the memory, against what it takes; and what cannot fit is refused. */
import { existsSync } from 'node:fs'
import { join } from 'node:path'

import * as assert from 'uvu/assert'

import { openBoxes } from '../../src/data/boxSources.js'
import { checkDetectionMemory, checkFindingMemory, estimateDetectionMemory } from '../../src/eval/detectionMemory.js'
import { detectionProtocols } from '../../src/eval/detectionProtocols.js'
import { resnet } from '../../src/nn/resnet.js'
import { native } from '../../src/tensor/native.js'
import { Random } from '../../src/tensor/random.js'
import { writeBackbone } from '../../src/weights/export.js'
import { writeBoxTree } from '../support/boxTree.js'
import { assertClose, estimateOverResident, flagsOf } from '../support/memory.js'
import { suite, throwsError, withFolder } from '../support/suite.js'

const test = suite('memory of a detector')

const published = detectionProtocols['voc0712-c4']!
const backboneOf = (baseChannels: number) => resnet({ depth: 18, baseChannels })({ random: new Random(1), dtype: 'f32' })

test('the estimate is 0.7 to 1.4 times the largest resident memory, where the program is the largest part and where activations are', () =>
  withFolder((folder) => {
    writeBoxTree(join(folder, 'data'), 8, 4)
    const shares = [
      { baseChannels: 4, scale: 48, batch: 2, longest: 96 },
      { baseChannels: 16, scale: 192, batch: 8, longest: 320 },
    ].map(({ baseChannels, scale, batch, longest }) => {
      const weights = join(folder, 'weights.safetensors')
      const backbone = backboneOf(baseChannels)
      writeBackbone(weights, backbone, 'torchvision')
      backbone.dispose()
      const sizes = { 'batch-size': batch, scales: scale, 'test-scale': scale, 'test-regions': 100, longest, anchors: '16,32' }
      // The style takes no statistics after the training.
      const others = { data: join(folder, 'data'), out: join(folder, 'out'), iterations: 1, style: 'mmdet', device: 'cpu', workers: 2 }
      return estimateOverResident(['eval', 'detection', weights, ...flagsOf({ ...sizes, ...others }), '--overwrite'])
    })
    assertClose(shares)
  }))

test('the published protocol does not fit a machine of 24 GB, and its parts and what to change are said; nothing is left behind', () =>
  withFolder((folder) => {
    writeBoxTree(folder, 8, 4)
    const train = openBoxes(folder, ['train'])
    const backbone = resnet({ depth: 50 })({ random: new Random(1), dtype: 'f32' })
    const before = native.memory('dry:cpu').live
    const options = { protocol: { ...published, iterations: 20 }, style: 'detectron2' as const, train, val: train, workers: 1 }
    throwsError(
      () => checkDetectionMemory(backbone, options, { host: 24e9, device: 0 }),
      'CONFIG',
      /^memory: this evaluation takes about [\d.]+ GiB, and this machine has 22\.4 GiB/,
      /a step of 16 of 16 images of 1067x1067 px at once/,
      /--images-at-once \(16\)/,
      /--scales \(up to 800\)/,
      /--force/,
    )
    const step = (imagesAtOnce: number): number =>
      estimateDetectionMemory(backbone, { ...options, imagesAtOnce }).host.find(({ what }) => what.startsWith('a step'))!.bytes
    const [one, two] = [step(1), step(2)]
    assert.ok(one < two && two < 2 * one, `${one} ${two}`)
    // Each of two processes has half of a part, and of the batch; images of one size, as batches of other sizes pad alike.
    const ofOne = { ...options, protocol: { ...options.protocol, batchSize: 8 }, imagesAtOnce: 2 }
    const ofTwo = { ...options, imagesAtOnce: 4, processes: 2 }
    assert.equal(estimateDetectionMemory(backbone, ofTwo), estimateDetectionMemory(backbone, ofOne))
    throwsError(
      () => checkDetectionMemory(backbone, ofTwo, { host: 1e9, device: 0 }),
      'CONFIG',
      /a step of 2 of 8 images of .* at once/,
      /--images-at-once \(4\), a lower --batch-size \(16\)/,
    )
    assert.is(native.memory('dry:cpu').live, before)
    assert.not.ok(existsSync(join(folder, 'out')))
    backbone.dispose()
  }))

test('an image that a record makes too large for the machine is refused with both sizes, before it is computed', () => {
  const backbone = backboneOf(4)
  const record = {
    form: 'c4' as const,
    style: 'detectron2' as const,
    classes: ['a'],
    anchors: [16],
    ratios: [1],
    testScale: 8000,
    longest: 16000,
    testRegions: 10,
    backbone: { kind: 'resnet', options: {} },
  }
  const before = native.memory('dry:cpu').live
  throwsError(
    () => checkFindingMemory(backbone, record, { width: 64, height: 32 }, { host: 2e9, device: 0 }),
    'CONFIG',
    /an image of 64x32 px becomes 16000x8000 by the detector's record \(testScale 8000, longest 16000\), which takes about [\d.]+ GiB/,
    /expected at most the 1\.86 GiB of cpu/,
  )
  checkFindingMemory(backbone, { ...record, testScale: 80 }, { width: 64, height: 32 }, { host: 2e9, device: 0 })
  assert.is(native.memory('dry:cpu').live, before)
  backbone.dispose()
})

test.run()
