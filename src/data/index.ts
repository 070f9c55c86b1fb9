/**
 * `densecl/data`: sources of images, decoding, samplers, augmentation and the loader.
 * @module densecl/data
 * @group Reference
 */
export {
  type Adjustment,
  type AugmentOptions,
  type Crop,
  type ImageFormat,
  imageTensor,
  mocoV2Augmentation,
  pixelTensor,
  type PlacedView,
  randomView,
  renderChannels,
  renderView,
  renderViews,
  type ViewCrops,
  type ViewParameters,
  wholeImage,
} from './augment.js'
export { type BoxBatch, type BoxView } from './boxView.js'
export { channelsOf, decode, decodeChannels, decodePart, type Part, type Pixels } from './decode.js'
export { Loader } from './loader.js'
export type { Batch, BatchRequest, LoaderOptions } from './loaderOptions.js'
export { type Resampling } from './resizeBytes.js'
export { batchIndices, epochBatches, epochOrder, orderedBatches, stepsPerEpoch } from './sampler.js'
export { scene, type Scene, sceneClasses } from './scenes.js'
export { type CacheLimits } from './blockCache.js'
export { type RemoteFile } from './fetching.js'
export { type RemoteShard } from './remoteShard.js'
export { openSegmentation, type SegmentationSource, type SegmentedItem } from './segmentationSources.js'
export { type Item, loadPixels, type ShardCache, type Skipped, type Source, type Split } from './source.js'
export { openSource, type SourceFormat } from './sources.js'
export { type SegmentationAugment } from './segmentationView.js'
export { type Mask } from './masks.js'
export { type Pipeline } from './pipelines.js'
export { type SegmentationOptions, type ViewKind } from './worker.js'
export { type LabelledSplit, openVocClassification, type Presence } from './voc.js'
