import { readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

import * as assert from 'uvu/assert'

import type { BoxSource } from '../../src/data/boxes.js'
import { defaultBoxSplits, openBoxes } from '../../src/data/boxSources.js'
import { evaluateDetection, type DetectionOptions, type DetectionResult, type DetectionTest } from '../../src/eval/detection.js'
import {
  batchTensor,
  type LoadedBatch,
  pairedBatches,
  testBatches,
  trainingBatches,
  trainingObjects,
} from '../../src/eval/detectionBatches.js'
import { detectionProtocols, detectionRate, ofLength } from '../../src/eval/detectionProtocols.js'
import { cocoResults } from '../../src/eval/detections.js'
import { detect } from '../../src/detection/detect.js'
import { openDetector } from '../../src/detection/detectorFile.js'
import { proposalLimits } from '../../src/detection/proposals.js'
import { boxesPicture } from '../../src/report/boxes.js'
import { backboneKinds } from '../../src/nn/backbones.js'
import { detectionStyles } from '../../src/detection/styles.js'
import type { TrainingImage } from '../../src/detection/targets.js'
import { resnet } from '../../src/nn/resnet.js'
import { Random } from '../../src/tensor/random.js'
import { encodeSafetensors, readSafetensors } from '../../src/weights/safetensors.js'
import { writeBoxTree } from '../support/boxTree.js'
import { colourPng } from '../support/vocTree.js'
import { rejectsError, runCli, suite, throwsError, withFolder } from '../support/suite.js'

const test = suite('detection')

/** All batches of a generator, with values of their own. */
async function allOf<Image>(batches: AsyncIterable<LoadedBatch<Image>>): Promise<LoadedBatch<Image>[]> {
  const all: LoadedBatch<Image>[] = []
  for await (const batch of batches) all.push({ ...batch, values: batch.values.slice() })
  return all
}

const protocol = {
  ...ofLength(detectionProtocols['voc0712-c4']!, 6),
  batchSize: 2,
  lr: 0.02,
  scales: [48, 64],
  testScale: 64,
  longest: 96,
  regions: 128,
}

async function run(source: BoxSource, out: string, options: Partial<DetectionOptions> = {}): Promise<DetectionResult> {
  const backbone = resnet({ depth: 18, baseChannels: 4 })({ random: new Random(1), dtype: 'f32' })
  try {
    return await evaluateDetection(backbone, {
      protocol,
      style: 'detectron2',
      train: source,
      val: source,
      anchors: [16, 24],
      out,
      quiet: true,
      ...options,
    })
  } finally {
    backbone.dispose()
  }
}

const rows = (folder: string): Record<string, number>[] =>
  readFileSync(join(folder, 'metrics.jsonl'), 'utf8')
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as Record<string, number>)

test('a detector that is stopped and continued is the one that was not, bit for bit; in both styles everything is finite', () =>
  withFolder(async (folder) => {
    writeBoxTree(join(folder, 'data'), 6)
    const source = openBoxes(join(folder, 'data'), ['train'])
    for (const style of ['detectron2', 'mmdet'] as const) {
      const [whole, parts] = [join(folder, `${style}-whole`), join(folder, `${style}-parts`)]
      const straight = await run(source, whole, { style })
      let left = 3
      const stopped = await run(source, parts, { style, interrupted: () => left-- === 0 })
      assert.equal([stopped.interrupted, stopped.iterations, stopped.test], [true, 3, undefined])
      const resumed = await run(source, parts, { style, resume: true })
      assert.equal(resumed.test!.detections, straight.test!.detections)
      assert.equal(readFileSync(join(parts, 'state.safetensors')), readFileSync(join(whole, 'state.safetensors')))
      assert.ok(rows(whole).every((row) => Object.values(row).every((value) => Number.isFinite(value))))
      assert.equal(cocoResults(source, straight.test!.detections).length, straight.test!.detections.length)
    }
    await rejectsError(
      () => run(source, join(folder, 'mmdet-whole'), { resume: true }),
      'CONFIG',
      /style was "mmdet" and is now "detectron2"/,
    )
  }))

