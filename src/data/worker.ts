/** A data worker: reads, decodes once and renders the views of some images of a batch into the loader's shared memory. */
import { readFile } from 'node:fs/promises'
import { parentPort, workerData } from 'node:worker_threads'

import { Random } from '../tensor/random.js'
import { DenseclError, fail } from '../tensor/errors.js'
import { native } from '../tensor/native.js'
import { scope, Tensor } from '../tensor/tensor.js'
import {
  type AugmentOptions,
  type ImageFormat,
  pixelTensor,
  type PlacedView,
  randomView,
  renderChannels,
  renderInto,
  renderView,
  tableColumns,
  tableRow,
  type ViewParameters,
  wholeImage,
} from './augment.js'
import { type BoxBatch, writeBoxView } from './boxView.js'
import { isFile, type JpegFile, type Pixels, recycle } from './decode.js'
import { decodeMask, type Mask } from './masks.js'
import { type Pipeline, renderPipeline } from './pipelines.js'
import { ReadAhead } from './readAhead.js'
import { renderSegmentation, type SegmentationAugment } from './segmentationView.js'
import { isBroken, type Item, loadForGpu, loadPixels } from './source.js'

/** A pipeline, an image with its mask, a whole image for a detector, or the image itself with two views' parameters, for a GPU to make. */
export type ViewKind = Pipeline | 'segmentation' | 'boxes' | 'pixels'

/** What the kind `segmentation` needs beside the items, which carry the paths of their masks. */
export interface SegmentationOptions {
  augment: SegmentationAugment
  classes: number
  map?: readonly number[]
}

export interface WorkerData {
  /** How many images the source has: a worker is only told of those that it reads. */
  count: number
  memory: SharedArrayBuffer
  imageSize: number
  views: ViewKind
  /** What the modes `augmented` and `pixels` have: the rows of the views' table [slots, 2, batchSize, tableColumns]. */
  table?: { rows: SharedArrayBuffer; batchSize: number; uploadSlots: number }
  /** Where a GPU decodes: i32 [slots, batchSize], of each image the bytes of its file, 0 where its place has pixels. */
  files?: SharedArrayBuffer
  /** Bytes of an image's place in the memory, in the mode `pixels`. */
  placeBytes: number
  augment: AugmentOptions
  /** Deviation of the colour noise of the pipeline `crop`. */
  lighting: number
  images: ImageFormat
  segmentation?: SegmentationOptions
  seed: number
  /** Bytes of decoded images that this worker may keep for later epochs. */
  cacheBytes: number
  /** i32 [1]: not 0 when the rest of all tasks is to be left. */
  stop: SharedArrayBuffer
}

/** Images `indices` of the source are read, and their parts written to the memory. */
export interface Task {
  id: number
  epoch: number
  indices: number[]
  items: Item[]
  /** The byte where each part of each image goes. */
  places: number[][]
  /** The slot of the batch, and each image's place in it. */
  slot: number
  order: number[]
  /** What the kind `boxes` makes of these images. */
  boxes?: BoxBatch
  /** Where a GPU decodes: of each image whether its file may be left to it. */
  forGpu?: boolean[]
}

/** A worker asks for an image that it was not told of, which stands in for a broken one; the answer is an ItemAnswer. */
export interface ItemRequest {
  wanted: number
}
export interface ItemAnswer {
  item: Item
}

export interface TaskResult {
  id: number
  /** Seconds that this worker took for reading and decoding, and for what came after. */
  decoding: number
  rendering: number
  broken: { name: string; reason: string }[]
  /** Images that stand in for broken ones: their places in the task, and what they are in the source. */
  standIns: { place: number; index: number }[]
  /** Set when an image could not be replaced. */
  error?: { code: string; message: string }
}

const { count, memory, imageSize, views, table, files, placeBytes, augment, lighting, images, segmentation, seed, cacheBytes, stop } =
  workerData as WorkerData
const floatsPerView = imageSize * imageSize * images.channels
native.setThreads(1)

/** The images of the task, by their places in the source, and those that stand in for broken ones. */
const items = new Map<number, Item>()
let answered: ((item: Item) => void) | undefined

/** What image a place of the source is; the loader answers between two steps. */
async function itemAt(index: number): Promise<Item> {
  const known = items.get(index)
  if (known !== undefined) return known
  const item = await new Promise<Item>((resolve) => {
    answered = resolve
    parentPort!.postMessage({ wanted: index } satisfies ItemRequest)
  })
  items.set(index, item)
  return item
}

