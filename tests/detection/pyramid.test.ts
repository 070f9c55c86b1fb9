/** What a detector on a feature pyramid has beside that of the form C4: levels, maps of several strides, groups of a loss. */
import fc from 'fast-check'
import * as assert from 'uvu/assert'

import { gridAnchors } from '../../src/detection/anchors.js'
import type { Box } from '../../src/data/boxes.js'
import { FeaturePyramid } from '../../src/detection/featurePyramid.js'
import { levelsOf, MaskRcnn, publishedPyramid } from '../../src/detection/maskRcnn.js'
import { proposals } from '../../src/detection/proposals.js'
import { type Chooser, detectionLosses, randomChooser } from '../../src/detection/step.js'
import { detectionStyles, styleOf } from '../../src/detection/styles.js'
import { sampleAnchors, sampleRegions, type TrainingImage } from '../../src/detection/targets.js'
import { kaimingUniform } from '../../src/detection/unit.js'
import { evaluation, training } from '../../src/nn/layers.js'
import { allTensors, disposeState, emptyState } from '../../src/nn/module.js'
import { ResNet, resnetKind } from '../../src/nn/resnet.js'
import { Random } from '../../src/tensor/random.js'
import { scope, Tensor } from '../../src/tensor/tensor.js'
import { suite, throwsError } from '../support/suite.js'

const test = suite('a detector on a feature pyramid')
const ratios = [0.5, 1, 2]

test('a region twice as large is taken from a map twice as coarse, the side of 224 from the third, in all three ways', () => {
  const square = (side: number): Float64Array => Float64Array.of(3, 5, 3 + side, 5 + side)
  for (const levels of ['detectron2', 'mmdet', 'torchvision'] as const) {
    const of = (side: number): number => levelsOf(square(side), 4, { canonical: 224, levels })[0]!
    assert.equal([1, 111, 112, 223, 224, 447, 448, 4000].map(of), [0, 0, 1, 1, 2, 2, 3, 3])
    assert.is(levelsOf(Float64Array.of(0, 0, 0, 9), 4, { canonical: 224, levels })[0], 0)
  }
  // Next to a border they decide otherwise.
  const close = square(224 * (1 - 2e-7))
  assert.equal(
    (['detectron2', 'mmdet', 'torchvision'] as const).map((levels) => levelsOf(close, 4, { canonical: 224, levels })[0]),
    [1, 2, 2],
  )
})

test('a cell of the finest map knows of every coarser one; the last map is every second cell of the one before', () =>
  scope(() => {
    const build = { random: new Random(1), dtype: 'f64' } as const
    const pyramid = new FeaturePyramid(build, { inputs: [2, 3, 4], channels: 5, fill: kaimingUniform, norm: false })
    const maps = [8, 4, 2].map((side, i) => Tensor.zeros([1, side, side, 2 + i], 'f64'))
    assert.ok(pyramid.forward(maps, evaluation).every((map) => map.data().every((value) => value === 0)))
    maps[2]!.write(Float64Array.from({ length: 16 }, (_, i) => Number(i < 4)))
    const outputs = pyramid.forward(maps, evaluation)
    assert.equal(
      outputs.map(({ shape }) => shape),
      [
        [1, 8, 8, 5],
        [1, 4, 4, 5],
        [1, 2, 2, 5],
        [1, 1, 1, 5],
      ],
    )
    assert.equal(outputs[3]!.data(), outputs[2]!.data().subarray(0, 5))
    // The first of four cells is repeated over a quarter of the finest map, and a 3x3 convolution sees one cell further.
    const values = outputs[0]!.data()
    for (let y = 0; y < 8; ++y)
      for (let x = 0; x < 8; ++x)
        assert.is(
          values.subarray((y * 8 + x) * 5, (y * 8 + x + 1) * 5).some((value) => value !== 0),
          y < 5 && x < 5,
        )
    const state = emptyState()
    pyramid.include(state)
    disposeState(state)
  }))

