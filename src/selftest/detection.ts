/** The kernels that detection alone needs, against the CPU, and a step of a small detector. */
import { Tape } from '../autograd/tape.js'
import { FasterRcnn } from '../detection/fasterRcnn.js'
import type { Detector } from '../detection/detector.js'
import { MaskRcnn, publishedPyramid } from '../detection/maskRcnn.js'
import { detectionLosses, lossParts } from '../detection/step.js'
import { styleOf } from '../detection/styles.js'
import { sampleAnchors, sampleRegions, type TrainingImage } from '../detection/targets.js'
import type { Backbone } from '../nn/backbone.js'
import { training } from '../nn/layers.js'
import { disposeState } from '../nn/module.js'
import { ResNet } from '../nn/resnet.js'
import { boxIou, decodeBoxes, encodeBoxes } from '../ops/boxes.js'
import { gather, scatterAdd } from '../ops/gather.js'
import { binaryCrossEntropy, smoothL1 } from '../ops/losses.js'
import { nms } from '../ops/nms.js'
import { roiAlign } from '../ops/roiAlign.js'
import { topK } from '../ops/topK.js'
import { Random } from '../tensor/random.js'
import { Tensor } from '../tensor/tensor.js'
import { noise, noiseTensor, type Other, type Result, resultOf, withGradients } from './compare.js'

/** Boxes [count, 4] in 0..64 whose corners are multiples of 1/8: their areas are exact, so which overlap does not depend on rounding. */
function boxesOf(count: number, seed: number): Tensor {
  const values = noise(4 * count, seed)
  const corner = (at: number, least: number, most: number): number => Math.round(8 * (least + ((values[at]! + 1) / 2) * (most - least))) / 8
  const boxes = Array.from({ length: count }, (_, i) => {
    const [x, y] = [corner(4 * i, 0, 40), corner(4 * i + 1, 0, 40)]
    return [x, y, x + corner(4 * i + 2, 2, 24), y + corner(4 * i + 3, 2, 24)]
  })
  return Tensor.from(boxes.flat(), [count, 4])
}
const indices = (count: number, of: (i: number) => number): Tensor =>
  Tensor.from(
    Int32Array.from({ length: count }, (_, i) => of(i)),
    [count],
    'i32',
  )
const ops: readonly Other[] = [
  ...(['f32', 'bf16'] as const).map((dtype) => ({
    shape: `roiAlign of x [2,21,19,40] in 60 boxes, size 7, ${dtype}`,
    run: (device: string) => {
      const [boxes, images] = [boxesOf(60, 1), indices(60, (i) => (i % 7 === 0 ? -1 : i % 2))]
      return withGradients(
        (x) => roiAlign(x, boxes, images, { size: 7, scale: 0.25 }),
        device,
        dtype,
        noiseTensor(device, [2, 21, 19, 40], dtype, 2),
      )
    },
    ...(dtype === 'bf16' ? { bounds: [0.02, 0.03] } : {}),
  })),
  {
    shape: 'boxIou, encodeBoxes and decodeBoxes of 300 boxes, f32',
    run: () => {
      const [a, b] = [boxesOf(300, 1), boxesOf(300, 2)]
      const deltas = encodeBoxes(a, b, { weights: [10, 10, 5, 5] })
      return [
        resultOf('overlaps', boxIou(a, b)),
        resultOf('deltas', deltas),
        resultOf('boxes', decodeBoxes(deltas, a, { weights: [10, 10, 5, 5] })),
      ]
    },
  },
  {
    shape: 'topK of x [3,5000] for 700, and nms of 600 boxes in 3 groups, f32',
    run: () => {
      const { values, index } = topK(Tensor.from(noise(15_000, 1), [3, 5000]), 700)
      const group = indices(600, (i) => i % 3)
      const kept = nms(boxesOf(600, 3), Tensor.from(noise(600, 4), [600]), 0.4, { group })
      return [resultOf('values', values), resultOf('index', index), resultOf('kept', kept.index), resultOf('count', kept.count)]
    },
    bounds: [0, 0, 0, 0],
  },
  {
    shape: 'gather and scatterAdd of x [60,24], f32',
    run: (device) => {
      const picks = indices(50, (i) => (i % 6 === 0 ? -1 : (i * 7) % 60))
      return withGradients((x) => scatterAdd(gather(x, picks), picks, 60), device, 'f32', noiseTensor(device, [60, 24], 'f32', 1))
    },
  },
  {
    shape: 'smoothL1 and binaryCrossEntropy of [300,8] with weights, f32',
    run: (device) => {
      const weight = Tensor.from(
        noise(300, 3).map((value) => Math.max(0, value)),
        [300],
      )
      return [smoothL1, binaryCrossEntropy].flatMap((loss) =>
        withGradients(
          (x) => loss(x, noiseTensor(device, [300, 8], 'f32', 2), { weight, divisor: 300 }),
          device,
          'f32',
          noiseTensor(device, [300, 8], 'f32', 1),
        ),
      )
    },
  },
]

