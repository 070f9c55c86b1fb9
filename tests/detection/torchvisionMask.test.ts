/**
 * torchvision's Mask R-CNN with random weights, imported from its state dict under both generations of names: every part, what is found,
 * and losses and gradients of a step on the same samples are torchvision's.
 */
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

import * as assert from 'uvu/assert'

import { noGrad, Tape } from '../../src/autograd/tape.js'
import { loadPixels } from '../../src/data/source.js'
import { openSource } from '../../src/data/sources.js'
import { assign } from '../../src/detection/assign.js'
import { detectInRegions } from '../../src/detection/detect.js'
import { saveDetector } from '../../src/detection/detectorFile.js'
import { detectorName } from '../../src/detection/detectorNames.js'
import { detectorOf } from '../../src/detection/detectorShape.js'
import { importDetector } from '../../src/detection/exchange.js'
import { proposals } from '../../src/detection/proposals.js'
import { backgroundLast } from '../../src/detection/foreignDetector.js'
import { type Chooser, detectionLosses } from '../../src/detection/step.js'
import { styleOf } from '../../src/detection/styles.js'
import { boxAt, type RegionSample, type TrainingImage } from '../../src/detection/targets.js'
import { testView } from '../../src/eval/detectionBatches.js'
import { backboneKinds } from '../../src/nn/backbones.js'
import { evaluation } from '../../src/nn/layers.js'
import { allTensors } from '../../src/nn/module.js'
import { permute } from '../../src/ops/permute.js'
import { packageRoot } from '../../src/tensor/addon.js'
import { Random } from '../../src/tensor/random.js'
import { scope, Tensor } from '../../src/tensor/tensor.js'
import { toStored } from '../../src/weights/layout.js'
import { readTensorFile } from '../../src/weights/import.js'
import { encodeSafetensors, readSafetensors, storedValues } from '../../src/weights/safetensors.js'
import { channelsFirst, relativeError } from '../support/golden.js'
import { hasTorch, noTorch, runPython } from '../support/python.js'
import { hasRealData, realData, suite, testWhere, withFolder } from '../support/suite.js'

const test = suite("torchvision's Mask R-CNN")
const slots = 91
const regions = 40
const style = { ...styleOf('detectron2', 'fpn'), boxBeta: 1 / 9, anchorDivisor: 'sampled' as const }
const limits = { before: 1000, after: regions, overlap: 0.7 }
const kindOf = (name: string) => backboneKinds.get(name)

const objects: TrainingImage['objects'][] = [
  [
    { label: 16, box: [20, 12, 90, 70] },
    { label: 0, box: [60.5, 30.25, 100, 95] },
  ],
  [{ label: 89, box: [5, 40, 110, 88] }],
]

/** Two images in one padded batch, as a test of mmdetection's style sees them. */
async function pictures(): Promise<{ values: Float64Array; shape: [number, number, number, number]; images: TrainingImage[] }> {
  const source = await openSource(hasRealData ? join(realData, 'coco_instances', 'annotations', 'instances_val2017.json') : 'scenes:2')
  const views = await Promise.all(
    source.items.slice(0, 2).map(async (item) => testView(await loadPixels(item), { testScale: 100, longest: 180 }, style)),
  )
  const [height, width] = [1, 2].map((axis) => Math.max(...views.map(({ shape }) => shape[axis]!))) as [number, number]
  const values = new Float64Array(2 * height * width * 3)
  views.forEach((view, i) => {
    for (let y = 0; y < view.shape[1]; ++y)
      values.set(view.values.subarray(y * view.shape[2] * 3, (y + 1) * view.shape[2] * 3), (i * height + y) * width * 3)
  })
  const images = views.map((view, i): TrainingImage => ({ ...view.images[0]!, objects: objects[i]! }))
  return { values, shape: [2, height, width, 3], images }
}

