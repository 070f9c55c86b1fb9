/**
 * `densecl`: pre-training, its method, evaluations, weights and pictures. Tensors, gradients, ops, layers and optimisers are in
 * `densecl/engine`, sources of images and the loader in `densecl/data`.
 * @module
 */
export { DenseclError } from './tensor/errors.js'
export { packageVersion } from './tensor/native.js'
export { convolution } from './ops/conv2d.js'

export { type Config, type ConfigKey, resolveConfig, type Setting } from './run/config.js'
export { preset, presets } from './run/presets.js'
export { type Placement, pretrain, type PretrainOptions, type PretrainResult, resolvePlacement } from './train/pretrain.js'

export { DenseNeck, type Embeddings, Encoder, type EncoderOptions, type NeckOptions } from './methods/densecl/encoder.js'
export { chanceLoss, type Health, type LossStatistics } from './methods/densecl/health.js'
export { DenseCL, type DenseCLOptions, type KeyOrder, Queue } from './methods/densecl/model.js'
export { denseclStep, type Observed, type StepConstants, type StepOptions, StepResult, type Views } from './methods/densecl/step.js'

export { averagePrecision, type PrecisionForm } from './eval/averagePrecision.js'
export { type ExtractOptions, type FeatureName, featureRows, poolFeature } from './eval/features.js'
export { type ResumableOptions } from './eval/resumable.js'
export { extractFeatures, type Features, knnAccuracy, type KnnOptions, knnPredict } from './eval/knn.js'
export {
  evaluateLinear,
  type HeadResult,
  type LinearOptions,
  type LinearProtocol,
  type LinearResult,
  linearProtocols,
} from './eval/linear.js'
export { type FeatureSet, type InnerProducts } from './eval/innerProducts.js'
export { ConfusionMatrix, type SegmentationScores } from './eval/meanIou.js'
export { evaluateSegmentation, type SegmentationOptions, type SegmentationResult, type Segmented } from './eval/segmentation.js'
export { type SegmentationProtocol, segmentationProtocols } from './eval/segmentationProtocols.js'
export {
  evaluateLowShot,
  evaluateSvm,
  extractVoc,
  type LowShotReport,
  type LowShotRow,
  type PresenceRows,
  type SvmClassResult,
  type SvmReport,
  type VocFeatures,
  vocFeatures,
} from './eval/voc07.js'

export { type BackboneRecord, type ExportTarget, storedBackbone, writeBackbone } from './weights/export.js'
export { importBackbone, type ImportOptions, type ImportReport, readWeights } from './weights/import.js'
export { type StoredDType, type StoredTensor } from './weights/safetensors.js'

export { drawHeat, drawMatches, type Match, matchesOf, mutualMatches, positionAt } from './report/match.js'
export { type Picture, seeImage, type Seen, seeViews } from './report/pairs.js'
export { drawPrincipal } from './report/principal.js'
