/**
 * A detector of the form C4 that torchvision's parts make, with its switches: anchors of whole pixels, two samples along a bin, the first
 * form of RoIAlign, the background first. Every part gives the same, and so the objects that are found.
 */
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

import * as assert from 'uvu/assert'

import { noGrad } from '../../src/autograd/tape.js'
import type { Pixels } from '../../src/data/decode.js'
import { loadPixels } from '../../src/data/source.js'
import { openSource } from '../../src/data/sources.js'
import { detect } from '../../src/detection/detect.js'
import { FasterRcnn } from '../../src/detection/fasterRcnn.js'
import { proposals } from '../../src/detection/proposals.js'
import { detectionStyles } from '../../src/detection/styles.js'
import { testView } from '../../src/eval/detectionBatches.js'
import { evaluation } from '../../src/nn/layers.js'
import { allTensors, disposeState } from '../../src/nn/module.js'
import { ResNet } from '../../src/nn/resnet.js'
import { permute } from '../../src/ops/permute.js'
import { roiAlign } from '../../src/ops/roiAlign.js'
import { packageRoot } from '../../src/tensor/addon.js'
import { Random } from '../../src/tensor/random.js'
import { scope, Tensor } from '../../src/tensor/tensor.js'
import { loadStored } from '../../src/weights/layout.js'
import { readSafetensors, type StoredTensor, storedValues, type TensorFile } from '../../src/weights/safetensors.js'
import { channelsFirst, relativeError } from '../support/golden.js'
import { hasTorch, noTorch, runPython } from '../support/python.js'
import { suite, testWhere, withFolder } from '../support/suite.js'

const test = suite("torchvision's detector")
const classes = 5
const anchors = { sizes: [32, 64, 128], ratios: [0.5, 1, 2] }
const limits = { before: 1000, after: 30, overlap: 0.7 }

/** torchvision's name of a tensor of ours, and what of it is ours; undefined for what it has not. */
function stored(file: TensorFile, name: string): StoredTensor | undefined {
  const blocks = ['conv1', 'bn1', '', '', 'layer1', 'layer2', 'layer3']
  const theirs = name
    .replace(/^backbone\.(\w+)\./, (_, part: string) => `backbone.${blocks.indexOf(part)}.`)
    .replace('roi_head.shared_head.layer4.', 'roi_heads.box_head.0.')
    .replace('rpn_head.rpn_conv.', 'rpn.head.conv.0.0.')
    .replace('rpn_head.rpn_cls.', 'rpn.head.cls_logits.')
    .replace('rpn_head.rpn_reg.', 'rpn.head.bbox_pred.')
    .replace('roi_head.bbox_head.fc_cls.', 'roi_heads.box_predictor.cls_score.')
    .replace('roi_head.bbox_head.fc_reg.', 'roi_heads.box_predictor.bbox_pred.')
  const found = file.tensors.get(`weights.${theirs}`)
  if (found === undefined || !name.includes('bbox_head')) return found
  // The background is our last class and has no moves.
  const values = storedValues(found)
  const row = values.length / found.shape[0]!
  const kept = name.includes('fc_cls') ? [...values.subarray(row), ...values.subarray(0, row)] : [...values.subarray(4 * row)]
  return { dtype: 'F64', shape: [kept.length / row, ...found.shape.slice(1)], bytes: Buffer.from(Float64Array.from(kept).buffer) }
}

