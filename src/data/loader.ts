/**
 * Batches from worker threads through a ring of shared memory: bounded, in order, the same for any number of workers. Tasks
 * are sent ahead, since this thread does not answer while it computes a step.
 */
import { DenseclError, fail } from '../tensor/errors.js'
import { runNative } from '../tensor/native.js'
import { called } from '../tensor/settingNames.js'
import { scope, Tensor } from '../tensor/tensor.js'
import { colourImages, mocoV2Augmentation } from './augment.js'
import { GpuImages } from './gpuImages.js'
import type { Batch, BatchRequest, LoaderOptions } from './loaderOptions.js'
import { prefetch, Ring, uploadSlots } from './ring.js'
import { mostWorkers, WorkerPool, workersFor } from './workerPool.js'

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
  readonly #device: string
  readonly #channels: number
  readonly #ring: Ring
  readonly #workers: WorkerPool
  /** Where the device makes the views. */
  readonly #gpu: GpuImages | undefined
  /** The two views of pre-training of the current batch, where the device does not make them. */
  #arrived: Tensor[] = []
  /** What workers write now, of batches that have failed too. */
  readonly #loading = new Set<Promise<unknown>>()
  /** How often batches() was begun. */
  #begun = 0

  constructor(options: LoaderOptions) {
    this.#options = options
    const { items, workers = 0, batchSize, imageSize, device = 'cpu', seed = 0, cacheMegabytes = 0 } = options
    if (!Number.isInteger(workers) || workers < 0 || workers > mostWorkers)
      fail('ARGUMENT', `Loader: expected workers of 0 to ${mostWorkers} but received ${workers}`)
    const { augment = mocoV2Augmentation, lighting = 0, segmentation, images = colourImages } = options
    this.#device = device
    this.#channels = images.channels
    const ring = new Ring(options)
    this.#ring = ring
    if (ring.kind === 'pixels') this.#gpu = new GpuImages(ring, device, options, this)
    const count = workersFor(workers)
    this.#workers = new WorkerPool(count, items, {
      ...(ring.rows === undefined ? {} : { table: { rows: ring.rows, batchSize, uploadSlots } }),
      ...(ring.files === undefined ? {} : { files: ring.files }),
      count: items.length,
      memory: ring.memory,
      imageSize,
      views: ring.kind,
      placeBytes: ring.parts[0]!,
      augment,
      lighting,
      images,
      ...(segmentation === undefined ? {} : { segmentation }),
      seed,
      cacheBytes: (cacheMegabytes * 2 ** 20) / count,
    })
  }

  /**
   * The batches of `requests`, in order. Ends those of a call before. Throws INTERRUPTED instead of the next one when the work is to
   * end, and ARGUMENT instead of one that the options have no room for, or no images.
   */
  async *batches<Request extends BatchRequest>(requests: Iterable<Request>): AsyncGenerator<Batch<Request>> {
    const own = ++this.#begun
    // What was read ahead by a call before, which was left, would be written where this one's batches lie.
    if (this.#loading.size > 0) await this.#workers.waitFor(Promise.all(this.#loading))
    const iterator = requests[Symbol.iterator]()
    const ahead: { request: Request; slot: number; done: Promise<Int32Array> }[] = []
    const gpu = this.#gpu
    let next = 0
    let uploading: number | undefined
    const start = (): void => {
      if (this.#begun !== own) fail('ARGUMENT', 'Loader: expected the batches of one call at a time, but batches() was called again')
      const following = iterator.next()
      if (following.done === true) return
      const request = following.value
      const slot = next++ % prefetch
      const done = this.#load(request, slot)
      done.catch(() => undefined) // an error is reported where it is awaited
      ahead.push({ request, slot, done })
    }
    for (let i = 0; i < prefetch; ++i) start()
    for (let batch = ahead.shift(); batch !== undefined; batch = ahead.shift()) {
      const from = performance.now()
      const labels = await this.#workers.waitFor(batch.done)
      const waited = (performance.now() - from) / 1000
      const { request, slot } = batch
      const { epoch, indices } = request
      const about = { request, epoch, indices, labels, waited, crops: () => this.#ring.crops(request, slot) }
      if (gpu !== undefined) {
        // The slot of the batch before is free when its pixels have left it: only then it is filled again.
        if (uploading !== undefined) {
          const before = performance.now()
          gpu.finish(uploading)
          this.spent.uploading += (performance.now() - before) / 1000
          start()
        }
        uploading = await gpu.start(slot, request, async (places) => {
          this.spent.images -= places.length // which are counted again
          const decoded = await this.#workers.waitFor(this.#load(request, slot, places))
          // What stands in for files that cannot be decoded has other classes.
          for (const image of places) labels[image] = decoded[image]!
        })
        const values = (): never => fail('ARGUMENT', `batch: its values are on ${this.#device}, which makes the views of them`)
        try {
          yield { ...about, views: () => gpu.render(), values }
        } finally {
          gpu.release(uploading)
        }
      } else {
        const { kind, parts } = this.#ring
        const views = kind === 'augmented' ? this.#arrive(slot, request) : () => parts.map((_, part) => this.#copy(slot, part, request))
        yield { ...about, views, values: () => this.#ring.values(slot, request) }
        start()
      }
    }
    if (uploading !== undefined) gpu?.finish(uploading)
  }

  /** Ends the workers and frees what is on the device. */
  async close(): Promise<void> {
    await this.#workers.close()
    for (const view of this.#arrived.splice(0)) view.dispose()
    this.#gpu?.close()
  }

  /** Writes the views of a batch where those of the one before lay, for a recorded step reads them there; gives tensors on them. */
  #arrive(slot: number, request: BatchRequest): () => Tensor[] {
    const { dtype = 'f32' } = this.#options
    const shape = [request.indices.length, ...this.#ring.size(request), this.#channels]
    if (this.#arrived[0]?.shape[0] !== shape[0]) {
      for (const view of this.#arrived) view.dispose()
      this.#arrived = this.#ring.parts.map(() => Tensor.empty(shape, dtype, this.#device).keep())
    }
    for (const [part, view] of this.#arrived.entries()) {
      const values = this.#ring.values(slot, request, part)
      if (dtype === 'f32') view.write(values)
      else scope(() => runNative('convert', { y: view, x: Tensor.from(values, shape, 'f32', this.#device) }))
    }
    return () => this.#arrived.map((view) => view.alias())
  }

  #copy(slot: number, part: number, request: BatchRequest): Tensor {
    const shape = [request.indices.length, ...this.#ring.size(request)]
    if (this.#ring.kind === 'segmentation' && part === 1)
      return Tensor.from(this.#ring.pixelLabels(slot, request), shape, 'i32', this.#device)
    const { dtype = 'f32' } = this.#options
    return scope(() => Tensor.from(this.#ring.values(slot, request, part), [...shape, this.#channels], 'f32', this.#device).to(dtype))
  }

  /**
   * Splits a batch, or the images of it at `places`, among the workers, another of which begins with each, so that small batches are read
   * beside each other. The classes of what was read.
   */
  async #load(request: BatchRequest, slot: number, places = [...request.indices.keys()]): Promise<Int32Array> {
    const { epoch, indices, boxes } = request
    const { items } = this.#options
    this.#expectRoom(request)
    const gpu = this.#ring.files === undefined ? undefined : this.#gpu
    const labelOf = (index: number): number => items[index]?.label ?? -1
    const labels = indices.map(labelOf)
    const parts = Array.from({ length: this.#workers.count }, async (_, worker) => {
      const mine = places.filter((i) => (i + indices[0]!) % this.#workers.count === worker)
      if (mine.length === 0) return
      const result = await this.#workers.run(worker, {
        epoch,
        indices: mine.map((i) => indices[i]!),
        // Only these: a copy of all in each worker is gigabytes where there are millions.
        items: mine.map((i) => items[indices[i]!]!),
        places: mine.map((i) => this.#ring.parts.map((_, part) => this.#ring.place(slot, part, i, request))),
        slot,
        order: mine,
        ...(boxes === undefined ? {} : { boxes: { ...boxes, views: mine.map((i) => boxes.views[i]!) } }),
        ...(gpu === undefined ? {} : { forGpu: mine.map((i) => gpu.takes(indices[i]!)) }),
      })
      for (const { name, reason } of result.broken) this.broken.set(name, reason)
      for (const { place, index } of result.standIns) labels[mine[place]!] = labelOf(index)
      this.spent.images += mine.length
      this.spent.decoding += result.decoding
      this.spent.rendering += result.rendering
      const { error: failed } = result
      const error = failed === undefined ? this.#tooManyBroken() : new DenseclError(failed.code, failed.message)
      if (error !== undefined) throw error
    })
    // The error of one worker ends the batch at once, while others still write theirs.
    const written = Promise.allSettled(parts)
    this.#loading.add(written)
    void written.then(() => this.#loading.delete(written))
    await Promise.all(parts)
    return labels
  }

  /** Throws ARGUMENT for a batch whose images are not there, or would lie where those of others do. */
  #expectRoom(request: BatchRequest): void {
    const { items, batchSize } = this.#options
    const { indices, boxes } = request
    const wrong = indices.find((index) => index < 0 || index >= items.length)
    if (wrong !== undefined) fail('ARGUMENT', `Loader: expected indices of ${items.length} items but received ${wrong}`)
    if (boxes === undefined) {
      if (indices.length > batchSize)
        fail('ARGUMENT', `Loader: expected batches of at most batchSize ${batchSize} images but received one of ${indices.length}`)
      return
    }
    const bytes = this.#ring.place(0, 0, indices.length, request)
    if (bytes > this.#ring.slotBytes)
      fail(
        'ARGUMENT',
        `Loader: expected batches of at most ${this.#ring.slotBytes} bytes, of batchSize ${batchSize} images of the imageSize, ` +
          `but received one of ${bytes}, ${indices.length} images of ${boxes.height}x${boxes.width} pixels`,
      )
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
}
