/** Images of batches on a GPU, which makes the views of them and, where it is told to, decodes them. */
import { DenseclError } from '../tensor/errors.js'
import { native } from '../tensor/native.js'
import { Tensor } from '../tensor/tensor.js'
import { renderTable, tableColumns } from './augment.js'
import type { BatchRequest, LoaderOptions } from './loaderOptions.js'
import { openNvjpeg } from './nvjpeg.js'
import { type Ring, uploadSlots } from './ring.js'

/** What a Loader counts of it: images that the GPU decoded, and by name those that it refused, with the reason. */
export interface Counted {
  spent: { onGpu: number }
  refused: Map<string, string>
}

/** Images of uploadSlots batches on the device, and the table of the views to make of the current one. */
export class GpuImages {
  readonly #ring: Ring
  readonly #options: LoaderOptions
  readonly #device: string
  readonly #counted: Counted
  readonly #pixels: Tensor
  readonly #table: Tensor
  /** Images, by their indices in the source, whose files are not left to the GPU. */
  readonly #forWorkers = new Set<number>()

  constructor(ring: Ring, device: string, options: LoaderOptions, counted: Counted) {
    this.#ring = ring
    this.#options = options
    this.#device = device
    this.#counted = counted
    if (ring.files !== undefined) openNvjpeg(device)
    native.pin(new Uint8Array(ring.memory), device)
    this.#pixels = Tensor.empty([uploadSlots * ring.slotBytes], 'u8', device).keep()
    this.#table = Tensor.empty([2 * options.batchSize, tableColumns], 'f64', device).keep()
  }

  /** Whether the file of an image may be left to the GPU. */
  takes(index: number): boolean {
    return this.#ring.files !== undefined && !this.#forWorkers.has(index)
  }

  /**
   * Sends a batch's pixels, or the files that become them, and its rows of the table on their way; the place of the pixels, in bytes.
   * `decode` has workers decode what the GPU refuses, by its places in the batch.
   */
  async start(slot: number, request: BatchRequest, decode: (places: number[]) => Promise<void>): Promise<number> {
    const { batchSize } = this.#options
    const images = request.indices.length
    if (images !== batchSize)
      throw new DenseclError('DATA', `data: expected batches of ${batchSize} images on ${this.#device} but received one of ${images}`)
    const offset = (slot % uploadSlots) * this.#ring.slotBytes
    if (this.#ring.files === undefined) native.startUpload(this.#pixels.handle, this.#ring.slot(slot), offset)
    else {
      const refused = this.#decode(slot, offset, request)
      if (refused.length > 0) {
        await decode(refused)
        this.#startImages(slot, offset, refused)
      }
    }
    native.useUpload(this.#pixels.handle, offset)
    this.#table.write(this.#ring.rowsOf(slot))
    return offset
  }

  /** Waits until a batch has left its slot. */
  finish(offset: number): void {
    native.finishUpload(this.#pixels.handle, offset)
  }

  /** Gives the place of a batch to the next, after what has been asked of the device. */
  release(offset: number): void {
    native.release(this.#pixels.handle, offset)
  }

  /** Both views of the current batch, made on the device. */
  render(): Tensor[] {
    const { batchSize, imageSize, dtype = 'f32' } = this.#options
    const shape = [batchSize, imageSize, imageSize, 3]
    const views = [Tensor.empty(shape, dtype, this.#device), Tensor.empty(shape, dtype, this.#device)] as const
    renderTable(views, 0, this.#pixels, this.#table)
    return [...views]
  }

  /** Frees what is on the device. */
  close(): void {
    native.synchronize(this.#device)
    for (let slot = 0; slot < uploadSlots; ++slot) this.finish(slot * this.#ring.slotBytes)
    this.#pixels.dispose()
    this.#table.dispose()
    native.unpin(new Uint8Array(this.#ring.memory), this.#device)
  }

  /** native.startImages for images of a slot, by their places in the batch. */
  #startImages(slot: number, offset: number, images: readonly number[]): string {
    const [files, views] = [this.#ring.filesOf(slot), this.#ring.rowsOf(slot)]
    const rows = images.flatMap((image) => {
      const [height, width] = [views[image * tableColumns + 1]!, views[image * tableColumns + 2]!]
      return [image * this.#ring.parts[0]!, files[image]!, height, width]
    })
    return native.startImages!(this.#pixels.handle, this.#ring.slot(slot), offset, Float64Array.from(rows))
  }

  /** Starts a batch whose files the GPU decodes. Which of them, by their places in it, it has refused and is not to be given again. */
  #decode(slot: number, offset: number, { indices }: BatchRequest): number[] {
    const { spent, refused } = this.#counted
    const files = this.#ring.filesOf(slot)
    const images = [...indices.keys()]
    const encoded = images.filter((image) => files[image]! > 0)
    spent.onGpu += encoded.length
    if (this.#startImages(slot, offset, images) === '') return []
    // Each by itself: of a batch it is only said that one is wrong.
    return encoded.filter((image) => {
      this.finish(offset)
      const reason = this.#startImages(slot, offset, [image])
      if (reason === '') return false
      this.#forWorkers.add(indices[image]!)
      refused.set(this.#options.items[indices[image]!]!.name, reason)
      spent.onGpu -= 1
      return true
    })
  }
}
