/** A data worker: reads, decodes once and renders the views of some images of a batch into the loader's shared memory. */
import { parentPort, workerData } from 'node:worker_threads'

import { Random } from '../nn/random.js'
import { DenseclError } from '../tensor/errors.js'
import { native } from '../tensor/native.js'
import { scope, Tensor } from '../tensor/tensor.js'
import { type AugmentOptions, pixelTensor, randomView, renderView, tableColumns, tableRow, type ViewParameters, wholeImage } from './augment.js'
import type { Pixels } from './decode.js'
import { type Item, loadPixels } from './sources.js'

/** Two random views of each image, its centre, or the image itself with the parameters of two views, for a GPU to make. */
export type ViewKind = 'augmented' | 'centre' | 'pixels'

export interface WorkerData {
  items: Item[]
  memory: SharedArrayBuffer
  imageSize: number
  views: ViewKind
  /** In the mode `pixels`: the rows of the views' table, and what says where they and their images lie. */
  table?: { rows: SharedArrayBuffer; batchSize: number; uploadSlots: number }
  /** Bytes of a place in the memory. */
  placeBytes: number
  augment: AugmentOptions
  seed: number
  /** Bytes of decoded images that this worker may keep for later epochs. */
  cacheBytes: number
  /** i32 [1]: not 0 when the rest of all tasks is to be left. */
  stop: SharedArrayBuffer
}

/** Images `indices` of the source go to `positions` (in images of all views) of the memory. */
export interface Task {
  id: number
  epoch: number
  indices: number[]
  /** For each image, one place for each of its views. */
  places: number[][]
}

export interface TaskResult {
  id: number
  /** Seconds that this worker took for reading and decoding, and for what came after. */
  decoding: number
  rendering: number
  broken: { name: string; reason: string }[]
  /** Set when an image could not be replaced. */
  error?: string
}

const { items, memory, imageSize, views, table, placeBytes, augment, seed, cacheBytes, stop } = workerData as WorkerData
const floatsPerView = imageSize * imageSize * 3
native.setThreads(1)

const cache = new Map<number, Pixels>()
let cached = 0

/** Decoded pixels, from the cache while the budget lasts: small data sets are decoded once, large ones are not held up. */
async function pixelsOf(index: number): Promise<Pixels> {
  const known = cache.get(index)
  if (known !== undefined) return known
  // A place holds three bytes a pixel.
  const pixels = await loadPixels(items[index]!, views === 'pixels' ? placeBytes / 3 : undefined)
  if (cached + pixels.data.length <= cacheBytes) {
    cached += pixels.data.length
    // A copy: a decoder's buffer may be larger than the image.
    cache.set(index, { ...pixels, data: pixels.data.slice() })
  }
  return pixels
}

/** The image, or for a broken one another, drawn from a stream of the broken one so that every run takes the same. */
async function load(index: number, epoch: number, broken: TaskResult['broken']): Promise<{ pixels: Pixels; index: number }> {
  let current = index
  const random = new Random(seed, 13, epoch, index)
  for (let attempt = 0; attempt < 10; ++attempt) {
    try {
      return { pixels: await pixelsOf(current), index: current }
    } catch (error) {
      if (!(error instanceof DenseclError)) throw error
      broken.push({ name: items[current]!.name, reason: error.message })
      if (views === 'centre') break
      current = random.below(items.length)
    }
  }
  if (views === 'centre') return { pixels: { width: 1, height: 1, data: new Uint8Array(3) }, index }
  throw new DenseclError('DATA', `ten images in a row cannot be read, the last: ${broken.at(-1)!.reason}`)
}

const viewOf = (index: number, epoch: number, view: number, { width, height }: Pixels): ViewParameters => randomView(new Random(seed, 17, epoch, index, view), width, height, augment)

/**
 * The image as it is, or, where no libvips has done it, reduced to the room of its place: crops of it then still have about the pixels of a view. Place i of
 * slot s goes to place i of upload slot s % uploadSlots, and the rows of its views to rows i and batchSize + i of the slot's.
 */
