import { mkdirSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

import fc from 'fast-check'
import { encode } from 'fast-png'
import sharp from 'sharp'
import * as assert from 'uvu/assert'

import { classColour, decodeMask, ignoredLabel, type Mask } from '../../src/data/masks.js'
import { defaultSplits, openSegmentation } from '../../src/data/segmentationSources.js'
import {
  cropLabels,
  distort,
  drawDistortion,
  drawPlacement,
  renderSegmentation,
  scaledSize,
  type SegmentationAugment,
} from '../../src/data/segmentationView.js'
import { imagenetDeviation, imagenetMean } from '../../src/data/augment.js'
import { openVocClassification } from '../../src/data/voc.js'
import { Random } from '../../src/tensor/random.js'
import { hasModules, python, runPython } from '../support/python.js'
import { hasRealData, noRealData, realData, suite, testWhere, throwsError, withFolder } from '../support/suite.js'
import { colours, drawn, greyPng, writeVocTree } from '../support/vocTree.js'

const test = suite('segmentation data')

const augment: SegmentationAugment = { crop: 24, scale: [64, 40], ratio: [0.5, 2], mostOfAClass: 0.75, flip: 0.5, distort: false }
const masks = fc
  .record({ width: fc.integer({ min: 1, max: 40 }), height: fc.integer({ min: 1, max: 40 }), seed: fc.integer() })
  .map(({ width, height, seed }): Mask => {
    const random = new Random(seed)
    return { width, height, labels: Uint8Array.from({ length: width * height }, () => (random.below(4) === 0 ? 255 : random.below(3))) }
  })

test('masks of 8, 4, 2 and 1 bits, grey and palette, give their indices', async () => {
  const random = new Random(1)
  for (const bits of [1, 2, 4, 8] as const) {
    const [width, height] = [13, 5]
    const labels = Uint8Array.from({ length: width * height }, () => random.below(2 ** Math.min(bits, 3)))
    if (bits === 8) assert.equal(decodeMask(greyPng(labels, width, height), 'm', 8).labels, labels)
    // A palette in which no two indices share a colour.
    const rgb = Uint8Array.from({ length: labels.length * 3 }, (_, i) => classColour(labels[Math.floor(i / 3)]!)[i % 3]!)
    const palette = await sharp(rgb, { raw: { width, height, channels: 3 } })
      .png({ palette: true, colours: 2 ** bits, dither: 0 })
      .toBuffer()
    const { labels: found } = decodeMask(palette, 'm', 256)
    // libvips orders its palette itself: the same index wherever the label is the same, another where it is not.
    labels.forEach((label, i) => labels.forEach((other, j) => assert.is(found[i] === found[j], label === other)))
  }
})

test('what is no mask is named with what was expected', () => {
  const png = (channels: 1 | 3, depth: 8 | 16): Uint8Array =>
    encode({ width: 2, height: 2, channels, depth, data: depth === 16 ? new Uint16Array(4 * channels) : new Uint8Array(4 * channels) })
  throwsError(() => decodeMask(png(3, 8), 'a.png', 3), 'DATA', /a\.png/, /3 channels of 8 bits/, /palette or grey/)
  throwsError(() => decodeMask(png(1, 16), 'a.png', 3), 'DATA', /16 bits/)
  throwsError(() => decodeMask(Buffer.from('no picture'), 'a.png', 3), 'DATA', /a\.png/, /not a PNG/)
  throwsError(
    () => decodeMask(greyPng(Uint8Array.of(0, 255, 1, 7), 2, 2), 'a.png', 3),
    'DATA',
    /pixel at 1,1 is of class 7/,
    /0 to 2, or 255/,
  )
  assert.equal(
    [...decodeMask(greyPng(Uint8Array.of(0, 255, 1, 7), 2, 2), 'a.png', 3, [2, 1, 0, 255, 255, 255, 255, 1]).labels],
    [2, 255, 1, 1],
  )
})

test('VOC’s palette', () => {
  assert.equal([0, 1, 2, 3, 8, 15, 20].map(classColour), [
    [0, 0, 0],
    [128, 0, 0],
    [0, 128, 0],
    [128, 128, 0],
    [64, 0, 0],
    [192, 128, 128],
    [0, 64, 128],
  ])
})

test('an image is scaled to fit, as mmcv rounds', () => {
  assert.equal(scaledSize(500, 375, 2048, 512), { width: 683, height: 512 })
  assert.equal(scaledSize(2048, 1024, 2049, 1025), { width: 2049, height: 1025 })
  assert.equal(scaledSize(4000, 100, 2048, 512), { width: 2048, height: 51 })
})

test('labels and colours stay together: each pixel of a sample has the colour of its label', () => {
  fc.assert(
    fc.property(fc.integer(), fc.integer({ min: 6, max: 70 }), fc.integer({ min: 6, max: 70 }), (seed, width, height) => {
      const { rgb, labels } = drawn(new Random(seed), width, height)
      const { image, labels: found } = renderSegmentation(
        { width, height, data: rgb },
        { width, height, labels },
        new Random(seed, 1),
        augment,
      )
      let [right, wrong] = [0, 0]
      found.forEach((label, i) => {
        const colour = [0, 1, 2].map((c) => (image[3 * i + c]! * imagenetDeviation[c]! + imagenetMean[c]!) * 255)
        if (label === ignoredLabel) return
        const distances = colours.map((known) => Math.hypot(...known.map((value, c) => value - colour[c]!)))
        if (distances.indexOf(Math.min(...distances)) === label) right += 1
        else wrong += 1
      })
      // At edges colours are mixed, and nearest and bilinear differ by half a pixel.
      assert.ok(wrong <= 0.25 * (right + wrong) + 24, `${wrong} of ${right + wrong}`)
    }),
    { numRuns: 60 },
  )
})

test('what lies outside of the image is 0 and has no label; a flip mirrors what lies inside', () => {
  fc.assert(
    fc.property(masks, fc.integer(), (mask, seed) => {
      const placement = drawPlacement(new Random(seed), mask, augment)
      const [plain, flipped] = [false, true].map((flip) => cropLabels(mask, { ...placement, flip }, 24)) as [Uint8Array, Uint8Array]
      const [rows, columns] = [Math.min(24, placement.height), Math.min(24, placement.width)]
      for (let y = 0; y < 24; ++y) {
        for (let x = 0; x < 24; ++x) {
          const inside = y < rows && x < columns
          assert.is(inside ? flipped[y * 24 + columns - 1 - x] : ignoredLabel, plain[y * 24 + x])
        }
      }
      assert.ok(
        placement.top >= 0 &&
          placement.left >= 0 &&
          placement.top + rows <= placement.height &&
          placement.left + columns <= placement.width,
      )
    }),
  )
})

test('crops avoid that one class fills them: rarely where they can, always where the mask has one class', () => {
  const [width, height] = [200, 200]
  // A small square of class 1 in a sea of class 0.
  const labels = new Uint8Array(width * height)
  for (let y = 90; y < 130; ++y) labels.fill(1, y * width + 90, y * width + 130)
  const share = (mostOfAClass: number): number => {
    let mixed = 0
    for (let seed = 0; seed < 200; ++seed) {
      const placement = drawPlacement(
        new Random(seed),
        { width, height, labels },
        { ...augment, crop: 60, scale: [200, 200], ratio: [1, 1], mostOfAClass },
      )
      mixed += Number(cropLabels({ width, height, labels }, placement, 60).includes(1))
    }
    return mixed / 200
  }
  assert.ok(share(1) < 0.6 && share(0.75) > 0.8, `${share(1)} and ${share(0.75)}`)
  const one: Mask = { width: 30, height: 30, labels: new Uint8Array(900) }
  assert.ok(cropLabels(one, drawPlacement(new Random(1), one, augment), 24).includes(0))
})

test('distortion: nothing by neutral numbers, clipped everywhere, hue by a turn is the identity', () => {
  const random = new Random(3)
  const original = Float32Array.from({ length: 300 }, () => random.uniform(0, 255))
  const apply = (change: Partial<Parameters<typeof distort>[1]>): Float32Array => {
    const copy = original.slice()
    distort(copy, { brightness: 0, contrast: 1, contrastFirst: true, saturation: 1, hue: 0, ...change })
    return copy
  }
  assert.equal(apply({}), original)
  apply({ hue: 1 }).forEach((value, i) => assert.ok(Math.abs(value - original[i]!) < 1e-3))
  apply({ brightness: 32 }).forEach((value, i) => assert.ok(Math.abs(value - Math.min(255, original[i]! + 32)) < 1e-4))
  apply({ saturation: 0 }).forEach((value, i) =>
    assert.ok(Math.abs(value - Math.max(...original.subarray(i - (i % 3), i - (i % 3) + 3))) < 1e-3),
  )
  for (let seed = 0; seed < 50; ++seed) apply(drawDistortion(new Random(seed))).forEach((value) => assert.ok(value >= 0 && value <= 255))
})

testWhere(hasModules(python), `there is no ${python}`, test, 'hue and saturation are those of Python’s colorsys', () => {
  const random = new Random(4)
  const original = Array.from({ length: 150 }, () => random.below(256))
  const numbers = { saturation: 0.7, hue: 0.08 }
  const found = Float32Array.from(original)
  distort(found, { brightness: 0, contrast: 1, contrastFirst: false, ...numbers })
  const program = `
import colorsys, json, sys
v, s, h = json.loads(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
out = []
for i in range(0, len(v), 3):
  a, b, c = colorsys.rgb_to_hsv(*[x / 255 for x in v[i:i+3]])
  out += [255 * x for x in colorsys.hsv_to_rgb((a + h) % 1, min(1, b * s), c)]
print(json.dumps(out))`
  const expected = JSON.parse(runPython(program, [JSON.stringify(original), String(numbers.saturation), String(numbers.hue)])) as number[]
  expected.forEach((value, i) => assert.ok(Math.abs(value - found[i]!) < 1e-2))
})

test('a VOC tree: classes, splits, masks of the additional set, and errors that name what is missing', async () => {
  await withFolder((root) => {
    writeVocTree(root, { train: 3, val: 2 })
    const source = openSegmentation(root, ['train', 'val'])
    assert.equal([source.layout, source.items.length, [...source.classes]], ['voc', 5, ['background', 'red', 'green', 'blue']])
    assert.equal(defaultSplits(root), { train: ['train'], val: ['val'] })
    mkdirSync(join(root, 'SegmentationClassAug'))
    renameSync(join(root, 'SegmentationClass', 'train_2.png'), join(root, 'SegmentationClassAug', 'train_2.png'))
    writeFileSync(join(root, 'ImageSets', 'Segmentation', 'aug.txt'), 'train_2\n')
    assert.equal(defaultSplits(root).train, ['train', 'aug'])
    assert.match(openSegmentation(root, ['aug']).items[0]!.mask, /SegmentationClassAug/)
    rmSync(join(root, 'SegmentationClass', 'train_1.png'))
    throwsError(() => openSegmentation(root, ['train']), 'DATA', /1 of 3 images have no mask/, /train_1/)
    throwsError(() => openSegmentation(root, ['tset']), 'DATA', /tset\.txt does not exist/, /aug, train, val/)
    rmSync(join(root, 'JPEGImages', 'val_0.png'))
    throwsError(() => openSegmentation(root, ['val']), 'DATA', /val names val_0/)
    throwsError(() => openSegmentation(join(root, 'ImageSets'), ['val']), 'DATA', /no VOC tree/)
    throwsError(() => openSegmentation(join(root, 'nowhere'), ['val']), 'DATA', /nowhere does not exist/)
  })
})

test('Cityscapes: label files are mapped to the nineteen classes, prepared ones are taken as they are', async () => {
  await withFolder((root) => {
    for (const [city, name] of [
      ['aachen', 'aachen_0'],
      ['bochum', 'bochum_0'],
    ] as const) {
      mkdirSync(join(root, 'leftImg8bit', 'train', city), { recursive: true })
      mkdirSync(join(root, 'gtFine', 'train', city), { recursive: true })
      writeFileSync(join(root, 'leftImg8bit', 'train', city, `${name}_leftImg8bit.png`), greyPng(new Uint8Array(4), 2, 2))
      writeFileSync(join(root, 'gtFine', 'train', city, `${name}_gtFine_labelIds.png`), greyPng(Uint8Array.of(7, 33, 3, 26), 2, 2))
    }
    const source = openSegmentation(root, ['train'])
    assert.equal([source.layout, source.items.length, source.classes.length], ['cityscapes', 2, 19])
    assert.equal([...decodeMask(greyPng(Uint8Array.of(7, 33, 3, 26), 2, 2), 'm', 19, source.map).labels], [0, 18, 255, 13])
    // The indices that cityscapesScripts gives the training indices 0 to 18; all others, up to 33, are not evaluated.
    const evaluated = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    const all = Uint8Array.from({ length: 34 }, (_, i) => i)
    assert.equal(
      [...decodeMask(greyPng(all, 34, 1), 'm', 19, source.map).labels],
      [...all].map((index) => (evaluated.includes(index) ? evaluated.indexOf(index) : 255)),
    )
    writeFileSync(join(root, 'gtFine', 'train', 'aachen', 'aachen_0_gtFine_labelTrainIds.png'), greyPng(new Uint8Array(4), 2, 2))
    throwsError(() => openSegmentation(root, ['train']), 'DATA', /_labelTrainIds\.png for some/)
    throwsError(() => openSegmentation(root, ['test']), 'DATA', /test does not exist/)
  })
})

test('labels of VOC classification: present, absent, only difficult; missing and wrong ones are named', async () => {
  await withFolder((root) => {
    writeVocTree(root, { train: 4, val: 2 })
    const file = join(root, 'ImageSets', 'Main', 'red_train.txt')
    writeFileSync(file, 'train_0  1\ntrain_1 -1\ntrain_2  0\ntrain_3 -1\n')
    const { items, presence } = openVocClassification(root, 'train')
    assert.equal([items.length, [...presence.keys()].sort(), [...presence.get('red')!]], [4, ['blue', 'green', 'red'], [1, 0, -1, 0]])
    for (const [content, message] of [
      ['train_0 1\n', /no label for train_1/],
      ['train_0 2\n', /label 2 for train_0: expected 1, -1 or 0/],
      ['other 1\n', /labels other, which its split does not list/],
    ] as const) {
      writeFileSync(file, content)
      throwsError(() => openVocClassification(root, 'train'), 'DATA', /red_train\.txt/, message)
    }
    writeFileSync(join(root, 'ImageSets', 'Main', 'test.txt'), 'val_0\n')
    throwsError(() => openVocClassification(root, 'test'), 'DATA', /no labels for test/, /<class>_test\.txt/)
  })
})

testWhere(hasRealData, noRealData, test, 'real trees open, with their classes', () => {
  const camvid = openSegmentation(join(realData, 'camvid_voc'), ['train', 'val'])
  assert.equal([camvid.items.length, camvid.classes.length, camvid.classes[0], camvid.classes[10]], [468, 11, 'sky', 'bicyclist'])
  const coco = openSegmentation(join(realData, 'coco_voc20'), ['train'])
  assert.equal([coco.items.length, coco.classes.length, coco.classes[15]], [142, 21, 'person'])
  const labels = openVocClassification(join(realData, 'coco_voc20'), 'train')
  assert.equal([labels.items.length, labels.presence.size], [162, 20])
})

test.run()
