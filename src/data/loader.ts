/**
 * Batches from worker threads through a ring of shared memory: bounded, in order, the same for any number of workers. Tasks
 * are sent ahead, since this thread does not answer while it computes a step.
 */
import { availableParallelism } from 'node:os'
import { Worker } from 'node:worker_threads'

import { DenseclError, fail } from '../tensor/errors.js'
import { unlessInterrupted } from '../tensor/interruption.js'
import { hostMemory } from '../tensor/numbers.js'
import { native, runNative } from '../tensor/native.js'
import { called } from '../tensor/settingNames.js'
import { type FloatDType, scope, Tensor } from '../tensor/tensor.js'
import { deviceTraits } from '../tensor/traits.js'
import {
  type AugmentOptions,
  colourImages,
  cropColumns,
  cropRow,
  type ImageFormat,
  mocoV2Augmentation,
  renderTable,
  tableColumns,
  type ViewCrops,
} from './augment.js'
import type { BoxBatch } from './boxView.js'
import { openNvjpeg } from './nvjpeg.js'
import type { Item } from './source.js'
import type { ItemAnswer, ItemRequest, SegmentationOptions, Task, TaskResult, ViewKind, WorkerData } from './worker.js'

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

const prefetch = 4

/** The workers that a number of them stands for: 0 chooses, one less than the cores, 1 to 16. */
export const workersFor = (wanted: number): number => (wanted === 0 ? Math.min(16, Math.max(1, availableParallelism() - 1)) : wanted)

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

/** Each is a thread with a heap of its own, of 10 MB and more. */
export const mostWorkers = 256

/** Batches whose pixels are on the device at a time: one that is computed with, one on its way. */
const uploadSlots = 2

/**
 * Ends a worker after the image that it is at: one that is terminated inside of a native call takes the process with it, where the
 * addon that was called (a decoder's) throws into an environment that is gone.
 */
function ended(worker: Worker): Promise<void> {
  return new Promise((resolve) => {
    const patience = setTimeout(() => void worker.terminate(), 10_000)
    worker.once('exit', () => {
      clearTimeout(patience)
      resolve()
    })
    worker.ref()
    if (worker.threadId === -1) {
      clearTimeout(patience)
      resolve()
    } else worker.postMessage(null)
  })
}

/** The data workers of a run: gives batches in the order of the requests. close() ends the workers. */
export class Loader {
  /** Images that could not be read, by name, with the reason. */
  readonly broken = new Map<string, string>()
  /** Images that nvJPEG refused and workers decoded, or found broken: by name, with what it said. */
  readonly refused = new Map<string, string>()
  /**
   * Images so far, those of them that a GPU decoded, the seconds that all workers together took to decode the others and to render or
   * place them, and those that this thread waited for uploads: what of them did not pass beside compute.
   */
  readonly spent = { images: 0, onGpu: 0, decoding: 0, rendering: 0, uploading: 0 }
  readonly #options: LoaderOptions
  readonly #memory: SharedArrayBuffer
  readonly #workers: Worker[]
  readonly #stop = new SharedArrayBuffer(4)
  readonly #pending = new Map<number, (result: TaskResult) => void>()
  readonly #kind: ViewKind
  readonly #device: string
  readonly #channels: number
  /** What is written of each image: for each part its bytes. A slot of the memory holds the first part of all images, then the next. */
  readonly #parts: number[]
  readonly #slotBytes: number
  /** What the mode `pixels` has: images of uploadSlots batches on the device, and the table of the views to make of the current one. */
  readonly #pixels: Tensor | undefined
  readonly #table: Tensor | undefined
  /** The two views of pre-training of the current batch, where the device does not make them. */
  #arrived: Tensor[] = []
  /** How the views of pre-training are made: f64 [prefetch, 2, batchSize, tableColumns]. */
  readonly #rows: SharedArrayBuffer | undefined
  /** Where a GPU decodes, of each image the bytes of its file, or 0: i32 [prefetch, batchSize]. */
  readonly #files: SharedArrayBuffer | undefined
  /** Images, by their indices in the source, whose files are not left to the GPU. */
  readonly #forWorkers = new Set<number>()
  #nextTask = 0
  #failure: Error | undefined

