/** All that a user may import from `densecl`. */
export { DenseclError } from './tensor/errors.js'
export { currentDevice, type DType, leakedTensors, scope, type Shape, Tensor, type TypedArray, withDevice } from './tensor/tensor.js'
export { Graph, onEveryRun } from './tensor/graph.js'
export { type MemoryStats, native, packageVersion } from './tensor/native.js'
export { noGrad, Tape } from './autograd/tape.js'
export { type BackwardContext, defineOp, type Epilogue, type Inputs, type NormEpilogue, type Op } from './autograd/op.js'

export { batchNorm, type BatchNormOptions } from './ops/batchNorm.js'
export { conv2d, conv2dForNorm, type Conv2dOptions, convolution, type ConvolutionForNorm, type PerAxis } from './ops/conv2d.js'
export { fusion, type FusionLevel } from './ops/fusion.js'
export { add, concat, dropout, relu, reshape, scale } from './ops/elementwise.js'
export { linear } from './ops/linear.js'
export { crossEntropy, infoNce, type InfoNceResult } from './ops/losses.js'
export { permute } from './ops/permute.js'
export { adaptiveAvgPool2d, avgPool2d, maxPool2d, type Pool2dOptions } from './ops/pool2d.js'
export { resizeBilinear } from './ops/resizeBilinear.js'
export { denseMatch, gatherRows, l2Normalize, permuteBatch } from './ops/similarity.js'

export { evaluation, type Initialization, type NormMode } from './nn/layers.js'
export { allTensors, disposeState, type State } from './nn/module.js'
export { Random } from './tensor/random.js'
export { dilated8, Fcn, type FcnOptions } from './nn/fcn.js'
export { ResNet, type ResNetDepth, type ResNetOptions } from './nn/resnet.js'
export { DenseNeck, type Embeddings, Encoder, type NeckOptions } from './methods/densecl/encoder.js'
export { chanceLoss, type Health } from './methods/densecl/health.js'
export { DenseCL, type DenseCLOptions, Queue } from './methods/densecl/model.js'
export { denseclStep, type StepOptions, type StepResult, type Views } from './methods/densecl/step.js'
export { checkFinite, type EmaTarget, Sgd, type SgdOptions } from './optim/sgd.js'
export { learningRate, type Schedule } from './optim/schedule.js'

export {
  type AugmentOptions,
  mocoV2Augmentation,
  type PlacedView,
  randomView,
  renderView,
  renderViews,
  type ViewParameters,
} from './data/augment.js'
export { decode, type Pixels } from './data/decode.js'
export { Loader, type LoaderOptions } from './data/loader.js'
export { scene, sceneClasses } from './data/scenes.js'
export { type Item, openSource, type Source } from './data/sources.js'
export { openSegmentation, type SegmentationSource } from './data/segmentationSources.js'
export { openVocClassification } from './data/voc.js'
export { averagePrecision, type PrecisionForm } from './eval/averagePrecision.js'
export { featureRows, poolFeature } from './eval/features.js'
export { extractFeatures, knnPredict } from './eval/knn.js'
export { evaluateLinear, type LinearProtocol, linearProtocols } from './eval/linear.js'
export { ConfusionMatrix, type SegmentationScores } from './eval/meanIou.js'
export { evaluateSegmentation } from './eval/segmentation.js'
export { type SegmentationProtocol, segmentationProtocols } from './eval/segmentationProtocols.js'
export { evaluateLowShot, evaluateSvm, extractVoc, vocFeatures } from './eval/voc07.js'
export { presets } from './run/presets.js'
export { type Config, resolveConfig } from './run/config.js'
export { Trainer, type TrainerOptions } from './train/trainer.js'
export { type Placement, pretrain, type PretrainOptions, type PretrainResult, resolvePlacement } from './train/pretrain.js'
export { type ExportTarget, writeBackbone } from './weights/export.js'
export { importBackbone, type ImportReport, readWeights, storedBackbone } from './weights/import.js'
export { drawHeat, drawMatches, matchesOf, mutualMatches, positionAt } from './report/match.js'
export { seeImage, seeViews, type Seen } from './report/pairs.js'
export { drawPrincipal } from './report/principal.js'
