/** Steps with next to nothing in them: every loss stays a number, and what there is to learn from is learned from. */
import * as assert from 'uvu/assert'

import { Tape } from '../../src/autograd/tape.js'
import { detect, detectInRegions } from '../../src/detection/detect.js'
import { FasterRcnn } from '../../src/detection/fasterRcnn.js'
import { detectionLosses, randomChooser } from '../../src/detection/step.js'
import { type DetectionStyleName, detectionStyles } from '../../src/detection/styles.js'
import type { TrainingImage } from '../../src/detection/targets.js'
import { evaluation, training } from '../../src/nn/layers.js'
import { disposeState } from '../../src/nn/module.js'
import { ResNet } from '../../src/nn/resnet.js'
import { Random } from '../../src/tensor/random.js'
import { scope, Tensor } from '../../src/tensor/tensor.js'
import { suite } from '../support/suite.js'

const test = suite('degenerate steps of a detector')
const [height, width] = [48, 64]
const limits = { before: 100, after: 20, overlap: 0.7 }

type Gradients = Map<string, ArrayLike<number>>
interface Result {
  losses: { anchorClass: number; anchorBox: number; regionClass: number; regionBox: number }
  gradients: Gradients
}

function withModel<R>(classes: number, body: (model: FasterRcnn) => R): R {
  const build = { random: new Random(1), dtype: 'f64' } as const
  const backbone = new ResNet(build, { depth: 18, baseChannels: 4 })
  const model = new FasterRcnn(build, backbone, {
    classes,
    anchors: { sizes: [16, 32], ratios: [0.5, 1, 2], stride: 16, order: 'size' },
    regionSize: 4,
  })
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

function step(model: FasterRcnn, objects: TrainingImage['objects'][], name: DetectionStyleName): Result {
  const style = detectionStyles[name]
  const { parameters } = model.state()
  const tape = new Tape().watch([...parameters.values()])
  const made = tape.record(() =>
    detectionLosses(
      model,
      picture(objects.length),
      objects.map((own) => ({ height, width, objects: own })),
      randomChooser(new Random(3), model.options.classes, style, 32),
      training,
      style,
      limits,
    ),
  )
  const gradients = tape.backward(made.total, [...parameters.values()])
  const { anchorClass, anchorBox, regionClass, regionBox } = made
  const losses = {
    anchorClass: anchorClass.item(),
    anchorBox: anchorBox.item(),
    regionClass: regionClass.item(),
    regionBox: regionBox.item(),
  }
  const byName = new Map([...parameters.keys()].map((key, i) => [key, gradients[i]!.data()]))
  for (const [key, loss] of Object.entries(losses)) assert.ok(Number.isFinite(loss), `${key} ${loss}`)
  for (const [key, values] of byName) assert.ok(Array.from(values).every(Number.isFinite), `the gradient of ${key}`)
  return { losses, gradients: byName }
}

const learns = (gradients: Gradients, name: string): boolean => Array.from(gradients.get(name)!).some((value) => value !== 0)
const styles = Object.keys(detectionStyles) as DetectionStyleName[]

test('without objects everything is background, in one image of a batch or in all: boxes teach nothing, classes do', () => {
  for (const name of styles)
    for (const objects of [[[]], [[], []]])
      withModel(3, (model) => {
        const { losses, gradients } = step(model, objects, name)
        assert.equal([losses.anchorBox, losses.regionBox], [0, 0])
        assert.ok(losses.anchorClass > 0 && losses.regionClass > 0)
        assert.not.ok(learns(gradients, 'roi_head.bbox_head.fc_reg.weight'))
        assert.ok(learns(gradients, 'roi_head.bbox_head.fc_cls.weight'))
      })
  withModel(3, (model) => {
    const { losses } = step(model, [[], [{ label: 2, box: [8, 8, 40, 40] }]], 'detectron2')
    assert.ok(losses.anchorBox > 0 && losses.regionBox > 0)
  })
})

test('one image, one class, and an object that fills it', () => {
  for (const name of styles)
    withModel(1, (model) => {
      const { losses, gradients } = step(model, [[{ label: 0, box: [0, 0, width, height] }]], name)
      assert.ok(losses.regionBox >= 0 && losses.regionClass > 0)
      assert.ok(learns(gradients, 'roi_head.bbox_head.fc_cls.weight'))
    })
})

test('where no proposal has an area the objects alone are regions, and without them there are none, nor is anything found', () => {
  withModel(2, (model) => {
    // Sides of e^-10000: nothing.
    const bias = model.state().parameters.get('rpn_head.rpn_reg.bias')!
    bias.write(Float64Array.from({ length: bias.size }, (_, i) => (i % 4 < 2 ? 0 : -10_000)))
    const some = step(model, [[], [{ label: 1, box: [8, 8, 40, 40] }]], 'detectron2')
    assert.ok(some.losses.regionClass > 0)
    const none = step(model, [[], []], 'detectron2')
    assert.equal([none.losses.regionClass, none.losses.regionBox], [0, 0])
    assert.ok(none.losses.anchorClass > 0 && learns(none.gradients, 'rpn_head.rpn_cls.weight'))
    assert.not.ok(learns(none.gradients, 'roi_head.bbox_head.fc_cls.weight'))
    const image = { height, width, original: { height, width } }
    assert.equal(detect(model, picture(1), [image], detectionStyles.detectron2, limits), [[]])
  })
})

test('a single region is looked at like one among others, and no region finds nothing', () => {
  withModel(3, (model) => {
    const features = model.features(picture(1), evaluation)
    const image = { height, width, original: { height, width } }
    const found = (...regions: [number, number, number, number][]) =>
      detectInRegions(model, features, [Float64Array.from(regions.flat())], [image], detectionStyles.mmdet)[0]!
    const [one, far] = [
      [2, 2, 22, 22],
      [40, 24, 62, 46],
    ] as [[number, number, number, number], [number, number, number, number]]
    const [alone, together] = [found(one), found(one, far)]
    assert.is(alone.length, 3)
    for (const { label, score } of alone)
      assert.ok(
        together.some((other) => other.label === label && Math.abs(other.score - score) < 1e-12),
        `${label} ${score}`,
      )
    assert.equal(found(), [])
  })
})

test.run()