test('mmdetection’s anchors of a pyramid may reach beyond the image, but their cells lie within its own padded size', () => {
  const style = styleOf('mmdet', 'fpn')
  const length = fc.integer({ min: 1, max: 150 })
  fc.assert(
    fc.property(length, length, fc.nat(3), fc.nat(3), fc.constantFrom(4, 8, 16, 32, 64), (height, width, below, beside, stride) => {
      const [tall, wide] = [height, width].map((side) => Math.ceil(side / 32) * 32) as [number, number]
      const cells = (side: number, more: number): number => Math.ceil((side + 32 * more) / stride)
      const [rows, columns] = [cells(tall, below), cells(wide, beside)]
      const anchors = gridAnchors({ sizes: [8 * stride], ratios, stride, order: 'ratio' }, rows, columns)
      const { indices } = sampleAnchors(new Random(1), anchors, { height, width, objects: [] }, style)
      const valid = Math.ceil(tall / stride) * Math.ceil(wide / stride)
      assert.is(indices.length, Math.min(256, 3 * valid))
      for (const at of indices) {
        const cell = Math.floor(at / 3)
        assert.ok(Math.floor(cell / columns) < Math.ceil(tall / stride) && cell % columns < Math.ceil(wide / stride))
      }
    }),
  )
})

test('of two objects that a region overlaps enough, mmdetection gives one its best region, and each object stands for itself', () => {
  const objects = [
    { label: 0, box: [0, 0, 10, 10] as Box },
    { label: 1, box: [0, 0, 10, 16] as Box },
  ]
  const proposed = Float64Array.of(0, 0, 10, 12)
  const of = (name: 'detectron2' | 'mmdet'): number[] => {
    const drawn = sampleRegions(new Random(1), proposed, { height: 32, width: 32, objects }, 3, styleOf(name, 'fpn'), 64)
    return [...drawn.labels.keys()].filter((k) => drawn.boxes[4 * k + 3] === 12).map((k) => drawn.labels[k]!)
  }
  // It overlaps the first most, and is what overlaps the second most.
  assert.equal([of('detectron2'), of('mmdet')], [[0], [1]])
})

test('boxes of different maps do not suppress each other, and of each map the best are taken', () =>
  scope(() => {
    const anchors = [0, 0].map(() => Float64Array.of(0, 0, 16, 16, 0, 0, 16, 16.5, 20, 20, 40, 40))
    const proposed = [0, 1].map((map) => ({
      logits: Tensor.from([[3 - map, 2 - map, -5]], [1, 3], 'f64'),
      deltas: Tensor.zeros([1, 3, 4], 'f64'),
    }))
    const limits = { before: 2, after: 10, overlap: 0.7 }
    const [found] = proposals(proposed, anchors, [{ height: 64, width: 64 }], detectionStyles.detectron2, limits)
    assert.equal([...found!.scores], [3, 2])
    const [fewer] = proposals(proposed, anchors, [{ height: 64, width: 64 }], detectionStyles.detectron2, { ...limits, after: 1 })
    assert.equal([...fewer!.scores], [3])
  }))

const [height, width, classes] = [64, 64, 3]
function withModel<R>(body: (model: MaskRcnn) => R): R {
  const build = { random: new Random(1), dtype: 'f64' } as const
  const backbone = new ResNet(build, { depth: 18, baseChannels: 4 })
  const pyramid = { ...publishedPyramid, channels: 8, width: 16, canonical: 32, levels: 'detectron2' as const }
  const anchors = { sizes: [8, 16, 32, 64, 128], ratios, order: 'size' as const }
  const model = new MaskRcnn(build, backbone, { classes, anchors, init: 'detectron2', pyramid })
  try {
    return scope(() => body(model))
  } finally {
    disposeState(model.state())
  }
}
const picture = (count: number): Tensor => {
  const random = new Random(2)
  return Tensor.from(
    Float64Array.from({ length: count * height * width * 3 }, () => random.normal()),
    [count, height, width, 3],
    'f64',
  )
}
const limits = { before: 100, after: 20, overlap: 0.7 }
const object = { label: 1, box: [8, 8, 40, 48] as Box }
const chooser = (name: 'detectron2' | 'mmdet', first = 0): Chooser => ({
  ...randomChooser(new Random(3), classes, styleOf(name, 'fpn')),
  anchors: (anchors, image, i) => sampleAnchors(new Random(4, first + i), anchors, image, styleOf(name, 'fpn')),
  regions: (_, image, i) => {
    const near = Float64Array.of(6 + first + i, 9, 42, 47, 0, 0, 20, 20)
    return sampleRegions(new Random(5, first + i), near, image, classes, styleOf(name, 'fpn'), 16)
  },
  masks: ({ objects }, _, i, side) =>
    Float64Array.from({ length: objects.length * side * side }, (__, k) => Number((k + first + i) % 3 === 0)),
})

