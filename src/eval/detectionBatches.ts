/** Images with boxes on their way into a detector: drawn, read, resized, mirrored, normalised, padded to a common size. */
import { imagenetDeviation, imagenetMean } from '../data/augment.js'
import type { BoxItem, BoxSource } from '../data/boxes.js'
import { boxInView, type BoxView, detectionSize, drawBoxView } from '../data/boxView.js'
import type { Pixels } from '../data/decode.js'
import { resizeBytes } from '../data/resizeBytes.js'
import { epochOrder } from '../data/sampler.js'
import { loadPixels } from '../data/source.js'
import type { TestImage } from '../detection/detect.js'
import type { DetectionStyle } from '../detection/styles.js'
import type { TrainingImage } from '../detection/targets.js'
import { fail } from '../tensor/errors.js'
import { largest } from '../tensor/numbers.js'
import { Random } from '../tensor/random.js'
import { Tensor } from '../tensor/tensor.js'
import type { DetectionProtocol } from './detectionProtocols.js'

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

/** An image of a source read and checked against its annotation. */
async function pixelsOf(item: BoxItem): Promise<Pixels> {
  const pixels = await loadPixels(item)
  if (pixels.width !== item.width || pixels.height !== item.height)
    fail('DATA', `${item.name}: the image has ${pixels.width}x${pixels.height} pixels but its annotation says ${item.width}x${item.height}`)
  return pixels
}

/** The objects that a style trains on, in the coordinates that it gives them. */
export const trainable = ({ objects }: BoxItem, layout: BoxSource['layout'], { difficult, vocShift }: DetectionStyle): BoxItem['objects'] =>
  objects
    .filter((object) => !object.crowd && (difficult || !object.difficult))
    .map((object) =>
      layout === 'coco' ? object : { ...object, box: object.box.map((value, i) => value + vocShift[i]!) as unknown as typeof object.box },
    )

/** Reads the images `indices` of iteration `iteration` as a style trains on them. */
export async function trainingBatch(
  { items, layout }: BoxSource,
  indices: Int32Array,
  { scales, longest }: DetectionProtocol,
  style: DetectionStyle,
  seed: number,
  iteration: number,
): Promise<DetectionBatch<TrainingImage>> {
  const drawn = await Promise.all(
    Array.from(indices, async (index, place) => {
      const item = items[index]!
      const view = drawBoxView(new Random(seed, 59, iteration, place), item, { short: scales, long: longest }, style.rounding)
      const objects = trainable(item, layout, style).flatMap(({ box, label }) => {
        const placed = boxInView(box, item, view)
        return placed === undefined ? [] : [{ box: placed, label }]
      })
      return { pixels: await pixelsOf(item), view, image: { height: view.height, width: view.width, objects } }
    }),
  )
  return assembled(drawn, style)
}

/** Reads an image as it is tested. */
export async function testBatch(
  item: BoxItem,
  scales: Pick<DetectionProtocol, 'testScale' | 'longest'>,
  style: DetectionStyle,
): Promise<DetectionBatch<TestImage> & { pixels: Pixels }> {
  const pixels = await pixelsOf(item)
  return { ...testView(pixels, scales, style), pixels }
}

/** An image as it is tested. */
export function testView(
  pixels: Pixels,
  { testScale, longest }: Pick<DetectionProtocol, 'testScale' | 'longest'>,
  style: DetectionStyle,
): DetectionBatch<TestImage> {
  const { height, width } = pixels
  const view = { ...detectionSize(pixels, testScale, longest, style.rounding), flip: false }
  return assembled([{ pixels, view, image: { height: view.height, width: view.width, original: { height, width } } }], style)
}

function assembled<Image>(
  drawn: readonly { pixels: Pixels; view: BoxView; image: Image }[],
  { resampling, padTo }: DetectionStyle,
): DetectionBatch<Image> {
  const padded = (sides: number[]): number => Math.ceil(largest(sides) / padTo) * padTo
  const [height, width] = [padded(drawn.map(({ view }) => view.height)), padded(drawn.map(({ view }) => view.width))]
  const values = new Float32Array(drawn.length * height * width * 3)
  drawn.forEach(({ pixels, view }, i) => {
    const { data } = resizeBytes(pixels, view.width, view.height, resampling)
    for (let y = 0; y < view.height; ++y)
      for (let x = 0; x < view.width; ++x) {
        const from = (y * view.width + (view.flip ? view.width - 1 - x : x)) * 3
        const to = ((i * height + y) * width + x) * 3
        for (let c = 0; c < 3; ++c) values[to + c] = (data[from + c]! / 255 - imagenetMean[c]!) / imagenetDeviation[c]!
      }
  })
  return { values, shape: [drawn.length, height, width, 3], images: drawn.map(({ image }) => image) }
}
