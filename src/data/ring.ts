/** The ring of shared memory that batches pass through: what workers write of each image, and where it lies. */
import { fail } from '../tensor/errors.js'
import { hostMemory } from '../tensor/numbers.js'
import { deviceTraits } from '../tensor/traits.js'
import {
  type AugmentOptions,
  colourImages,
  cropColumns,
  cropRow,
  type ImageFormat,
  mocoV2Augmentation,
  tableColumns,
  type ViewCrops,
} from './augment.js'
import type { BatchRequest, LoaderOptions } from './loaderOptions.js'
import type { ViewKind } from './worker.js'

/** Batches that are read ahead, each in a slot of the ring. */
export const prefetch = 4
/** Batches whose pixels are on the device at a time: one that is computed with, one on its way. */
export const uploadSlots = 2

type CropScales = Pick<AugmentOptions, 'cropScale' | 'keyCropScale'>
type SlotOptions = Pick<LoaderOptions, 'imageSize' | 'batchSize' | 'views' | 'device' | 'augment' | 'mostPixels' | 'images' | 'decode'>

/** The pixels of an image whose smallest crop has those of a view. */
export const pixelsOfCrops = (imageSize: number, { cropScale, keyCropScale }: CropScales): number =>
  4 * Math.ceil((imageSize * imageSize) / Math.min(cropScale[0], keyCropScale?.[0] ?? 1) / 4)

/** What is written of each image of a kind of views: for each part its bytes. */
function partsOf(kind: ViewKind, { imageSize, augment = mocoV2Augmentation, mostPixels, images = colourImages }: SlotOptions): number[] {
  const view = imageSize * imageSize * 4 * images.channels
  if (kind === 'pixels') return [3 * (mostPixels == null ? pixelsOfCrops(imageSize, augment) : 4 * Math.ceil(mostPixels / 4))]
  if (kind === 'augmented') return [view, view]
  return kind === 'segmentation' ? [view, imageSize * imageSize] : [view]
}

const kindOf = (views: LoaderOptions['views'], device: string, { channels }: ImageFormat): ViewKind =>
  views === 'augmented' && channels === 3 && deviceTraits(device).rendersViews ? 'pixels' : views

/** Floats begin at multiples of four bytes. */
const slotBytesOf = (parts: readonly number[], batchSize: number): number =>
  4 * Math.ceil((parts.reduce((sum, bytes) => sum + bytes, 0) * batchSize) / 4)

/** The bytes that a Loader of these options takes for batches, shared by all its workers, in the host's memory and on a GPU. */
export function loaderBytes(options: SlotOptions): { host: number; device: number } {
  const { batchSize, views, device = 'cpu', images = colourImages, decode } = options
  const kind = kindOf(views, device, images)
  const slot = slotBytesOf(partsOf(kind, options), batchSize)
  // The planes that nvJPEG makes pixels of are its own, no larger than these.
  const slots = kind !== 'pixels' ? 0 : decode === 'gpu' ? uploadSlots + 1 : uploadSlots
  return { host: prefetch * slot, device: slots * slot }
}

/** The memory of a Loader. */
export class Ring {
  readonly kind: ViewKind
  /** What is written of each image: for each part its bytes. A slot holds the first part of all images, then the next. */
  readonly parts: readonly number[]
  readonly slotBytes: number
  readonly memory: SharedArrayBuffer
  /** How the views of pre-training are made: f64 [prefetch, 2, batchSize, tableColumns]. */
  readonly rows: SharedArrayBuffer | undefined
  /** Where a GPU decodes, of each image the bytes of its file, or 0: i32 [prefetch, batchSize]. */
  readonly files: SharedArrayBuffer | undefined
  readonly #options: SlotOptions

  constructor(options: SlotOptions) {
    this.#options = options
    const { imageSize, batchSize, views, device = 'cpu', images = colourImages, decode } = options
    this.kind = kindOf(views, device, images)
    if (decode === 'gpu') {
      if (this.kind !== 'pixels')
        fail('ARGUMENT', `Loader: expected a GPU that makes the views of colour images, for its decoder, but received ${device}`)
      this.files = new SharedArrayBuffer(prefetch * batchSize * 4)
    }
    this.parts = partsOf(this.kind, options)
    this.slotBytes = slotBytesOf(this.parts, batchSize)
    const bytes = prefetch * this.slotBytes
    const what = `the ring of ${prefetch} batches of ${batchSize} images of ${imageSize} pixels a side`
    this.memory = hostMemory(what, bytes, () => new SharedArrayBuffer(bytes))
    if (views === 'augmented') this.rows = new SharedArrayBuffer(prefetch * 2 * batchSize * tableColumns * 8)
  }

  /** Height and width of a view. */
  size({ boxes }: BatchRequest): [number, number] {
    const { imageSize } = this.#options
    return boxes === undefined ? [imageSize, imageSize] : [boxes.height, boxes.width]
  }

  /** The byte where a part of an image lies. */
  place(slot: number, part: number, image: number, request: BatchRequest): number {
    if (request.boxes !== undefined) {
      const [height, width] = this.size(request)
      return slot * this.slotBytes + image * height * width * 12
    }
    const before = this.parts.slice(0, part).reduce((sum, bytes) => sum + bytes, 0) * this.#options.batchSize
    return slot * this.slotBytes + before + image * this.parts[part]!
  }

  /** The memory of a slot. */
  slot(slot: number): Uint8Array {
    return new Uint8Array(this.memory, slot * this.slotBytes, this.slotBytes)
  }

  /** The values of a part that has floats. */
  values(slot: number, request: BatchRequest, part = 0): Float32Array {
    const [height, width] = this.size(request)
    const { channels } = this.#options.images ?? colourImages
    return new Float32Array(this.memory, this.place(slot, part, 0, request), request.indices.length * height * width * channels)
  }

  /** The classes of the pixels of a batch for segmentation. */
  pixelLabels(slot: number, request: BatchRequest): Uint8Array {
    return new Uint8Array(this.memory, this.place(slot, 1, 0, request), request.indices.length * this.parts[1]!)
  }

  /** The rows of a batch's views, of both one after the other. */
  rowsOf(slot: number): Float64Array {
    const size = 2 * this.#options.batchSize * tableColumns
    return new Float64Array(this.rows!, slot * size * 8, size)
  }

  /** The bytes of a batch's files. */
  filesOf(slot: number): Int32Array {
    const { batchSize } = this.#options
    return new Int32Array(this.files!, slot * batchSize * 4, batchSize)
  }

  /** Where the views of a batch lie in its images. Throws ARGUMENT where they are not those of pre-training. */
  crops({ indices }: BatchRequest, slot: number): ViewCrops {
    if (this.rows === undefined) return fail('ARGUMENT', 'batch: only the random views of pre-training have crops')
    const { batchSize } = this.#options
    const values = new Float64Array(2 * indices.length * cropColumns)
    const rows = this.rowsOf(slot)
    for (const view of [0, 1])
      for (let i = 0; i < indices.length; ++i) {
        const at = (view * batchSize + i) * tableColumns
        values.set(cropRow(rows.subarray(at, at + tableColumns)), (view * indices.length + i) * cropColumns)
      }
    return { values, images: indices.length }
  }
}
