/** Reading every image of a source without training. */
import { fail } from '../tensor/errors.js'
import { interrupted } from '../tensor/interruption.js'
import { type Box, type BoxFaults, type BoxItem, type BoxSource } from './boxes.js'
import { maskRuns } from './instanceMasks.js'
import { maskBounds } from './runLengths.js'
import { decode, type Pixels } from './decode.js'
import { splitsAsClasses } from './folderSource.js'
import { unusualForms } from './imageForm.js'
import { ReadAhead } from './readAhead.js'
import { isBroken, type Item, loadPixels, readItemBytes, type Skipped, Skips, type Source } from './source.js'

export interface DataReport {
  format: string
  /** Images that were read: all, unless it was interrupted. */
  images: number
  /** How many there are, where it was interrupted. */
  interruptedOf?: number
  classes?: Record<string, number>
  broken: { name: string; reason: string }[]
  /** Smallest, median and largest of width and height. */
  width?: [number, number, number]
  height?: [number, number, number]
  /** Of the pixels of all images that were read, of each channel, in 0..1. */
  mean?: number[]
  deviation?: number[]
  /** Images with a side below 32 pixels, or more than 8 times as long as wide. */
  odd: string[]
  /** Images that are not stored as RGB of 8 bits, by what they are and what reading makes of them. */
  forms: Skipped[]
  /** What lies among the images and is not read. */
  skipped: Skipped[]
  /** What somebody would hardly want, with a remedy. */
  warnings: string[]
}

/** Mean and deviation of the pixels of many images, of each channel. */
class ChannelStatistics {
  #count = 0
  readonly #sums: Float64Array
  readonly #squares: Float64Array