test('tests on the way and their pictures change no bit of the training; one that was cut off is made up for', () =>
  withFolder(async (folder) => {
    writeBoxTree(join(folder, 'data'), 4)
    const source = openBoxes(join(folder, 'data'), ['train'])
    const [whole, parts] = [join(folder, 'whole'), join(folder, 'parts')]
    const tests: DetectionTest[] = []
    await run(source, whole)
    const onTest = (test: DetectionTest): void => void tests.push(test)
    // Cut off in the first test, when the state is there and the test is not logged; after the fourth batch; while statistics are taken.
    await rejectsError(
      () => run(source, parts, { testEvery: 2, val: { ...source, items: source.items.map((item) => ({ ...item, width: 1 })) } }),
      'DATA',
      /says 1x/,
    )
    for (const batches of [2, 6]) {
      let left = batches
      const stopped = await run(source, parts, { testEvery: 2, onTest, resume: true, interrupted: () => left-- === 0 })
      assert.equal([stopped.interrupted, stopped.iterations], [true, batches === 2 ? 4 : 6])
    }
    const { test: last } = await run(source, parts, { testEvery: 2, onTest, resume: true })
    assert.equal(
      tests.map(({ iteration }) => iteration),
      [2, 4, 6],
    )
    assert.equal(tests.at(-1), last)
    assert.equal(
      rows(parts).flatMap((row) => (row.ap50 === undefined ? [] : [row.globalStep])),
      [2, 4, 6],
    )
    assert.equal(readFileSync(join(parts, 'state.safetensors')), readFileSync(join(whole, 'state.safetensors')))
    assert.equal(
      tests.map(({ samples }) => samples.map(({ name }) => name)),
      [2, 4, 6].map(() => source.items.map(({ name }) => name)),
    )
  }))

test('it learns drawn rectangles: every part of the loss falls, and the objects of the images are found', () =>
  withFolder(async (folder) => {
    writeBoxTree(join(folder, 'data'), 8)
    const source = openBoxes(join(folder, 'data'), ['train'])
    const long = { ...protocol, ...ofLength(protocol, 150), batchSize: 4, scales: [64], lr: 0.03 }
    const { voc, detections } = (await run(source, join(folder, 'out'), { protocol: long, logEvery: 8 })).test!
    const trained = rows(join(folder, 'out')).filter((row) => row.loss !== undefined)
    const mean = (some: typeof trained, key: string): number => some.reduce((sum, row) => sum + row[key]!, 0) / some.length
    for (const key of ['anchorClass', 'regionClass'])
      assert.ok(mean(trained.slice(-4), key) < 0.6 * mean(trained.slice(0, 4), key), `${key}: ${trained.map((row) => row[key]).join(' ')}`)
    assert.ok(voc.mean[0]! > 0.5, `AP50 ${voc.mean[0]} of ${detections.length} detections`)
  }))

