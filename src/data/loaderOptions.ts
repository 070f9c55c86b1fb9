/** What a Loader takes and what it gives. */
import type { FloatDType, Tensor } from '../tensor/tensor.js'
import type { AugmentOptions, ImageFormat, ViewCrops } from './augment.js'
import type { BoxBatch } from './boxView.js'
import type { Item } from './source.js'
import type { SegmentationOptions, ViewKind } from './worker.js'

/** What a Loader reads, and what it makes of each image. */
export interface LoaderOptions {
  items: Item[]
  /** The side of a view in pixels; of the kind `boxes` that of a square as large as the largest padded image. */
  imageSize: number
  batchSize: number
  /** What is made of each image (pipelines.ts). */
  views: Exclude<ViewKind, 'pixels'>
  /** What the images are; RGB, normalised as ImageNet's, when absent. Views of others are made by the workers, on a GPU too. */
  images?: ImageFormat | undefined
  /** The device that tensors are made on; a GPU renders random views itself, from pixels that are uploaded during its work. */
  device?: string
  /** The dtype of the tensors; f32 when absent. */
  dtype?: FloatDType
  /** What random views are drawn from; MoCo v2's augmentation when absent. */
  augment?: AugmentOptions
  /** A GPU gets images of at most so many pixels, larger ones reduced; as many as the smallest crops need when absent. */
  mostPixels?: number | null
  /** What decodes JPEGs: workers, when absent; a GPU that makes the views can (fileForGpu() says which), with nvJPEG. */
  decode?: 'cpu' | 'gpu'
  /** Standard deviation of the colour noise of the pipeline `crop`; none when absent. */
  lighting?: number
  /** What views of the kind `segmentation` need; the image size is that of its crops. */
  segmentation?: SegmentationOptions
  /** The seed of what is random in the views, 0 by default. */
  seed?: number
  /** 0 chooses: one less than the cores, 1 to 16. */
  workers?: number
  /** Largest share of broken images, none by default. */
  maxBroken?: number
  /** MiB of decoded images kept for later epochs, by all workers together. */
  cacheMegabytes?: number
}

/** The images of a batch, by their indices in the source, and the epoch that names their random streams. */
export interface BatchRequest {
  epoch: number
  indices: Int32Array
  /** What the kind `boxes` makes of them. */
  boxes?: BoxBatch
}

/** A batch as the loader gives it. */
export interface Batch<Request extends BatchRequest = BatchRequest> {
  /**
   * Makes one tensor [N, size, size, 3] per view - for segmentation one, and the labels i32 [N, size, size]; for boxes one of the
   * padded size - which the caller disposes; while the batch is the last that was taken. On a GPU it does the same work at the same
   * addresses for every batch of pre-training, so it may be part of a recorded step.
   */
  views(): Tensor[]
  /** Where the two views of pre-training lie in their images; while the batch is the last that was taken. */
  crops(): ViewCrops
  /** The values of the first view where they lie, in memory that a later batch is written to; not there where a GPU makes the views. */
  values(): Float32Array
  request: Request
  epoch: number
  indices: Int32Array
  /** The classes of its images, of what stands in for a broken one that one's own; -1 for one that has none. */
  labels: Int32Array
  /** Seconds that this thread waited. */
  waited: number
}