test('losses of four images are the means of those of two and two, the norms fixed: so the published runs had them', () =>
  withModel((model) => {
    const images: TrainingImage[] = [[object], [], [object, { ...object, label: 0 }], [object]].map((objects) => ({
      height,
      width,
      objects,
    }))
    const x = picture(4)
    const each = x.size / 4
    for (const name of ['detectron2', 'mmdet'] as const) {
      const of = (first: number, last: number): Record<'anchorClass' | 'anchorBox' | 'mask', number> => {
        const part = Tensor.from(x.data().subarray(first * each, last * each), [last - first, height, width, 3], 'f64')
        const made = detectionLosses(model, part, images.slice(first, last), chooser(name, first), evaluation, styleOf(name, 'fpn'), limits)
        return { anchorClass: made.anchorClass.item(), anchorBox: made.anchorBox.item(), mask: made.mask!.item() }
      }
      const [all, front, back] = [of(0, 4), of(0, 2), of(2, 4)]
      for (const key of ['anchorClass', 'anchorBox', 'mask'] as const) {
        assert.ok(all[key] > 0)
        assert.ok(Math.abs(all[key] - (front[key] + back[key]) / 2) < 1e-12, `${name} ${key}`)
      }
    }
  }))

test('without objects there is no mask to learn and the norms of the mask head stay; with one there is', () =>
  withModel((model) => {
    const norm = new Map(allTensors(model.state())).get('roi_head.mask_head.convs.0.bn.running_mean')!
    const step = (objects: TrainingImage['objects']): number => {
      const images = [{ height, width, objects }]
      return detectionLosses(model, picture(1), images, chooser('detectron2'), training, styleOf('detectron2', 'fpn'), limits).mask!.item()
    }
    assert.is(step([]), 0)
    assert.ok(norm.data().every((value) => value === 0))
    assert.ok(step([object]) > 0)
    assert.ok(norm.data().some((value) => value !== 0))
  }))

test('a pyramid asks for four maps, each half as large as the one before, and a size of anchors for each of its maps', () => {
  const build = { random: new Random(1), dtype: 'f64' } as const
  const backbone = new ResNet(build, { depth: 18, baseChannels: 4 })
  const pyramid = { ...publishedPyramid, levels: 'mmdet' as const }
  throwsError(
    () => new MaskRcnn(build, backbone, { classes: 2, anchors: { sizes: [32, 64], ratios, order: 'size' }, init: 'mmdet', pyramid }),
    'CONFIG',
    /expected 5 sizes, one for each map, but received 32, 64/,
  )
  const anchors = { sizes: [8, 16, 32, 64, 128], ratios, order: 'size' as const }
  const dilated = resnetKind.build(build, { depth: 18, baseChannels: 4 }, { outputStride: 8 })
  throwsError(
    () => new MaskRcnn(build, dilated, { classes: 2, anchors, init: 'mmdet', pyramid }),
    'CONFIG',
    /expected 4 maps, each half as large as the one before, but ResNet-18 has strides 2, 4, 8, 8, 8/,
  )
  const model = new MaskRcnn(build, backbone, { classes: 2, anchors, init: 'mmdet', pyramid })
  scope(() =>
    throwsError(
      () => model.features(Tensor.zeros([1, 40, 64, 3], 'f64'), evaluation),
      'SHAPE',
      /multiples of 32 have them, but received 10x16, 5x8, 3x4, 2x2/,
    ),
  )
  for (const each of [model, dilated]) disposeState(each.state())
})

test.run()