test('the file of a detector finds what the detector found, and densecl detect draws and lists it', () =>
  withFolder(async (folder) => {
    writeBoxTree(join(folder, 'data'), 4)
    const source = openBoxes(join(folder, 'data'), ['train'])
    const { detections, samples } = (await run(source, join(folder, 'out'))).test!
    const path = join(folder, 'out', 'detector.safetensors')
    const { model, record } = openDetector(path, (name) => backboneKinds.get(name))
    try {
      assert.equal(record.classes, source.classes)
      for (const [image, item] of source.items.entries()) {
        const [batch] = await allOf(testBatches([item], record, detectionStyles[record.style]))
        const { images } = batch!
        const x = batchTensor(batch!, 'cpu')
        const [found] = detect(model, x, images, detectionStyles[record.style], proposalLimits.c4.test)
        x.dispose()
        assert.equal(
          found!.map((object) => ({ image, ...object })),
          detections.filter((each) => each.image === image),
        )
      }
    } finally {
      model.dispose()
      model.backbone.dispose()
    }
    const picture = boxesPicture([{ ...samples[0]!, name: '<b>', found: [{ label: 1, box: [1, 2, 11, 22], score: 0.75 }] }], source.classes)
    assert.match(picture, /&lt;b&gt;/)
    assert.match(picture, new RegExp(`${source.classes[1]} 75 %`))
    const scale = 240 / samples[0]!.pixels.height
    assert.ok(picture.includes(`width="${(10 * scale).toFixed(1)}" height="${(20 * scale).toFixed(1)}"`))
    assert.is(picture.match(/stroke-dasharray/g)!.length, samples[0]!.truth.length)

    const image = source.items[0]!.path
    const told = runCli(['detect', image, '--weights', path, '--score', '0.05', '--device', 'cpu', '--out', join(folder, 'seen'), '--json'])
    assert.is(told.code, 0, told.err)
    const { images } = JSON.parse(told.out) as { images: { objects: { class: string; box: number[]; score: number }[] }[] }
    const own = detections.filter((each) => each.image === 0)
    assert.equal(
      images[0]!.objects,
      own.map(({ label, box, score }) => ({ class: source.classes[label]!, box, score })),
    )
    const refused = runCli(['detect', image, '--weights', join(folder, 'out', 'state.safetensors'), '--device', 'cpu'])
    assert.is(refused.code, 1)
    assert.match(refused.err, /state\.safetensors: is no detector/)
    throwsError(() => openDetector(join(folder, 'none'), () => undefined), 'FILE', /none: does not exist/)
    throwsError(() => openDetector(path, () => undefined), 'CONFIG', /backbone is of the kind resnet/)
    const { tensors, metadata } = readSafetensors(path)
    const damaged = join(folder, 'damaged.safetensors')
    for (const [change, word, code = 'FORMAT'] of [
      [{ style: 'other' }, /damaged\.safetensors: its record of the detector: style/],
      [{ backbone: null }, /damaged\.safetensors: its record of the detector: backbone/],
      [{ backbone: { kind: 'resnet', options: { depth: 7 } } }, /damaged\.safetensors: resnet: expected depth .* 7/, 'ARGUMENT'],
    ] as const) {
      const detector = JSON.stringify({ ...(JSON.parse(metadata.detector!) as object), ...change })
      writeFileSync(damaged, Buffer.concat(encodeSafetensors({ tensors, metadata: { detector } })))
      throwsError(() => openDetector(damaged, (name) => backboneKinds.get(name)), code, word)
    }
  }))

// Pixels of VOC are counted from 1 and the last is in: detectron2 takes 1 off the upper left corner, mmdetection off both.
test('a VOC object is trained on where its style has its corners; of a COCO file both have the same', () =>
  withFolder((folder) => {
    writeBoxTree(folder, 1)
    const [, ...numbers] = /<xmin>(\d+)<\/xmin><ymin>(\d+)<\/ymin><xmax>(\d+)<\/xmax><ymax>(\d+)/.exec(
      readFileSync(join(folder, 'Annotations', 'image0.xml'), 'utf8'),
    )!
    const [left, top, right, bottom] = numbers.map(Number) as [number, number, number, number]
    const source = openBoxes(folder, ['train'])
    const corners = (style: keyof typeof detectionStyles, layout: BoxSource['layout']): readonly number[] =>
      trainingObjects(source.items[0]!, { layout }, detectionStyles[style])[0]!.box
    assert.equal([...corners('detectron2', 'voc')], [left - 1, top - 1, right, bottom])
    assert.equal([...corners('mmdet', 'voc')], [left - 1, top - 1, right - 1, bottom - 1])
    for (const style of ['detectron2', 'mmdet'] as const) assert.equal([...corners(style, 'coco')], [left - 1, top - 1, right, bottom])
  }))