  constructor(readonly channels: number) {
    ;[this.#sums, this.#squares] = [new Float64Array(channels), new Float64Array(channels)]
  }

  add({ width, height, data }: Pixels): void {
    for (let c = 0; c < this.channels; ++c) {
      // Whole numbers, which a sum of any order holds exactly.
      let [sum, square] = [0, 0]
      for (let i = c; i < data.length; i += this.channels) {
        const value = data[i]!
        sum += value
        square += value * value
      }
      this.#sums[c]! += sum
      this.#squares[c]! += square
    }
    this.#count += width * height
  }

  result(): Pick<DataReport, 'mean' | 'deviation'> {
    if (this.#count === 0) return {}
    const mean = Array.from(this.#sums, (sum) => sum / this.#count)
    const deviation = Array.from(this.#squares, (square, c) => Math.sqrt(Math.max(0, square / this.#count - mean[c]! ** 2)))
    return { mean: mean.map((value) => value / 255), deviation: deviation.map((value) => value / 255) }
  }
}

/** Images that are fetched before their turn. */
const expected = 32

/** Reads every image, with so many channels; `look` is given each that could be read, and what it throws makes the image a broken one. */
export async function checkSource(
  source: Source,
  onImage: (done: number) => void = () => undefined,
  look: (item: Item, pixels: Pixels) => void = () => undefined,
  channels = 3,
): Promise<DataReport> {
  const pixelsOf = new ChannelStatistics(channels)
  const broken: DataReport['broken'] = []
  const forms = new Skips()
  const odd: string[] = []
  const widths: number[] = []
  const heights: number[] = []
  let read = 0
  const ahead = new ReadAhead()
  try {
    for (const [i, item] of source.items.entries()) {
      if (interrupted()) break
      for (let next = i; next < Math.min(source.items.length, i + expected); ++next) ahead.expect(next, source.items[next]!)
      try {
        const pixels = await looked(item, forms, channels, ahead.take(i))
        const { width, height } = pixels
        look(item, pixels)
        pixelsOf.add(pixels)
        widths.push(width)
        heights.push(height)
        if (Math.min(width, height) < 32 || Math.max(width, height) > 8 * Math.min(width, height))
          odd.push(`${item.name} ${width}x${height}`)
      } catch (error) {
        if (!isBroken(error)) throw error
        broken.push({ name: item.name, reason: error.message })
      }
      onImage((read += 1))
    }
  } finally {
    ahead.stop()
  }
  const three = (values: number[]): [number, number, number] => {
    const sorted = values.sort((a, b) => a - b)
    return [sorted[0]!, sorted[Math.floor(sorted.length / 2)]!, sorted.at(-1)!]
  }
  const counts = new Array<number>(source.classes?.length ?? 0).fill(0)
  for (const { label } of source.items.slice(0, read)) if (label !== undefined && label < counts.length) counts[label]! += 1
  return {
    format: source.format,
    images: read,
    ...(read < source.items.length ? { interruptedOf: source.items.length } : {}),
    ...(source.classes === undefined ? {} : { classes: Object.fromEntries(source.classes.map((name, label) => [name, counts[label]!])) }),
    broken,
    ...(widths.length === 0 ? {} : { width: three(widths), height: three(heights) }),
    ...pixelsOf.result(),
    odd,
    forms: forms.list(),
    skipped: source.skipped ?? [],
    warnings: splitsAsClasses(source),
  }
}

/** The pixels of an item, whose form is counted where colour images are wanted. */
async function looked(item: Item, forms: Skips, channels: number, ahead: Promise<Buffer> | undefined): Promise<Pixels> {
  if (item.kind === 'scene' || channels !== 3) return loadPixels(item, undefined, channels, ahead)
  const bytes = await (ahead ?? readItemBytes(item))
  const pixels = await decode(bytes, item.name)
  for (const form of await unusualForms(bytes, item.name)) forms.add(form, item.name)
  return pixels
}

/** What the objects of a data set with boxes are. */
export interface BoxReport extends DataReport {
  /** Objects of each class, and how many of them are difficult or crowds. */
  objects: Record<string, { objects: number; difficult: number; crowd: number }>
  /** Images that have no object. */
  withoutObjects: number
  /** What makes the data unusable beside broken images, and what is only odd: sorts, counted, the first of each named. */
  errors: Skipped[]
  notes: Skipped[]
}

/** How far a box reaches beyond an image, in pixels. */
const beyond = ([x1, y1, x2, y2]: Box, { width, height }: { width: number; height: number }): number =>
  Math.max(0, -x1, -y1, x2 - width, y2 - height)

/** How far sides of a mask and of its box may be apart, in pixels, before somebody should look. */
const apart = 5

/** What is odd with a mask; undefined where nothing is. */
function oddMask({ mask, box }: BoxItem['objects'][number], image: { width: number; height: number }): string | undefined {
  if (mask === undefined) return undefined
  const [x, y, width, height] = maskBounds(maskRuns(mask, image))
  if (width === 0) return 'mask without a pixel'
  const far = [x, y, x + width, y + height].some((side, i) => Math.abs(side - box[i]!) > apart)
  return far ? `mask whose sides are more than ${apart} px from those of its box` : undefined
}

/** Reads every image of a data set with boxes and looks at their objects. `faults` are those that opening it found. */
export async function checkBoxes(source: BoxSource, faults: BoxFaults, onImage?: (done: number) => void): Promise<BoxReport> {
  const { items, classes, layout, skipped } = source
  const counts = classes.map(() => ({ objects: 0, difficult: 0, crowd: 0 }))
  const { notes } = faults
  for (const item of items) {
    const seen = new Set<string>()
    for (const object of item.objects) {
      const { label, box, difficult, crowd } = object
      counts[label]!.objects += 1
      counts[label]!.difficult += Number(difficult)
      counts[label]!.crowd += Number(crowd)
      const what = `${classes[label]} of ${item.name}`
      const far = beyond(box, item)
      if (far > 0) notes.add('box that reaches beyond its image', `${what} by ${Number(far.toFixed(2))} px`)
      const odd = oddMask(object, item)
      if (odd !== undefined) notes.add(odd, what)
      const key = [label, ...box].join()
      if (seen.has(key)) notes.add('box that is there twice', what)
      seen.add(key)
    }
  }
  classes.forEach((name, label) => {
    if (counts[label]!.objects === 0) notes.add('class without boxes', name)
  })
  const images = await checkSource({ format: `${layout} boxes`, items, skipped }, onImage, (item, { width, height }) => {
    const stated = item as BoxItem
    if (width !== stated.width || height !== stated.height)
      fail('DATA', `${item.name}: the image has ${width}x${height} pixels but its annotation says ${stated.width}x${stated.height}`)
  })
  return {
    ...images,
    objects: Object.fromEntries(classes.map((name, label) => [name, counts[label]!])),
    withoutObjects: items.filter(({ objects }) => objects.length === 0).length,
    errors: faults.errors.list(),
    notes: notes.list(),
  }
}