const cache = new Map<number, Pixels | JpegFile>()
let cached = 0
/** Images of the tasks that wait, where other machines have them. */
const ahead = new ReadAhead()

/**
 * Decoded pixels, or a file that the GPU decodes, from the cache while the budget lasts: small data sets are decoded once, large ones are
 * not held up.
 */
async function imageOf(index: number, forGpu: boolean): Promise<Pixels | JpegFile> {
  const known = cache.get(index)
  const bytes = ahead.take(index)
  if (known !== undefined && (forGpu || !isFile(known))) return known
  const item = await itemAt(index)
  // A place holds three bytes a pixel.
  const mostPixels = views === 'pixels' ? placeBytes / 3 : undefined
  const image = forGpu ? await loadForGpu(item, mostPixels!, bytes) : await loadPixels(item, mostPixels, images.channels, bytes)
  if (known === undefined && cached + image.data.length <= cacheBytes) {
    cached += image.data.length
    // A copy: a decoder's buffer may be larger than the image.
    cache.set(index, { ...image, data: image.data.slice() })
  }
  return image
}

/** Test sets keep their images: a broken one is a black pixel there. */
const testing = views === 'centre' || views === 'square'

/** The image, or for a broken one another, drawn from a stream of the broken one so that every run takes the same. */
async function load(
  index: number,
  epoch: number,
  broken: TaskResult['broken'],
  forGpu: boolean,
): Promise<{ image: Pixels | JpegFile; index: number }> {
  let current = index
  const random = new Random(seed, 13, epoch, index)
  for (let attempt = 0; attempt < 10; ++attempt) {
    try {
      return { image: await imageOf(current, forGpu), index: current }
    } catch (error) {
      // Boxes belong to their image: no other stands in for it.
      if (!isBroken(error) || views === 'boxes') throw error
      broken.push({ name: (await itemAt(current)).name, reason: error.message })
      if (testing) break
      current = random.below(count)
    }
  }
  if (testing) return { image: { width: 1, height: 1, channels: images.channels, data: new Uint8Array(images.channels) }, index }
  throw new DenseclError('DATA', `ten images in a row cannot be read, the last: ${broken.at(-1)!.reason}`)
}

const ofSecond: AugmentOptions = { ...augment, cropScale: augment.keyCropScale ?? augment.cropScale }
const viewOf = (index: number, epoch: number, view: number, { width, height }: Pixels | JpegFile): ViewParameters =>
  randomView(new Random(seed, 17, epoch, index, view), width, height, view === 1 ? ofSecond : augment)

/** Keeps how a view is made: what a GPU makes it of, and what methods are told of it. */
function writeRow(placed: PlacedView, slot: number, view: number, place: number): void {
  const { rows, batchSize } = table!
  const at = ((slot * 2 + view) * batchSize + place) * tableColumns
  new Float64Array(rows, at * 8, tableColumns).set(tableRow(placed, images.channels === 3 ? images : true))
}

/**
 * The image as it is, a file too, or, where no libvips has done it, reduced to the room of its place: crops of it then still have about
 * the pixels of a view. Place i of slot s goes to place i of upload slot s % uploadSlots, and the rows of its views to rows i and
 * batchSize + i of the slot's.
 */
