import { addOp, compareOp, divOp, maximumOp, minimumOp, mulOp, powOp, subOp, whereOp } from './arithmetic.js'
import { batchNormOp } from './batchNorm.js'
import { boxIouOp, decodeBoxesOp, encodeBoxesOp } from './boxes.js'
import { broadcastToOp } from './broadcastTo.js'
import { conv2dOp } from './conv2d.js'
import { concatOp } from './concat.js'
import { dropoutOp, reluOp, reshapeOp, scaleOp } from './elementwise.js'
import { gatherOp, scatterAddOp } from './gather.js'
import { groupedConv2dOp } from './groupedConv2d.js'
import { layerNormOp } from './layerNorm.js'
import { linearOp } from './linear.js'
import { binaryCrossEntropyOp, crossEntropyOp, infoNceOp, smoothL1Op } from './losses.js'
import { matmulOp } from './matmul.js'
import { nmsOp } from './nms.js'
import { padOp } from './pad.js'
import { pasteMasksOp } from './pasteMasks.js'
import { permuteOp } from './permute.js'
import { avgPool2dOp, maxPool2dOp } from './pool2d.js'
import { maxOp, sumOp, varianceOp } from './reduce.js'
import { resizeBilinearOp } from './resizeBilinear.js'
import { denseMatchOp, l2NormalizeOp } from './similarity.js'
import { roiAlignOp } from './roiAlign.js'
import { sliceOp } from './slice.js'
import { argmaxOp, softmaxOp } from './softmax.js'
import { topKOp } from './topK.js'
import { unaryOps } from './unary.js'

interface AnyOp {
  readonly name: string
  readonly backward: 'notDifferentiable' | ((...context: never[]) => unknown)
}

// So that the keys are the only list of the names.
const table = <Name extends string>(ops: Readonly<Record<Name, AnyOp>>): Readonly<Record<Name, AnyOp>> => ops

/**
 * Every op that a tape can record. Tests and benches are tables over the same keys, so an op without a test or a bench does
 * not compile, and an op without a gradient has said `notDifferentiable`.
 */
export const catalogue = table({
  ...unaryOps,
  add: addOp,
  argmax: argmaxOp,
  avgPool2d: avgPool2dOp,
  batchNorm: batchNormOp,
  binaryCrossEntropy: binaryCrossEntropyOp,
  boxIou: boxIouOp,
  broadcastTo: broadcastToOp,
  compare: compareOp,
  concat: concatOp,
  conv2d: conv2dOp,
  crossEntropy: crossEntropyOp,
  decodeBoxes: decodeBoxesOp,
  denseMatch: denseMatchOp,
  div: divOp,
  dropout: dropoutOp,
  encodeBoxes: encodeBoxesOp,
  gather: gatherOp,
  groupedConv2d: groupedConv2dOp,
  infoNce: infoNceOp,
  l2Normalize: l2NormalizeOp,
  layerNorm: layerNormOp,
  linear: linearOp,
  matmul: matmulOp,
  max: maxOp,
  maximum: maximumOp,
  maxPool2d: maxPool2dOp,
  minimum: minimumOp,
  mul: mulOp,
  nms: nmsOp,
  pow: powOp,
  pad: padOp,
  pasteMasks: pasteMasksOp,
  permute: permuteOp,
  relu: reluOp,
  reshape: reshapeOp,
  resizeBilinear: resizeBilinearOp,
  roiAlign: roiAlignOp,
  scale: scaleOp,
  scatterAdd: scatterAddOp,
  slice: sliceOp,
  smoothL1: smoothL1Op,
  softmax: softmaxOp,
  sub: subOp,
  sum: sumOp,
  topK: topKOp,
  variance: varianceOp,
  where: whereOp,
})

export type OpName = keyof typeof catalogue