const [classes, ratios] = [4, [0.5, 1, 2]]
const build = () => ({ random: new Random(1), dtype: 'f32' }) as const
/** A block a stage: what the steps look at lies behind the maps. */
const backboneOf = (baseChannels: number): Backbone => new ResNet(build(), { depth: 18, baseChannels, blocks: [1, 1, 1, 1] })

function fasterRcnn(): Detector {
  const anchors = { sizes: [16, 32, 64], ratios, stride: 16, order: 'size' as const }
  return new FasterRcnn(build(), backboneOf(8), { classes, anchors, regionSize: 6 })
}

function maskRcnn(): Detector {
  const anchors = { sizes: [8, 16, 32, 64, 128], ratios, order: 'size' as const }
  const pyramid = { ...publishedPyramid, channels: 8, width: 32, boxConvolutions: 1, maskConvolutions: 1, canonical: 28 }
  return new MaskRcnn(build(), backboneOf(4), { classes, anchors, init: 'detectron2', pyramid: { ...pyramid, levels: 'detectron2' } })
}

/** Losses of two images with given regions, and gradients of the layers behind the maps, which no tipping ReLU lies in front of. */
function step(model: Detector): Result[] {
  const style = styleOf('detectron2', model.form)
  const rows = Math.ceil(80 / style.padTo) * style.padTo
  const images = [0, 1].map((i): TrainingImage => {
    const [x, y] = [8 + 12 * i, 20 - 6 * i]
    return {
      height: 80,
      width: 96,
      objects: [{ label: i, box: [x, y, x + 40, y + 33] }, ...[{ label: 3, box: [40, 30, 70, 78] } as const]],
    }
  })
  const tape = new Tape().watch([...model.state().parameters.values()])
  const losses = tape.record(() =>
    detectionLosses(
      model,
      Tensor.from(noise(2 * rows * 96 * 3, 2), [2, rows, 96, 3]),
      images,
      {
        wanted: 256,
        anchors: (grid, image, i) => sampleAnchors(new Random(2, i), grid, image, style),
        // Not among the proposals, whose order may depend on rounding.
        regions: (_, image, i) => sampleRegions(new Random(3, i), Float64Array.from(boxesOf(12, 4 + i).data()), image, classes, style),
        masks: ({ objects }, _, i, side) =>
          Float64Array.from({ length: objects.length * side * side }, (__, at) => Number((at + i) % 3 === 0)),
      },
      training,
      style,
      { before: 200, after: 50, overlap: 0.7 },
    ),
  )
  const names = [
    'rpn_head.rpn_cls.weight',
    'rpn_head.rpn_reg.bias',
    'roi_head.bbox_head.fc_cls.weight',
    'roi_head.bbox_head.fc_reg.bias',
    ...(model.masks === undefined ? [] : ['roi_head.mask_head.conv_logits.weight']),
  ]
  const gradients = tape.backward(
    losses.total,
    names.map((name) => model.state().parameters.get(name)!),
  )
  const results = [
    ...lossParts.flatMap((name) => (losses[name] === undefined ? [] : [resultOf(`loss ${name}`, losses[name])])),
    ...names.map((name, i) => resultOf(`gradient of ${name}`, gradients[i]!)),
  ]
  disposeState(model.state())
  return results
}

export const detectionCases: readonly Other[] = [
  ...ops,
  { shape: 'a step of Faster R-CNN, a ResNet of four blocks of 8 channels on x [2,80,96,3], f32', run: () => step(fasterRcnn()) },
  { shape: 'a step of Mask R-CNN on a pyramid, a ResNet of four blocks of 4 channels on x [2,96,96,3], f32', run: () => step(maskRcnn()) },
]