testWhere(hasTorch, noTorch, test, 'imported, it says, finds and learns what it did there', () =>
  withFolder(async (folder) => {
    const { values, shape, images } = await pictures()
    const [given, out, pth] = ['given.json', 'out.safetensors', 'weights.pth'].map((name) => join(folder, name)) as [string, string, string]
    const theirs = images.map((image) => ({
      boxes: image.objects.map(({ box }) => box),
      labels: image.objects.map(({ label }) => label + 1),
    }))
    const sizes = images.map(({ height, width }) => [height, width])
    writeFileSync(given, JSON.stringify({ slots, regions, shape: shape.slice(1, 3), sizes, objects: theirs }))
    scope(() => {
      const planes = permute(Tensor.from(values, shape, 'f64'), [0, 3, 1, 2]).data() as Float64Array
      writeFileSync(`${given}.values`, new Uint8Array(planes.buffer, planes.byteOffset, planes.byteLength))
    })
    runPython(readFileSync(join(packageRoot, 'tests', 'detection', 'torchvisionMaskRcnn.py'), 'utf8'), [given, out, pth])
    const file = readSafetensors(out)
    const expected = (part: string): Float64Array => storedValues(file.tensors.get(part)!)

    const { model: imported, record, assumed } = importDetector(pth, kindOf)
    assert.ok(assumed)
    assert.equal(
      [record.form, record.classes.length, record.rounded, record.pooling],
      ['fpn', 90, true, { samplingRatio: 2, aligned: false }],
    )
    oldNamesGiveTheSame(folder, pth, imported)

    const build = { random: new Random(0), dtype: 'f64' } as const
    const backbone = imported.backbone.kind.build(build, imported.backbone.options)
    const model = detectorOf(build, backbone, { ...record, classes: record.classes.length })
    const source = new Map(allTensors(imported.state()))
    for (const [name, tensor] of allTensors(model.state()))
      tensor.write(tensor.dtype === 'i32' ? Int32Array.of(0) : Float64Array.from(source.get(name)!.data()))
    for (const each of [imported, imported.backbone]) each.dispose()
    try {
      scope(() => {
        const check = (part: string, actual: ArrayLike<number>, bound = 1e-9): void => {
          const error = relativeError(actual, expected(part))
          assert.ok(error <= bound, `${part} differs by ${error}`)
        }
        const x = Tensor.from(values, shape, 'f64')
        noGrad(() => {
          const features = model.features(x, evaluation)
          const grids = model.anchors(features, x)
          check('anchors', Float64Array.from(grids.flatMap((grid) => [...grid])), 0)
          const proposed = model.propose(features)
          features.forEach((map, i) => check(`map.${i}`, channelsFirst(map)))
          for (const part of ['logits', 'deltas'] as const) proposed.forEach((each, i) => check(`${part}.${i}`, each[part].data()))
          const found = proposals(proposed, grids, images, style, limits)
          found.forEach(({ boxes }, i) => check(`proposals.${i}`, boxes))
          const originals = images.map((image) => ({ ...image, original: image }))
          const kept = detectInRegions(
            model,
            features,
            found.map(({ boxes }) => boxes),
            originals,
            style,
          )
          assert.ok(
            kept.every((own) => own.length > 5),
            `${kept.map((own) => own.length).join()} objects`,
          )
          kept.forEach((own, i) => {
            check(
              `labels.${i}`,
              own.map(({ label }) => label + 1),
              0,
            )
            check(
              `scores.${i}`,
              own.map(({ score }) => score),
            )
            check(
              `boxes.${i}`,
              own.flatMap(({ box }) => [...box]),
            )
            check(
              `masks.${i}`,
              own.flatMap(({ mask }) => [...mask!.values]),
            )
          })
        })

        const { parameters } = model.state()
        const tape = new Tape().watch([...parameters.values()])
        const whole = { ...style, groupOf: 2 }
        const losses = tape.record(() => detectionLosses(model, x, images, chooserOf(expected, slots - 1), evaluation, whole, limits))
        check('loss.loss_objectness', [losses.anchorClass.item()])
        check('loss.loss_rpn_box_reg', [losses.anchorBox.item()])
        check('loss.loss_classifier', [losses.regionClass.item()])
        check('loss.loss_box_reg', [losses.regionBox.item()])
        check('loss.loss_mask', [losses.mask!.item()])
        const gradients = tape.backward(losses.total, [...parameters.values()])
        let compared = 0
        ;[...parameters.keys()].forEach((name, i) => {
          const key = `grad.${detectorName('torchvision', name, { form: 'fpn' })}`
          const stored = file.tensors.get(key)
          if (stored === undefined) return
          const error = relativeError(storedValues(toStored(name, gradients[i]!)), storedValues(backgroundLast(name, stored)), 1e-6)
          assert.ok(error <= 1e-8, `${key} differs by ${error}`)
          compared += 1
        })
        assert.ok(compared > 40, `${compared} gradients`)
      })
    } finally {
      model.dispose()
      backbone.dispose()
    }
  }),
)