function writePixels(pixels: Pixels, index: number, epoch: number, place: number): void {
  const { rows, batchSize, uploadSlots } = table!
  const { height, width, data } = pixels.data.length <= placeBytes ? pixels : reduce(pixels)
  new Uint8Array(memory, place * placeBytes, data.length).set(data)
  const [slot, i] = [Math.floor(place / batchSize), place % batchSize]
  const offset = ((slot % uploadSlots) * batchSize + i) * placeBytes
  for (const view of [0, 1]) {
    const row = tableRow({ view: viewOf(index, epoch, view, { height, width, data }), offset, height, width }, true)
    new Float64Array(rows, ((slot * 2 + view) * batchSize + i) * tableColumns * 8, tableColumns).set(row)
  }
}

function reduce(pixels: Pixels): Pixels {
  const share = Math.sqrt(placeBytes / pixels.data.length)
  const [height, width] = [Math.max(1, Math.floor(pixels.height * share)), Math.max(1, Math.floor(pixels.width * share))]
  return scope(() => {
    const whole = Tensor.empty([1, height, width, 3])
    renderView(whole, 0, pixelTensor(pixels), wholeImage(pixels), false)
    const values = whole.data()
    const data = new Uint8Array(values.length)
    for (let i = 0; i < values.length; ++i) data[i] = 255 * values[i]! + 0.5
    return { height, width, data }
  })
}

function render(pixels: Pixels, index: number, epoch: number, places: number[]): void {
  scope(() => {
    const source = pixelTensor(pixels)
    for (const [view, place] of places.entries()) {
      const target = new Float32Array(memory, place * placeBytes, floatsPerView)
      if (views === 'centre') target.set(centreCrop(source, pixels))
      else {
        const out = Tensor.empty([1, imageSize, imageSize, 3])
        renderView(out, 0, source, viewOf(index, epoch, view, pixels))
        native.read(out.handle, target)
      }
    }
  })
}

/** Shorter side to imageSize * 256 / 224, then the central square, as the test pipelines of the benchmarks. */
function centreCrop(source: Tensor, pixels: Pixels): Float32Array {
  const short = Math.round((imageSize * 256) / 224)
  const scale = short / Math.min(pixels.width, pixels.height)
  const height = Math.max(imageSize, Math.round(pixels.height * scale))
  const width = Math.max(imageSize, Math.round(pixels.width * scale))
  const whole = Tensor.empty([1, height, width, 3])
  renderView(whole, 0, source, wholeImage(pixels))
  const values = whole.data() as Float32Array
  const top = Math.round((height - imageSize) / 2)
  const left = Math.round((width - imageSize) / 2)
  const out = new Float32Array(floatsPerView)
  for (let y = 0; y < imageSize; ++y) {
    const from = ((top + y) * width + left) * 3
    out.set(values.subarray(from, from + imageSize * 3), y * imageSize * 3)
  }
  return out
}

async function run(task: Task): Promise<TaskResult> {
  const broken: TaskResult['broken'] = []
  let [decoding, rendering] = [0, 0]
  try {
    for (const [i, wanted] of task.indices.entries()) {
      if (Atomics.load(new Int32Array(stop), 0) !== 0) break
      const start = performance.now()
      const { pixels, index } = await load(wanted, task.epoch, broken)
      const decoded = performance.now()
      decoding += (decoded - start) / 1000
      if (views === 'pixels') writePixels(pixels, index, task.epoch, task.places[i]![0]!)
      else render(pixels, index, task.epoch, task.places[i]!)
      rendering += (performance.now() - decoded) / 1000
    }
    return { id: task.id, broken, decoding, rendering }
  } catch (error) {
    return { id: task.id, broken, decoding, rendering, error: error instanceof Error ? error.message : String(error) }
  }
}

let last = Promise.resolve()
// null ends the worker, behind the tasks before it.
parentPort!.on('message', (task: Task | null) => {
  if (task === null) last = last.then(() => parentPort!.close())
  else last = last.then(async () => parentPort!.postMessage(await run(task)))
})
