/** Mask R-CNN in the evaluation by detection: resumed to the bit, in both styles, by the command, and what it is said to take of memory. */
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'

import * as assert from 'uvu/assert'

import { defaultBoxSplits, openBoxes } from '../../src/data/boxSources.js'
import { evaluateDetection, type DetectionOptions, type DetectionResult } from '../../src/eval/detection.js'
import { estimateDetectionMemory } from '../../src/eval/detectionMemory.js'
import { detectionProtocols, ofLength, protocolOf } from '../../src/eval/detectionProtocols.js'
import { resnet } from '../../src/nn/resnet.js'
import { Random } from '../../src/tensor/random.js'
import { writeBackbone } from '../../src/weights/export.js'
import { writeMaskTree } from '../support/maskTree.js'
import { runCli, suite, withFolder } from '../support/suite.js'

const test = suite('detection with masks')

const backboneOf = () => resnet({ depth: 18, baseChannels: 4 })({ random: new Random(1), dtype: 'f32' })
const anchors = [8, 16, 32, 64, 128]
const protocol = {
  ...ofLength(protocolOf(detectionProtocols['coco-fpn-1x']!, 'detectron2'), 4),
  batchSize: 2,
  lr: 0.02,
  scales: [48, 64],
  testScale: 64,
  longest: 96,
  regions: 16,
  testRegions: 30,
  channels: 8,
}

async function run(data: string, out: string, options: Partial<DetectionOptions>): Promise<DetectionResult> {
  const backbone = backboneOf()
  const source = openBoxes(data, defaultBoxSplits(data).train, { masks: true })
  try {
    return await evaluateDetection(backbone, {
      protocol,
      style: 'detectron2',
      train: source,
      val: source,
      anchors,
      out,
      quiet: true,
      workers: 1,
      ...options,
    })
  } finally {
    backbone.dispose()
  }
}

test('stopped and continued it is the one that was not, bit for bit, in both styles; masks are learnt and scored', () =>
  withFolder(async (folder) => {
    const data = join(folder, 'data')
    writeMaskTree(data, 4)
    for (const style of ['detectron2', 'mmdet'] as const) {
      const [whole, parts] = [join(folder, `${style}-whole`), join(folder, `${style}-parts`)]
      const straight = await run(data, whole, { style, logEvery: 1 })
      let left = 2
      const stopped = await run(data, parts, { style, interrupted: () => left-- === 0 })
      assert.equal([stopped.interrupted, stopped.iterations], [true, 2])
      const resumed = await run(data, parts, { style, resume: true })
      assert.equal(resumed.test!.detections, straight.test!.detections)
      assert.ok(straight.test!.masks !== undefined && straight.test!.masks.ap >= 0)
      const losses = readFileSync(join(whole, 'metrics.jsonl'), 'utf8')
        .trim()
        .split('\n')
        .map((line) => (JSON.parse(line) as { mask?: number }).mask)
        .filter((mask) => mask !== undefined)
      // A half of all places at first, as logits begin near zero.
      assert.is(losses.length, 4)
      assert.ok(Math.abs(losses[0]! - Math.LN2) < (style === 'detectron2' ? 0.02 : 0.3), String(losses[0]))
      assert.equal(readFileSync(join(whole, 'detector.safetensors')), readFileSync(join(parts, 'detector.safetensors')))
    }
  }))

test('the command trains, and writes the detector, a table and pictures, which densecl detect takes', () =>
  withFolder((folder) => {
    const data = join(folder, 'data')
    writeMaskTree(data, 4)
    const weights = join(folder, 'weights.safetensors')
    const backbone = backboneOf()
    writeBackbone(weights, backbone, 'torchvision')
    backbone.dispose()
    const flags =
      '--protocol coco-fpn-1x --iterations 2 --batch-size 2 --scales 48 --test-scale 64 --longest 96 --regions 16 --test-regions 30 ' +
      '--channels 8 --style mmdet --anchors 8,16,32,64,128 --precision f32 --device cpu --workers 1'
    const out = join(folder, 'out')
    const { code, out: said, err } = runCli(['eval', 'detection', weights, '--data', data, '--out', out, ...flags.split(' ')])
    assert.is(code, 0, err)
    assert.match(said, /model {3}Mask R-CNN FPN on ResNet-18/)
    assert.match(said, /Detection \(Mask R-CNN FPN, coco-fpn-1x, mmdet\)/)
    assert.match(said, /iterations 2 \(published 87960\).*channels 8 \(published 256\)/)
    const own = join(out, 'detection-coco-fpn-1x')
    assert.ok(existsSync(join(own, 'samples.png')))
    const image = join(data, 'val2017', 'image0.png')
    const found = runCli([
      'detect',
      image,
      '--weights',
      join(own, 'detector.safetensors'),
      '--out',
      join(folder, 'found'),
      '--score',
      '0',
      '--json',
    ])
    assert.is(found.code, 0, found.err)
    for (const wrong of [
      ['--precision', 'bf16'],
      ['--anchors', '8,16'],
      ['--channels', '0'],
    ])
      assert.is(runCli(['eval', 'detection', weights, '--data', data, '--out', join(folder, 'no'), ...flags.split(' '), ...wrong]).code, 2)
  }))

test('of the memory that is told beside weights, activations grow with images and channels, and a test has masks', () =>
  withFolder((folder) => {
    const data = join(folder, 'data')
    writeMaskTree(data, 4)
    const source = openBoxes(data, defaultBoxSplits(data).train, { masks: true })
    const backbone = backboneOf()
    const step = (changed: Partial<typeof protocol>): number =>
      estimateDetectionMemory(backbone, {
        protocol: { ...protocol, ...changed },
        style: 'detectron2',
        train: source,
        val: source,
        anchors,
      }).host.find(({ what }) => what.startsWith('a step'))!.bytes
    const [one, more, wide] = [step({}), step({ batchSize: 4, iterations: 1 }), step({ channels: 32 })]
    assert.ok(more > 1.5 * one && wide > 1.5 * one, `${one} ${more} ${wide}`)
    backbone.dispose()
  }))

test.run()
