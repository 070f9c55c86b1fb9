/** Images with boxes on their way into a detector: drawn, read, resized, mirrored, normalised, padded to a common size. */
import type { Box, BoxItem, BoxSource } from '../data/boxes.js'
import { maskInView } from '../data/instanceMasks.js'
import { type BoxBatch, boxInView, detectionSize, drawBoxView, writeBoxView } from '../data/boxView.js'
import type { Pixels } from '../data/decode.js'
import { Group } from '../distributed/group.js'
import { Loader } from '../data/loader.js'
import type { BatchRequest } from '../data/loaderOptions.js'
import { epochOrder } from '../data/sampler.js'
import type { TestImage } from '../detection/detect.js'
import type { DetectionStyle } from '../detection/styles.js'
import type { TrainingImage } from '../detection/targets.js'
import { fail } from '../tensor/errors.js'
import { largest } from '../tensor/numbers.js'
import { Random } from '../tensor/random.js'
import { Tensor } from '../tensor/tensor.js'
import type { DetectionProtocol } from './detectionProtocols.js'
import { placesOf } from './shares.js'

/** Images for the network: f32 [N, H, W, 3] as values, and the size of each without padding. */
export interface DetectionBatch<Image> {
  values: Float32Array
  shape: [number, number, number, number]
  images: Image[]
}

export const batchTensor = ({ values, shape }: DetectionBatch<unknown>, device: string): Tensor => Tensor.from(values, shape, 'f32', device)

/**
 * The images of iterations `from` to `until`: shuffled epochs one after the other, of which the images that are wide and those that are
 * not form pairs, so that little is padded. `usable` are indices of the source.
 */
export function* pairedBatches(
  items: readonly BoxItem[],
  usable: Int32Array,
  { seed, batchSize, from, until }: { seed: number; batchSize: number; from: number; until: number },
): Generator<Int32Array> {
  const pair = batchSize % 2 === 0 ? 2 : 1
  const waiting: Record<'wide' | 'tall', number[]> = { wide: [], tall: [] }
  let batch: number[] = []
  let iteration = 0
  for (let epoch = 0; ; ++epoch) {
    for (const at of epochOrder(seed, epoch, usable.length)) {
      const index = usable[at]!
      const { width, height } = items[index]!
      const own = waiting[width > height ? 'wide' : 'tall']
      own.push(index)
      if (own.length < pair) continue
      batch = batch.concat(own.splice(0))
      if (batch.length < batchSize) continue
      if (iteration >= from) yield Int32Array.from(batch)
      batch = []
      if (++iteration >= until) return
    }
  }
}

/** How many objects of an image lie wholly outside of it. */
export const outside = (item: BoxItem): number => item.objects.filter(({ box }) => !isWithin(box, item)).length

/** Whether anything of a box lies within its image: what is wholly outside cannot be learnt. */
export const isWithin = (box: Box, image: { width: number; height: number }): boolean =>
  boxInView(box, image, { height: image.height, width: image.width, flip: false }) !== undefined

/** The objects that a style trains on, in the coordinates that it gives them; where masks are trained on, those that have one. */
export const trainingObjects = (
  item: BoxItem,
  { layout, masks = false }: Pick<BoxSource, 'layout' | 'masks'>,
  { difficult, vocShift }: DetectionStyle,
): BoxItem['objects'] =>
  item.objects
    .filter(
      (object) => isWithin(object.box, item) && !object.crowd && (difficult || !object.difficult) && (!masks || object.mask !== undefined),
    )
    .map((object) =>
      layout === 'coco' ? object : { ...object, box: object.box.map((value, i) => value + vocShift[i]!) as unknown as typeof object.box },
    )