test('a rate rises, stays, and falls twice; another length keeps the shares', () => {
  const published = detectionProtocols['voc0712-c4']!
  const near = (value: number, expected: number): void => assert.ok(Math.abs(value / expected - 1) < 1e-12, `${value}`)
  near(detectionRate(published, 0), 2e-5)
  near(detectionRate(published, 1), 2.198e-4)
  near(detectionRate(published, 50), 0.01001)
  near(detectionRate(published, 17_999), 0.02)
  near(detectionRate(published, 18_000), 0.002)
  near(detectionRate(published, 22_000), 0.0002)
  const { warmup, steps } = ofLength(published, 240)
  assert.equal([warmup, steps], [24, [180, 220]])
})

test('pairs of a batch are both wide or both not; continuing anywhere gives the same batches; every image has its turn', () =>
  withFolder((folder) => {
    writeBoxTree(folder, 9)
    const { items } = openBoxes(folder, ['train'])
    const usable = Int32Array.from(items.keys())
    const batches = (from: number): number[][] =>
      Array.from(pairedBatches(items, usable, { seed: 5, batchSize: 4, from, until: 20 }), (batch) => [...batch])
    const all = batches(0)
    assert.is(all.length, 20)
    assert.equal(batches(7), all.slice(7))
    const wide = (i: number): boolean => items[i]!.width > items[i]!.height
    for (const batch of all) for (const at of [0, 2]) assert.is(wide(batch[at]!), wide(batch[at + 1]!))
    assert.is(new Set(all.flat()).size, 9)
  }))

test('batches are the same for any number of workers, wherever they begin, and hold what the images show', () =>
  withFolder(async (folder) => {
    writeBoxTree(folder, 7)
    const source = openBoxes(folder, ['train'])
    for (const batchSize of [1, 4]) {
      const style = detectionStyles.detectron2
      const read = (workers: number, from = 0): Promise<LoadedBatch<TrainingImage>[]> =>
        allOf(trainingBatches(source, { protocol: { ...protocol, batchSize }, style, seed: 2, from, until: 6 }, { workers }))
      const told = (batches: LoadedBatch<TrainingImage>[]): unknown => batches.map(({ waited: _, ...rest }) => rest)
      const one = await read(1)
      assert.is(one.length, 6)
      assert.equal(told(await read(3)), told(one))
      assert.equal(told(await read(0)), told(one))
      assert.equal(told(await read(2, 4)), told(one.slice(4)))
      assert.not.equal(one[0]!.values, one[1]!.values)
      // A red or green rectangle is where its box is, in every image.
      for (const { values, shape, images } of one)
        images.forEach(({ objects }, i) => {
          for (const { box, label } of objects) {
            const [x, y] = [Math.floor((box[0] + box[2]) / 2), Math.floor((box[1] + box[3]) / 2)]
            const at = ((i * shape[1] + y) * shape[2] + x) * 3
            const covered = objects.some((other) => other.label !== label && x >= other.box[0] - 2 && x <= other.box[2] + 2)
            if (!covered) assert.ok(values[at]! > 0 === (source.classes[label] === 'red'), `${source.classes[label]} at ${x} ${y}`)
          }
        })
    }
    const tested = async (workers: number): Promise<unknown> =>
      (await allOf(testBatches(source.items, protocol, detectionStyles.mmdet, { workers }))).map(({ waited: _, ...rest }) => rest)
    const one = await tested(1)
    assert.equal(
      (one as { indices: Int32Array }[]).flatMap(({ indices }) => [...indices]),
      [0, 1, 2, 3, 4, 5, 6],
    )
    assert.equal(await tested(3), one)
  }))

