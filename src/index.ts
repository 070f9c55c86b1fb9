/**
 * `densecl`: pre-training, its method, evaluations, weights and pictures. Tensors, gradients, ops, layers and optimisers are in
 * `densecl/engine`, sources of images and the loader in `densecl/data`.
 * @module densecl
 * @group Reference
 */
export { DenseclError } from './tensor/errors.js'
export { packageVersion } from './tensor/addon.js'

export type { Config } from './run/config.js'
export type { LogRecord, LogTo } from './run/logTo.js'
export { free, type OptionTable, type OptionValues, type Setting, settingsOf } from './run/options.js'
export { type Placement, resolvePlacement } from './run/placement.js'
export { pretrain, type PretrainOptions } from './train/pretrain.js'
export type { PretrainResult } from './train/run.js'

export { Group, type Pending, type Reduction } from './distributed/group.js'
export { type Exchange, type Message } from './distributed/keyOrder.js'
export { endTogether, leaveTogether, openGroup } from './distributed/open.js'

export { configure, findMethod, presetSettings, resolveConfig } from './methods/index.js'
export {
  type BuiltMethod,
  type Chart,
  type Caution,
  type CollapseCheck,
  type ConfigOf,
  defineMethod,
  differentiate,
  type Method,
  type MethodParts,
  type Observed,
  type Preset,
  type Readings,
  StepResult,
  type Views,
} from './methods/method.js'
export { embeddingSpread } from './methods/spread.js'

export {
  DenseNeck,
  type Embeddings,
  Encoder,
  type EncoderOptions,
  type Heads,
  type LocalEmbeddings,
  type NeckOptions,
} from './methods/densecl/encoder.js'
export { chanceLoss } from './methods/densecl/health.js'
export { densecl } from './methods/densecl/method.js'
export { DenseCL, type DenseCLOptions, type KeyOrder, type Partners, type Prepared, Queue } from './methods/densecl/model.js'
export type { DenseCLConfig } from './methods/densecl/options.js'
export { presets } from './methods/densecl/presets.js'
export { type DenseCLObserved, denseclStep, type StepConstants, type StepOptions } from './methods/densecl/step.js'

export { averagePrecision, type PrecisionForm } from './eval/averagePrecision.js'
export { type ExtractOptions, type FeatureName, featureRows, poolFeature } from './eval/features.js'
export { denseFeatures, type DenseFeatureOptions, embedImages, type Embedding } from './eval/embed.js'
export { type Box } from './data/boxes.js'
export { type Hit, searchImages, type SearchOptions, type SearchResult } from './eval/search.js'
export { type ResumableOptions } from './eval/resumable.js'
export { extractFeatures, type Features, knnAccuracy, type KnnOptions, knnPredict } from './eval/knn.js'
export { evaluateLinear, type HeadResult, type LinearOptions, type LinearResult } from './eval/linear.js'
export { type LinearProtocol, linearProtocols } from './eval/linearProtocols.js'
export { classifyImages, type ClassifyOptions, type Guess, type Prediction } from './eval/classify.js'
export { type ClassifierRecord, importClassifier, saveClassifier, writeClassifier } from './eval/classifierFile.js'
export { type Accuracy, type ClassificationResult } from './eval/classificationScores.js'
export { finetune } from './eval/finetune.js'
export { type FinetuneOptions, type FinetuneResult, type TriedSetting } from './eval/finetuneOptions.js'
export { type FinetuneProtocol, finetuneProtocols, type FinetuneSetting } from './eval/finetuneProtocols.js'
export { type ChoiceOfSetting, choicesOfSetting } from './eval/finetuneStages.js'
export { Classifier } from './nn/classifier.js'
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
export { onnxOutputs, type OnnxNetwork, type OnnxOptions, writeOnnx } from './onnx/export.js'
export { importBackbone, type ImportOptions, type ImportReport, readWeights } from './weights/import.js'
export { type StoredDType, type StoredTensor } from './weights/safetensors.js'

export { drawHeat, drawMatches, type Match, matchesOf, mutualMatches, positionAt } from './report/match.js'
export { type Picture, seeImage, type Seen, seeViews } from './report/pairs.js'
export { drawPrincipal } from './report/principal.js'