/** Indices of the images that have something to train on. Throws DATA where none has, with what is said of its objects. */
function usableImages(source: BoxSource, style: DetectionStyle): Int32Array {
  const { items } = source
  const usable = Int32Array.from(items.keys()).filter((i) => trainingObjects(items[i]!, source, style).length > 0)
  if (usable.length > 0) return usable
  const objects = items.flatMap((item) => item.objects)
  const reasons = [
    ['crowds', objects.filter(({ crowd }) => crowd).length],
    ['difficult', style.difficult ? 0 : objects.filter(({ difficult }) => difficult).length],
    ['wholly outside of their images', items.reduce((sum, item) => sum + outside(item), 0)],
    ['without a mask', source.masks === true ? objects.filter(({ mask }) => mask === undefined).length : 0],
  ] as const
  const are = reasons.flatMap(([what, count]) => (count > 0 ? [`${count} are ${what}`] : []))
  const told = [`of ${objects.length} objects`, are.join(', ')].join(' ').trim()
  return fail('DATA', `detection: none of ${items.length} training images has an object to train on: ${told}`)
}

/** How the images `indices` enter the network in iteration `iteration`. */
function drawBatch(
  items: readonly BoxItem[],
  indices: Int32Array,
  { scales, longest }: Pick<DetectionProtocol, 'scales' | 'longest'>,
  style: DetectionStyle,
  seed: number,
  iteration: number,
): BoxBatch {
  const views = Array.from(indices, (index, place) => {
    const { width, height } = items[index]!
    const original = { width, height }
    return { ...drawBoxView(new Random(seed, 59, iteration, place), original, { short: scales, long: longest }, style.rounding), original }
  })
  return padded(views, style)
}

function padded(views: BoxBatch['views'], { padTo, resampling }: DetectionStyle): BoxBatch {
  const side = (sides: number[]): number => Math.ceil(largest(sides) / padTo) * padTo
  return { height: side(views.map(({ height }) => height)), width: side(views.map(({ width }) => width)), resampling, views }
}

/** A batch to be read, and what the network is told of each of its images. */
interface DetectionRequest<Image> extends BatchRequest {
  boxes: BoxBatch
  images: Image[]
}

function trainingRequest(
  source: BoxSource,
  indices: Int32Array,
  style: DetectionStyle,
  iteration: number,
  boxes: BoxBatch,
): DetectionRequest<TrainingImage> {
  const images = boxes.views.map((view, place): TrainingImage => {
    const item = source.items[indices[place]!]!
    const objects = trainingObjects(item, source, style).flatMap(({ box, label, mask }) => {
      const placed = boxInView(box, item, view)
      if (placed === undefined) return []
      return [{ box: placed, label, ...(mask === undefined ? {} : { mask: maskInView(mask, item, view, style.masks) }) }]
    })
    return { height: view.height, width: view.width, objects }
  })
  return { epoch: iteration, indices, boxes, images }
}

/** What batches are read by. */
export interface DetectionLoading {
  /** Data workers; 0 chooses. */
  workers?: number
  /** MiB of decoded images that are kept for later epochs. */
  cacheMegabytes?: number
}

/** The batches of which iterations. */
export interface TrainingIterations {
  protocol: Pick<DetectionProtocol, 'batchSize' | 'scales' | 'longest'>
  style: DetectionStyle
  seed: number
  from: number
  until: number
  /** The processes that share the batches, of which this one has its images as all would enter the network together. */
  group?: Group
  /** Images of all processes that are computed at a time, of which each has its share; all when absent. */
  imagesAtOnce?: number
}

function* drawnBatches(
  source: BoxSource,
  { protocol, style, seed, from, until }: TrainingIterations,
): Generator<{ indices: Int32Array; iteration: number; boxes: BoxBatch }> {
  let iteration = from
  for (const indices of pairedBatches(source.items, usableImages(source, style), { seed, batchSize: protocol.batchSize, from, until })) {
    yield { indices, iteration, boxes: drawBatch(source.items, indices, protocol, style, seed, iteration) }
    iteration += 1
  }
}

/**
 * The batches of iterations `from` to `until`, which are the same whatever reads them and wherever the first is. Throws DATA with the
 * name of an image that cannot be read, or has another size than its annotation says.
 */