/** Compares every part on images as a test of mmdetection's style sees them, whose sides are multiples of 32. */
function compare(folder: string, pictures: readonly Pixels[], scale: number): number {
  const style = { ...detectionStyles.detectron2, padTo: 32 }
  const batches = pictures.map((pixels) => testView(pixels, { testScale: scale, longest: 2 * scale }, style))
  const given = join(folder, 'given.json')
  const shapes = batches.map(({ shape }) => shape.slice(1, 3))
  const sizes = batches.map(({ images }) => [images[0]!.height, images[0]!.width])
  writeFileSync(given, JSON.stringify({ classes, anchors: anchors.sizes, ratios: anchors.ratios, regions: limits.after, shapes, sizes }))
  batches.forEach(({ values, shape }, i) =>
    scope(() => {
      const planes = permute(Tensor.from(values, shape, 'f64'), [0, 3, 1, 2]).data() as Float64Array
      writeFileSync(`${given}.${i}`, new Uint8Array(planes.buffer, planes.byteOffset, planes.byteLength))
    }),
  )
  const program = readFileSync(join(packageRoot, 'tests', 'detection', 'torchvisionDetector.py'), 'utf8')
  runPython(program, [given, join(folder, 'out.safetensors')])
  const file = readSafetensors(join(folder, 'out.safetensors'))

  const build = { random: new Random(0), dtype: 'f64' } as const
  const model = new FasterRcnn(build, new ResNet(build, { depth: 18, baseChannels: 64 }), {
    classes,
    anchors: { ...anchors, stride: 16, order: 'ratio', rounded: true },
    pooling: { samplingRatio: 2, aligned: false },
  })
  let count = 0
  try {
    for (const [name, tensor] of allTensors(model.state())) {
      const values = stored(file, name)
      if (values !== undefined) loadStored('torchvision', name, tensor, values)
      // The norm behind the last stage is none there.
      else if (name.endsWith('norm.running_var')) tensor.write(Float64Array.from({ length: tensor.size }, () => 1 - 1e-5))
    }
    for (const [i, { values, shape, images }] of batches.entries())
      scope(() =>
        noGrad(() => {
          const expected = (part: string): Float64Array => storedValues(file.tensors.get(`${i}.${part}`)!)
          const check = (part: string, actual: ArrayLike<number>, bound = 1e-9): void => {
            const error = relativeError(actual, expected(part))
            assert.ok(error <= bound, `${part} of image ${i} differs by ${error}`)
          }
          const x = Tensor.from(values, shape, 'f64')
          const features = model.features(x, evaluation)
          check('map', channelsFirst(features[0]))
          const grid = model.anchors(features, x)
          check('anchors', grid[0], 0)
          const proposed = model.propose(features)
          check('logits', proposed[0].logits.data())
          check('deltas', proposed[0].deltas.data())
          const [found] = proposals(proposed, grid, images, style, limits)
          check('proposals', found!.boxes)
          const rows = found!.boxes.length / 4
          const regions = { boxes: found!.boxes, images: new Int32Array(rows) }
          check(
            'pooled',
            channelsFirst(
              roiAlign(features[0], Tensor.from(regions.boxes, [rows, 4], 'f64'), Tensor.zeros([rows], 'i32'), {
                size: 14,
                scale: 1 / 16,
                ...model.options.pooling,
              }),
            ),
          )
          const { logits } = model.classify(features, regions, evaluation)
          const order = [classes, ...Array.from({ length: classes }, (_, c) => c)]
          const own = logits.data()
          check(
            'classLogits',
            Float64Array.from({ length: own.length }, (_, at) => own[at - (at % (classes + 1)) + order[at % (classes + 1)]!]!),
          )
          const [objects] = detect(
            model,
            x,
            images.map((image) => ({ ...image, original: image })),
            style,
            limits,
          )
          check(
            'scores',
            objects!.map(({ score }) => score),
          )
          check(
            'labels',
            objects!.map(({ label }) => label + 1),
            0,
          )
          check(
            'boxes',
            objects!.flatMap(({ box }) => [...box]),
          )
          count += objects!.length
        }),
      )
  } finally {
    disposeState(model.state())
  }
  return count
}

testWhere(hasTorch, noTorch, test, 'on drawn scenes', () =>
  withFolder(async (folder) => {
    const { items } = await openSource('scenes:2')
    const count = compare(folder, await Promise.all(items.map((item) => loadPixels(item))), 90)
    assert.ok(count > 5, `${count} objects`)
  }),
)

test.run()