function writeForGpu(image: Pixels | JpegFile, index: number, { epoch, places, slot, order }: Task, i: number): void {
  const { batchSize, uploadSlots } = table!
  const placed = isFile(image) || image.data.length <= placeBytes ? image : reduce(image)
  const { height, width, data } = placed
  new Uint8Array(memory, places[i]![0], data.length).set(data)
  if (files !== undefined) new Int32Array(files)[slot * batchSize + order[i]!] = isFile(placed) ? data.length : 0
  const offset = ((slot % uploadSlots) * batchSize + order[i]!) * placeBytes
  for (const view of [0, 1]) writeRow({ view: viewOf(index, epoch, view, placed), offset, height, width }, slot, view, order[i]!)
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

/** Both random views of the pre-training step. */
function writeTwoViews(pixels: Pixels, index: number, { epoch, places, slot, order }: Task, i: number): void {
  const { height, width } = pixels
  const size = { height: imageSize, width: imageSize }
  for (const [which, at] of places[i]!.entries()) {
    const view = viewOf(index, epoch, which, pixels)
    const out = new Float32Array(memory, at, floatsPerView)
    if (images.channels === 3) renderInto(out, pixels, view, size, images)
    else out.set(renderChannels(pixels, view, size, images))
    writeRow({ view, offset: 0, height, width }, slot, which, order[i]!)
  }
}

const masks = new Map<number, Mask>()

/** The mask of an image, which is small beside it and kept when the image is. */
async function maskOf(index: number, { width, height }: Pixels): Promise<Mask> {
  const known = masks.get(index)
  if (known !== undefined) return known
  const { name, mask: path } = await itemAt(index)
  const mask = decodeMask(await readFile(path!), path!, segmentation!.classes, segmentation!.map, { name, width, height })
  if (cache.has(index)) masks.set(index, mask)
  return mask
}

/** The image `place` of a task as a detector takes it, checked against its annotation. */
async function writeBoxes(pixels: Pixels, index: number, batch: BoxBatch, place: number, at: number): Promise<void> {
  const view = batch.views[place]!
  const { width, height } = view.original
  if (pixels.width !== width || pixels.height !== height)
    fail(
      'DATA',
      `${(await itemAt(index)).name}: the image has ${pixels.width}x${pixels.height} pixels but its annotation says ${width}x${height}`,
    )
  writeBoxView(new Float32Array(memory, at, batch.height * batch.width * 3), pixels, view, batch)
}

async function write(pixels: Pixels | JpegFile, index: number, task: Task, place: number): Promise<void> {
  const { epoch, boxes } = task
  const places = task.places[place]!
  if (views === 'pixels' || isFile(pixels)) writeForGpu(pixels, index, task, place)
  else if (boxes !== undefined) await writeBoxes(pixels, index, boxes, place, places[0]!)
  else if (views === 'augmented') writeTwoViews(pixels, index, task, place)
  else if (views === 'segmentation') {
    const { image, labels } = renderSegmentation(
      pixels,
      await maskOf(index, pixels),
      new Random(seed, 37, epoch, index),
      segmentation!.augment,
    )
    new Float32Array(memory, places[0], image.length).set(image)
    new Uint8Array(memory, places[1], labels.length).set(labels)
  } else
    new Float32Array(memory, places[0], floatsPerView).set(
      renderPipeline(views as Exclude<Pipeline, 'augmented'>, pixels, imageSize, new Random(seed, 17, epoch, index, 0), {
        augment,
        lighting,
        images,
      }),
    )
}

async function run(task: Task): Promise<TaskResult> {
  const broken: TaskResult['broken'] = []
  const standIns: TaskResult['standIns'] = []
  let [decoding, rendering] = [0, 0]
  items.clear()
  for (const [i, index] of task.indices.entries()) items.set(index, task.items[i]!)
  try {
    for (const [i, wanted] of task.indices.entries()) {
      if (Atomics.load(new Int32Array(stop), 0) !== 0) break
      const start = performance.now()
      const { image, index } = await load(wanted, task.epoch, broken, task.forGpu?.[i] ?? false)
      if (index !== wanted) standIns.push({ place: i, index })
      const decoded = performance.now()
      decoding += (decoded - start) / 1000
      await write(image, index, task, i)
      if (!isFile(image) && cache.get(index) !== image) recycle(image)
      rendering += (performance.now() - decoded) / 1000
    }
    return { id: task.id, broken, standIns, decoding, rendering }
  } catch (error) {
    const code = error instanceof DenseclError && error.code === 'FETCH' ? error.code : 'DATA'
    const message = error instanceof Error ? error.message : String(error)
    return { id: task.id, broken, standIns, decoding, rendering, error: { code, message } }
  }
}

let last = Promise.resolve()
// null ends the worker, after the tasks before it.
parentPort!.on('message', (task: Task | ItemAnswer | null) => {
  if (task !== null && 'item' in task) answered!(task.item)
  else if (task === null) {
    ahead.stop()
    last = last.then(() => parentPort!.close())
  } else {
    for (const [i, index] of task.indices.entries()) if (!cache.has(index)) ahead.expect(index, task.items[i]!)
    last = last.then(async () => parentPort!.postMessage(await run(task)))
  }
})