export async function* trainingBatches(
  source: BoxSource,
  iterations: TrainingIterations,
  loading: DetectionLoading = {},
): AsyncGenerator<LoadedBatch<TrainingImage>> {
  const { batchSize: ofAll } = iterations.protocol
  const places = placesOf(ofAll, iterations.imagesAtOnce ?? ofAll, iterations.group ?? Group.single)
  function* requests(): Generator<DetectionRequest<TrainingImage>> {
    for (const { indices, iteration, boxes } of drawnBatches(source, iterations)) {
      const own = { ...boxes, views: places.map((place) => boxes.views[place]!) }
      yield trainingRequest(
        source,
        Int32Array.from(places, (place) => indices[place]!),
        iterations.style,
        iteration,
        own,
      )
    }
  }
  const batchSize = places.length
  const { height, width } = largestBatch(source, iterations)
  yield* loaded(source.items, requests(), { ...loading, batchSize, area: height * width })
}

/** The size that images are padded to in the largest batch of these iterations. */
export function largestBatch(source: BoxSource, iterations: TrainingIterations): { height: number; width: number } {
  let most = { height: 0, width: 0 }
  for (const { boxes } of drawnBatches(source, iterations)) if (boxes.height * boxes.width > most.height * most.width) most = boxes
  return { height: most.height, width: most.width }
}

/** The images of a source as they are tested, one by one. Throws as trainingBatches(). */
export async function* testBatches(
  items: BoxItem[],
  scales: TestScales,
  style: DetectionStyle,
  loading: DetectionLoading = {},
): AsyncGenerator<LoadedBatch<TestImage>> {
  const requests = items.map((item, index): DetectionRequest<TestImage> => ({
    epoch: 0,
    indices: Int32Array.of(index),
    ...testPlacement(item, scales, style),
  }))
  const area = largest(requests.map(({ boxes }) => boxes.height * boxes.width))
  yield* loaded(items, requests, { ...loading, cacheMegabytes: 0, batchSize: 1, area })
}

/** A batch as it was read; its values are there until the next one is asked for. */
export interface LoadedBatch<Image> extends DetectionBatch<Image> {
  /** Of the source. */
  indices: Int32Array
  /** Seconds that were waited for it. */
  waited: number
}

async function* loaded<Image>(
  items: BoxItem[],
  requests: Iterable<DetectionRequest<Image>>,
  { area, batchSize, ...loading }: DetectionLoading & { area: number; batchSize: number },
): AsyncGenerator<LoadedBatch<Image>> {
  // Workers are sent items: they need no annotations.
  const files = items.map(({ name, kind, path }) => ({ name, kind, path }))
  const loader = new Loader({ items: files, imageSize: Math.ceil(Math.sqrt(area)), batchSize, views: 'boxes', ...loading })
  try {
    for await (const batch of loader.batches(requests)) {
      const { request, indices, waited } = batch
      const { height, width } = request.boxes
      yield { values: batch.values(), shape: [indices.length, height, width, 3], images: request.images, indices, waited }
    }
  } finally {
    await loader.close()
  }
}

type TestScales = Pick<DetectionProtocol, 'testScale' | 'longest'>

/** How an image enters the network in the test. */
export function testPlacement(
  original: { width: number; height: number },
  { testScale, longest }: TestScales,
  style: DetectionStyle,
): { boxes: BoxBatch; images: [TestImage] } {
  const { width, height } = original
  const view = { ...detectionSize(original, testScale, longest, style.rounding), flip: false, original: { width, height } }
  return { boxes: padded([view], style), images: [{ height: view.height, width: view.width, original: view.original }] }
}

/** An image as it is tested. */
export function testView(pixels: Pixels, scales: TestScales, style: DetectionStyle): DetectionBatch<TestImage> {
  const { boxes, images } = testPlacement(pixels, scales, style)
  const values = new Float32Array(boxes.height * boxes.width * 3)
  writeBoxView(values, pixels, boxes.views[0]!, boxes)
  return { values, shape: [1, boxes.height, boxes.width, 3], images }
}
