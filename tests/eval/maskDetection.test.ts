/** Mask R-CNN in the evaluation by detection: resumed to the bit, in both styles, by the command, and what it is said to take of memory. */
import { existsSync, mkdirSync, copyFileSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

import * as assert from 'uvu/assert'

import { defaultBoxSplits, openBoxes } from '../../src/data/boxSources.js'
import { evaluateDetection, type DetectionOptions, type DetectionResult } from '../../src/eval/detection.js'
import { estimateDetectionMemory } from '../../src/eval/detectionMemory.js'
import { detectionProtocols, ofLength, protocolOf } from '../../src/eval/detectionProtocols.js'
import { allTensors } from '../../src/nn/module.js'
import { resnet } from '../../src/nn/resnet.js'
import { Random } from '../../src/tensor/random.js'
import type { FloatDType } from '../../src/tensor/tensor.js'
import { writeBackbone } from '../../src/weights/export.js'
import { toStored } from '../../src/weights/layout.js'
import { readSafetensors, storedValues } from '../../src/weights/safetensors.js'
import { writeMaskTree } from '../support/maskTree.js'
import { rejectsError, runCli, suite, withFolder } from '../support/suite.js'

const test = suite('detection with masks')

const backboneOf = (compute?: FloatDType) => resnet({ depth: 18, baseChannels: 4 })({ random: new Random(1), dtype: 'f32', compute })
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

async function run(data: string, out: string, options: Partial<DetectionOptions>, compute?: FloatDType): Promise<DetectionResult> {
  const backbone = backboneOf(compute)
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

test('stopped and continued it is the one that was not, bit for bit, in both styles and in bf16; masks are learnt and scored', () =>
  withFolder(async (folder) => {
    const data = join(folder, 'data')
    writeMaskTree(data, 4)
    for (const [style, compute] of [
      ['detectron2', 'f32'],
      ['mmdet', 'f32'],
      ['detectron2', 'bf16'],
    ] as const) {
      const [whole, parts] = [join(folder, `${style}-${compute}-whole`), join(folder, `${style}-${compute}-parts`)]
      const straight = await run(data, whole, { style, logEvery: 1 }, compute)
      let left = 2
      const stopped = await run(data, parts, { style, interrupted: () => left-- === 0 }, compute)
      assert.equal([stopped.interrupted, stopped.iterations], [true, 2])
      const resumed = await run(data, parts, { style, resume: true }, compute)
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

/** What densecl detect says of the images of a folder is what it says of them one by one; a broken one is named, the others are told. */
function seesFolders(folder: string, image: string, detector: string): void {
  const images = join(folder, 'images')
  mkdirSync(join(images, 'more'), { recursive: true })
  for (const name of ['a.png', join('more', 'b.png')]) copyFileSync(image, join(images, name))
  const detect = (...paths: string[]): ReturnType<typeof runCli> & { seen: { image: string; objects: unknown[]; error?: string }[] } => {
    const flags = ['--weights', detector, '--out', join(folder, 'seen'), '--score', '0', '--json', '--device', 'cpu']
    const said = runCli(['detect', ...paths, ...flags])
    return { ...said, seen: (JSON.parse(said.out) as { images: { image: string; objects: unknown[]; error?: string }[] }).images }
  }
  const [alone] = detect(image).seen
  const together = detect(images)
  assert.is(together.code, 0, together.err)
  assert.equal(
    together.seen.map((each) => each.objects),
    [alone!.objects, alone!.objects],
  )
  writeFileSync(join(images, 'broken.png'), 'no image')
  const { code, err, seen } = detect(images, join(folder, 'none.png'))
  assert.is(code, 1)
  assert.match(err, /2 of 4 images could not be read/)
  assert.equal(
    seen.map(({ objects, error }) => [objects.length > 0, error?.replace(folder, '')]),
    [
      [true, undefined],
      [false, '/images/broken.png: not an image that can be read (Input buffer contains unsupported image format)'],
      [true, undefined],
      [false, '/none.png: cannot be read (ENOENT)'],
    ],
  )
}

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
    seesFolders(folder, image, join(own, 'detector.safetensors'))
    for (const wrong of [
      ['--norm', 'frozen', '--init', 'random'],
      ['--norm', 'frozen', '--protocol', 'voc0712-c4'],
      ['--longest', '16385'],
      ['--test-regions', '100001'],
      ['--precision', 'f16'],
      ['--anchors', '8,16'],
      ['--channels', '0'],
    ])
      assert.is(runCli(['eval', 'detection', weights, '--data', data, '--out', join(folder, 'no'), ...flags.split(' '), ...wrong]).code, 2)
  }))

/** Runs the command on a tree whose annotations of a split are changed before. */
function onChanged(folder: string, split: string, change: (annotation: Record<string, unknown>) => void): ReturnType<typeof runCli> {
  const [data, weights] = [join(folder, split), join(folder, 'weights.safetensors')]
  writeMaskTree(data, 2)
  const backbone = backboneOf()
  writeBackbone(weights, backbone, 'torchvision')
  backbone.dispose()
  const path = join(data, 'annotations', `instances_${split}.json`)
  const file = JSON.parse(readFileSync(path, 'utf8')) as { annotations: Record<string, unknown>[] }
  file.annotations.forEach(change)
  writeFileSync(path, JSON.stringify(file))
  const flags =
    '--protocol coco-fpn-1x --iterations 1 --batch-size 1 --scales 48 --test-scale 48 --longest 64 --regions 8 --test-regions 8 ' +
    '--channels 4 --anchors 8,16,32,64,128 --device cpu --workers 1 --overwrite'
  return runCli(['eval', 'detection', weights, '--data', data, '--out', join(folder, 'out'), ...flags.split(' ')])
}

test('images without anything to train on are refused with what their objects are; what cannot be found has no score', () =>
  withFolder((folder) => {
    const wholly = { size: [48, 64], counts: [0, 48 * 64] }
    const crowds = onChanged(folder, 'train2017', (each) => Object.assign(each, { iscrowd: 1, segmentation: wholly }))
    assert.is(crowds.code, 1)
    assert.match(crowds.err, /none of 2 training images has an object to train on: of 3 objects 3 are crowds/)
    const bare = onChanged(folder, 'train2017', (each) => {
      delete each.segmentation
    })
    assert.match(bare.err, /3 skipped \(object without mask\)/)
    assert.match(bare.err, /of 3 objects 3 are without a mask/)
    const beyond = { bbox: [64, 0, 8, 8] }
    const away = onChanged(folder, 'train2017', (each) => Object.assign(each, beyond))
    assert.match(away.err, /of 3 objects 3 are wholly outside of their images/)
    const one = onChanged(folder, 'train2017', (each) => (each.id === 1 ? Object.assign(each, beyond) : each))
    assert.match(one.out, /\n +1 training objects lie wholly outside of their images and are left out\n/)

    const untested = onChanged(folder, 'val2017', (each) => Object.assign(each, { iscrowd: 1, segmentation: wholly }))
    assert.is(untested.code, 0, untested.err)
    assert.match(untested.out, /COCO AP - %, of masks - %/)
    assert.match(untested.out, /\nred +\S+ +- +-\n/)
    // Without any mask to compare with, boxes alone are scored.
    const boxes = onChanged(folder, 'val2017', (each) => {
      delete each.segmentation
    })
    assert.is(boxes.code, 0, boxes.err)
    assert.match(boxes.out, /class +AP50 +COCO AP\n/)
    assert.not.match(boxes.out, /tested .*of masks/)
  }))

test('frozen norms of the backbone stay to the bit while all else learns; the record and a resumed run know of them', () =>
  withFolder(async (folder) => {
    const data = join(folder, 'data')
    writeMaskTree(data, 4)
    const [before, of] = [backboneOf(), (path: string) => readSafetensors(path).tensors]
    const names = new Map(allTensors(before.state()))
    const out = join(folder, 'frozen')
    await run(data, out, { protocol: { ...protocol, frozenNorms: true } })
    const path = join(out, 'detector.safetensors')
    const after = of(path)
    for (const [name, tensor] of names) {
      if (name.endsWith('num_batches_tracked')) continue
      const values = storedValues(after.get(`backbone.${name}`)!)
      const same = storedValues(toStored(name, tensor)).every((value, i) => value === values[i])
      assert.is(same, /bn\d|downsample\.1/.test(name), name)
    }
    const pyramid = JSON.parse(readSafetensors(path).metadata.detector!) as { pyramid: { frozen?: boolean } }
    assert.is(pyramid.pyramid.frozen, true)
    await rejectsError(() => run(data, out, { resume: true }), 'CONFIG', /frozenNorms was true.*now undefined;/)
    before.dispose()
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