test('an image that cannot be read, is gone, or has another size than its annotation says ends training and test with its name', () =>
  withFolder(async (folder) => {
    writeBoxTree(folder, 4)
    const source = openBoxes(folder, ['train'])
    const bytes = readFileSync(source.items[2]!.path)
    const damages: [() => void, RegExp][] = [
      [() => writeFileSync(source.items[2]!.path, bytes.subarray(0, bytes.length / 2)), /^image2\.png: not an image that can be read/],
      [() => rmSync(source.items[2]!.path), /^image2\.png: cannot be read \(/],
      [
        () => writeFileSync(source.items[2]!.path, readFileSync(source.items[0]!.path)),
        /^image2\.png: the image has 48x64 pixels .* says 64x48/,
      ],
    ]
    for (const [damage, expected] of damages) {
      damage()
      const iterations = { protocol, style: detectionStyles.mmdet, seed: 0, from: 0, until: 4 }
      await rejectsError(() => allOf(trainingBatches(source, iterations, { workers: 3 })), 'DATA', expected)
      await rejectsError(() => allOf(testBatches(source.items, protocol, detectionStyles.mmdet, { workers: 3 })), 'DATA', expected)
    }
  }))

test('a batch is padded with zeros to its largest image; without objects there is nothing to train on', () =>
  withFolder(async (folder) => {
    writeBoxTree(folder, 3)
    const source = openBoxes(folder, ['train'])
    const iterations = { protocol, style: detectionStyles.mmdet, seed: 1, from: 0, until: 1 }
    const [batch] = await allOf(trainingBatches(source, iterations))
    const { shape, values, images } = batch!
    assert.ok(shape[1] % 32 === 0 && shape[2] % 32 === 0)
    images.forEach(({ width, height, objects }, i) => {
      for (let y = 0; y < shape[1]; ++y)
        for (let x = 0; x < shape[2]; ++x) if (y >= height || x >= width) assert.is(values[((i * shape[1] + y) * shape[2] + x) * 3], 0)
      for (const { box } of objects) assert.ok(box[0] >= 0 && box[1] >= 0 && box[2] <= width && box[3] <= height)
    })
    const empty = { ...source, items: source.items.map((item) => ({ ...item, objects: [] })) }
    await rejectsError(() => run(empty, join(folder, 'out')), 'DATA', /none of 3 training images has an object/)
    assert.equal(defaultBoxSplits(folder), { train: ['train'], val: ['val'] })
  }))

test('thin images, images without objects, boxes without area, a class without boxes and odd batch sizes are trained on and tested', () =>
  withFolder(async (folder) => {
    writeBoxTree(folder, 5)
    const annotation = (i: number): string => join(folder, 'Annotations', `image${i}.xml`)
    const corners = (xmax: number, ymax: number): string =>
      `<object><name>red</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>${xmax}</xmax><ymax>${ymax}</ymax></bndbox></object>`
    for (const [i, width, height] of [
      [0, 4, 1000],
      [1, 1000, 4],
    ] as const) {
      writeFileSync(join(folder, 'JPEGImages', `image${i}.png`), colourPng(new Uint8Array(width * height * 3), width, height))
      const size = `<size><width>${width}</width><height>${height}</height></size>`
      writeFileSync(annotation(i), `<annotation>${size}${corners(width, height)}${corners(0, height)}</annotation>`)
    }
    writeFileSync(annotation(2), readFileSync(annotation(2), 'utf8').replace(/<object>.*<\/object>/, ''))
    writeFileSync(join(folder, 'classes.txt'), 'red\ngreen\nblue\n')
    const source = openBoxes(folder, ['train'])
    assert.equal(
      source.skipped.map(({ what, count }) => [what, count]),
      [['box without area', 2]],
    )
    for (const [batchSize, style] of [
      [1, 'mmdet'],
      [3, 'detectron2'],
    ] as const) {
      const out = join(folder, style)
      const result = await run(source, out, { style, protocol: { ...protocol, ...ofLength(protocol, 3), batchSize } })
      assert.not.ok(result.interrupted)
      assert.ok(rows(out).every((row) => Object.values(row).every((value) => Number.isFinite(value))))
    }
  }))

test.run()