  constructor(options: LoaderOptions) {
    this.#options = options
    const { workers = 0 } = options
    if (!Number.isInteger(workers) || workers < 0 || workers > mostWorkers)
      fail('ARGUMENT', `Loader: expected workers of 0 to ${mostWorkers} but received ${workers}`)
    const { imageSize, batchSize, device = 'cpu' } = options
    this.#device = device
    const { augment = mocoV2Augmentation, lighting = 0, segmentation, images = colourImages } = options
    this.#channels = images.channels
    this.#kind = kindOf(options.views, device, images)
    if (options.decode === 'gpu') {
      if (this.#kind !== 'pixels')
        fail('ARGUMENT', `Loader: expected a GPU that makes the views of colour images, for its decoder, but received ${device}`)
      openNvjpeg(device)
      this.#files = new SharedArrayBuffer(prefetch * batchSize * 4)
    }
    this.#parts = partsOf(this.#kind, options)
    this.#slotBytes = slotBytesOf(this.#parts, batchSize)
    const bytes = prefetch * this.#slotBytes
    const what = `the ring of ${prefetch} batches of ${batchSize} images of ${imageSize} pixels a side`
    this.#memory = hostMemory(what, bytes, () => new SharedArrayBuffer(bytes))
    if (this.#kind === 'pixels') {
      native.pin(new Uint8Array(this.#memory), device)
      this.#pixels = Tensor.empty([uploadSlots * this.#slotBytes], 'u8', device).keep()
      this.#table = Tensor.empty([2 * batchSize, tableColumns], 'f64', device).keep()
    }
    if (options.views === 'augmented') this.#rows = new SharedArrayBuffer(prefetch * 2 * batchSize * tableColumns * 8)
    const count = workersFor(workers)
    const { items, seed = 0, cacheMegabytes = 0 } = options
    const table = this.#rows === undefined ? {} : { table: { rows: this.#rows, batchSize, uploadSlots } }
    const data: WorkerData = {
      ...table,
      ...(this.#files === undefined ? {} : { files: this.#files }),
      count: items.length,
      memory: this.#memory,
      imageSize,
      views: this.#kind,
      placeBytes: this.#parts[0]!,
      augment,
      lighting,
      images,
      ...(segmentation === undefined ? {} : { segmentation }),
      seed,
      cacheBytes: (cacheMegabytes * 2 ** 20) / count,
      stop: this.#stop,
    }
    this.#workers = Array.from({ length: count }, () => {
      const worker = new Worker(new URL('./worker.js', import.meta.url), { workerData: data })
      worker.on('message', (result: TaskResult | ItemRequest) => {
        if ('wanted' in result) {
          worker.postMessage({ item: items[result.wanted]! } satisfies ItemAnswer)
          return
        }
        const done = this.#pending.get(result.id)
        this.#pending.delete(result.id)
        done?.(result)
      })
      worker.on('error', (error) => this.#fail(error))
      worker.unref()
      return worker
    })
  }

  /** The batches of `requests`, in order. Throws INTERRUPTED instead of the next one when the work is to end. */
  async *batches<Request extends BatchRequest>(requests: Iterable<Request>): AsyncGenerator<Batch<Request>> {
    const iterator = requests[Symbol.iterator]()
    const ahead: { request: Request; slot: number; done: Promise<Int32Array> }[] = []
    let next = 0
    let uploading: number | undefined
    const start = (): void => {
      const following = iterator.next()
      if (following.done === true) return
      const request = following.value
      const slot = next++ % prefetch
      const loaded = this.#load(request, slot)
      loaded.catch(() => undefined) // reported where it is awaited
      ahead.push({ request, slot, done: loaded })
    }
    for (let i = 0; i < prefetch; ++i) start()
    for (let batch = ahead.shift(); batch !== undefined; batch = ahead.shift()) {
      const from = performance.now()
      const labels = await this.#waitFor(batch.done)
      const waited = (performance.now() - from) / 1000
      const { request, slot } = batch
      const about = { ...this.#about(request), labels, waited, crops: () => this.#crops(request, slot) }
      if (this.#kind === 'pixels') {
        // The slot of the batch before is free when its pixels have left it: only then it is filled again.
        if (uploading !== undefined) {
          const before = performance.now()
          native.finishUpload(this.#pixels!.handle, uploading)
          this.spent.uploading += (performance.now() - before) / 1000
          start()
        }
        uploading = await this.#startUpload(slot, request, labels)
        const values = (): never => fail('ARGUMENT', `batch: its values are on ${this.#device}, which makes the views of them`)
        yield { ...about, views: () => this.#render(), values }
        native.release(this.#pixels!.handle, uploading)
      } else {
        const views =
          this.#kind === 'augmented' ? this.#arrive(slot, request) : () => this.#parts.map((_, part) => this.#copy(slot, part, request))
        yield { ...about, views, values: () => this.#values(slot, request) }
        start()
      }
    }
    if (uploading !== undefined) native.finishUpload(this.#pixels!.handle, uploading)
  }

  /** What the workers give: keeps the process alive meanwhile. Throws INTERRUPTED instead when the work is to end. */
  async #waitFor<Result>(done: Promise<Result>): Promise<Result> {
    for (const worker of this.#workers) worker.ref()
    const result = await unlessInterrupted(done)
    // Data that is ready resolves without a turn of the event loop: give signals and output theirs.
    await new Promise((resolve) => setImmediate(resolve))
    for (const worker of this.#workers) worker.unref()
    return result
  }

  #about<Request extends BatchRequest>(request: Request): Pick<Batch<Request>, 'request' | 'epoch' | 'indices'> {
    const { epoch, indices } = request
    return { request, epoch, indices }
  }

  /** Ends the workers and frees what is on the device. */
  async close(): Promise<void> {
    Atomics.store(new Int32Array(this.#stop), 0, 1)
    await Promise.all(this.#workers.map(ended))
    for (const view of this.#arrived.splice(0)) view.dispose()
    if (this.#kind !== 'pixels') return
    native.synchronize(this.#device)
    for (let slot = 0; slot < uploadSlots; ++slot) native.finishUpload(this.#pixels!.handle, slot * this.#slotBytes)
    this.#pixels!.dispose()
    this.#table!.dispose()
    native.unpin(new Uint8Array(this.#memory), this.#device)
  }

  /** Height and width of a view. */
  #size({ boxes }: BatchRequest): [number, number] {
    const { imageSize } = this.#options
    return boxes === undefined ? [imageSize, imageSize] : [boxes.height, boxes.width]
  }

  /** The byte where a part of an image lies. */
  #place(slot: number, part: number, image: number, request: BatchRequest): number {
    if (request.boxes !== undefined) {
      const [height, width] = this.#size(request)
      return slot * this.#slotBytes + image * height * width * 12
    }
    const before = this.#parts.slice(0, part).reduce((sum, bytes) => sum + bytes, 0) * this.#options.batchSize
    return slot * this.#slotBytes + before + image * this.#parts[part]!
  }

  #crops({ indices }: BatchRequest, slot: number): ViewCrops {
    if (this.#rows === undefined) return fail('ARGUMENT', 'batch: only the random views of pre-training have crops')
    const { batchSize } = this.#options
    const values = new Float64Array(2 * indices.length * cropColumns)
    const rows = new Float64Array(this.#rows)
    for (const view of [0, 1])
      for (let i = 0; i < indices.length; ++i) {
        const at = ((slot * 2 + view) * batchSize + i) * tableColumns
        values.set(cropRow(rows.subarray(at, at + tableColumns)), (view * indices.length + i) * cropColumns)
      }
    return { values, images: indices.length }
  }

  /**
   * Sends a batch's pixels, or the files that become them, and its rows of the table on their way; the place of the pixels, in bytes.
   * `labels` change with what stands in for files that cannot be decoded.
   */
  async #startUpload(slot: number, request: BatchRequest, labels: Int32Array): Promise<number> {
    const { batchSize } = this.#options
    const images = request.indices.length
    if (images !== batchSize)
      throw new DenseclError('DATA', `data: expected batches of ${batchSize} images on ${this.#device} but received one of ${images}`)
    const offset = (slot % uploadSlots) * this.#slotBytes
    if (this.#files === undefined) native.startUpload(this.#pixels!.handle, this.#slot(slot), offset)
    else {
      const refused = this.#decode(slot, offset, request)
      if (refused.length > 0) {
        this.spent.images -= refused.length // which are counted again
        const decoded = await this.#waitFor(this.#load(request, slot, refused))
        for (const image of refused) labels[image] = decoded[image]!
        this.#startImages(slot, offset, refused)
      }
    }
    native.useUpload(this.#pixels!.handle, offset)
    const { size } = this.#table!
    this.#table!.write(new Float64Array(this.#rows!, slot * size * 8, size))
    return offset
  }

  /** The memory of a slot. */
  #slot(slot: number): Uint8Array {
    return new Uint8Array(this.#memory, slot * this.#slotBytes, this.#slotBytes)
  }

  /** native.startImages for images of a slot, by their places in the batch. */
  #startImages(slot: number, offset: number, images: readonly number[]): string {
    const { batchSize } = this.#options
    const files = new Int32Array(this.#files!, slot * batchSize * 4, batchSize)
    const views = new Float64Array(this.#rows!, slot * 2 * batchSize * tableColumns * 8, batchSize * tableColumns)
    const rows = images.flatMap((image) => {
      const [height, width] = [views[image * tableColumns + 1]!, views[image * tableColumns + 2]!]
      return [image * this.#parts[0]!, files[image]!, height, width]
    })
    return native.startImages!(this.#pixels!.handle, this.#slot(slot), offset, Float64Array.from(rows))
  }

  /** Starts a batch whose files the GPU decodes. Which of them, by their places in it, it has refused and is not to be given again. */
  #decode(slot: number, offset: number, { indices }: BatchRequest): number[] {
    const { batchSize, items } = this.#options
    const files = new Int32Array(this.#files!, slot * batchSize * 4, batchSize)
    const images = [...indices.keys()]
    const encoded = images.filter((image) => files[image]! > 0)
    this.spent.onGpu += encoded.length
    if (this.#startImages(slot, offset, images) === '') return []
    // Each by itself: of a batch it is only said that one is wrong.
    return encoded.filter((image) => {
      native.finishUpload(this.#pixels!.handle, offset)
      const reason = this.#startImages(slot, offset, [image])
      if (reason === '') return false
      this.#forWorkers.add(indices[image]!)
      this.refused.set(items[indices[image]!]!.name, reason)
      this.spent.onGpu -= 1
      return true
    })
  }

  /** Both views of the current batch, made on the device. */
  #render(): Tensor[] {
    const { batchSize, imageSize, dtype = 'f32' } = this.#options
    const shape = [batchSize, imageSize, imageSize, 3]
    const views = [Tensor.empty(shape, dtype, this.#device), Tensor.empty(shape, dtype, this.#device)] as const
    renderTable(views, 0, this.#pixels!, this.#table!)
    return [...views]
  }

  /** Writes the views of a batch where those of the one before lay, for a recorded step reads them there; gives tensors on them. */
  #arrive(slot: number, request: BatchRequest): () => Tensor[] {
    const { dtype = 'f32' } = this.#options
    const shape = [request.indices.length, ...this.#size(request), this.#channels]
    if (this.#arrived[0]?.shape[0] !== shape[0]) {
      for (const view of this.#arrived) view.dispose()
      this.#arrived = this.#parts.map(() => Tensor.empty(shape, dtype, this.#device).keep())
    }
    for (const [part, view] of this.#arrived.entries()) {
      const values = this.#values(slot, request, part)
      if (dtype === 'f32') view.write(values)
      else scope(() => runNative('convert', { y: view, x: Tensor.from(values, shape, 'f32', this.#device) }))
    }
    return () => this.#arrived.map((view) => view.alias())
  }

  #copy(slot: number, part: number, request: BatchRequest): Tensor {
    const shape = [request.indices.length, ...this.#size(request)]
    if (this.#kind === 'segmentation' && part === 1) {
      const labels = new Uint8Array(this.#memory, this.#place(slot, 1, 0, request), shape[0]! * this.#parts[1]!)
      return Tensor.from(labels, shape, 'i32', this.#device)
    }
    const { dtype = 'f32' } = this.#options
    return scope(() => Tensor.from(this.#values(slot, request, part), [...shape, this.#channels], 'f32', this.#device).to(dtype))
  }

  #values(slot: number, request: BatchRequest, part = 0): Float32Array {
    const [height, width] = this.#size(request)
    return new Float32Array(this.#memory, this.#place(slot, part, 0, request), request.indices.length * height * width * this.#channels)
  }

  /**
   * Splits a batch, or the images of it at `places`, among the workers, another of which begins with each, so that small batches are read
   * beside each other. The classes of what was read.
   */
  async #load(request: BatchRequest, slot: number, places = [...request.indices.keys()]): Promise<Int32Array> {
    const { epoch, indices, boxes } = request
    const labelOf = (index: number): number => this.#options.items[index]?.label ?? -1
    const labels = indices.map(labelOf)
    const parts = this.#workers.map((worker, w): Promise<void> => {
      const mine = places.filter((i) => (i + indices[0]!) % this.#workers.length === w)
      if (mine.length === 0) return Promise.resolve()
      const task: Task = {
        id: this.#nextTask++,
        epoch,
        indices: mine.map((i) => indices[i]!),
        // Only these: a copy of all in each worker is gigabytes where there are millions.
        items: mine.map((i) => this.#options.items[indices[i]!]!),
        places: mine.map((i) => this.#parts.map((_, part) => this.#place(slot, part, i, request))),
        slot,
        order: mine,
        ...(boxes === undefined ? {} : { boxes: { ...boxes, views: mine.map((i) => boxes.views[i]!) } }),
        ...(this.#files === undefined ? {} : { forGpu: mine.map((i) => !this.#forWorkers.has(indices[i]!)) }),
      }
      return new Promise((resolve, reject) => {
        if (this.#failure !== undefined) return reject(this.#failure)
        this.#pending.set(task.id, (result) => {
          for (const { name, reason } of result.broken) this.broken.set(name, reason)
          for (const { place, index } of result.standIns) labels[mine[place]!] = labelOf(index)
          this.spent.images += mine.length
          this.spent.decoding += result.decoding
          this.spent.rendering += result.rendering
          const { error: failed } = result
          const error = failed === undefined ? this.#tooManyBroken() : new DenseclError(failed.code, failed.message)
          if (error === undefined) resolve()
          else reject(error)
        })
        worker.postMessage(task)
      })
    })
    await Promise.all(parts)
    return labels
  }

  /** Takes note of images that others could not read, by name, with the reason. Throws DATA where all together are too many. */
  addBroken(images: Iterable<readonly [string, string]>): void {
    for (const [name, reason] of images) this.broken.set(name, reason)
    const error = this.#tooManyBroken()
    if (error !== undefined) throw error
  }

  #tooManyBroken(): DenseclError | undefined {
    const { maxBroken = 0, items } = this.#options
    if (this.broken.size <= maxBroken * items.length) return undefined
    const named = [...this.broken.values()].slice(0, 3).join('; ')
    return new DenseclError(
      'DATA',
      `data: ${this.broken.size} of ${items.length} images cannot be read, more than ${called('maxBroken')} ${maxBroken} allows: ${named}`,
    )
  }

  #fail(error: Error): void {
    const failure = new DenseclError('DATA', `data: a worker stopped: ${error.message}`)
    this.#failure = failure
    for (const [id, done] of this.#pending) done({ id, broken: [], standIns: [], decoding: 0, rendering: 0, error: failure })
    this.#pending.clear()
  }
}