/** The samples of the file; torchvision orders regions by their place, here those of objects come first. */
const chooserOf = (expected: (part: string) => Float64Array, classes: number): Chooser => ({
  wanted: 64,
  anchors: (anchors, image, i) => {
    const boxes = image.objects.map(({ box }) => box)
    const { matched } = assign(anchors, boxes, style.anchors)
    const [positive, negative] = [expected(`anchors.positive.${i}`), expected(`anchors.negative.${i}`)]
    const indices = Int32Array.from([...positive, ...negative])
    return { indices, positives: positive.length, objects: Int32Array.from(positive, (at) => matched[at]!) }
  },
  regions: (_, __, i): RegionSample => {
    const [boxes, matched, labels] = [expected(`sample.boxes.${i}`), expected(`sample.matched.${i}`), expected(`sample.labels.${i}`)]
    const rows = [...labels.keys()]
    const own = rows.filter((row) => labels[row]! > 0)
    const order = [...own, ...rows.filter((row) => labels[row] === 0)]
    return {
      boxes: Float64Array.from(order.flatMap((row) => [...boxAt(boxes, row)])),
      labels: Int32Array.from(order, (row) => (labels[row]! > 0 ? labels[row]! - 1 : classes)),
      objects: Int32Array.from(own, (row) => matched[row]!),
    }
  },
  masks: (_, __, i) => expected(`sample.masks.${i}`),
})

/** The same weights under the names of torchvision's published files. */
function oldNamesGiveTheSame(folder: string, pth: string, imported: ReturnType<typeof importDetector>['model']): void {
  const old = (name: string): string =>
    name
      .replace(/^(backbone\.fpn\.\w+_blocks\.\d)\.0\./, '$1.')
      .replace('rpn.head.conv.0.0.', 'rpn.head.conv.')
      .replace(/^roi_heads\.mask_head\.(\d)\.0\./, (_, i: string) => `roi_heads.mask_head.mask_fcn${Number(i) + 1}.`)
  const tensors = new Map([...readTensorFile(pth).tensors].map(([name, tensor]) => [old(name), tensor]))
  assert.ok(tensors.has('rpn.head.conv.weight') && tensors.has('roi_heads.mask_head.mask_fcn4.bias'))
  const path = join(folder, 'old.safetensors')
  writeFileSync(path, Buffer.concat(encodeSafetensors({ tensors, metadata: {} })))
  const { model, record } = importDetector(path, kindOf)
  const [own, again] = [join(folder, 'own.safetensors'), join(folder, 'again.safetensors')]
  saveDetector(own, imported, record)
  saveDetector(again, model, record)
  assert.equal(readFileSync(again), readFileSync(own))
  // Our file says what torchvision's does not, and gives the same detector.
  const reopened = importDetector(own, kindOf)
  assert.equal([reopened.assumed, reopened.record], [false, record])
  for (const each of [model, model.backbone, reopened.model, reopened.model.backbone]) each.dispose()
}

test.run()
