/** Reading every image of a source without training. */
import { DenseclError } from '../tensor/errors.js'
import { interrupted } from '../tensor/interruption.js'
import { loadPixels, type Skipped, type Source } from './source.js'

interface DataReport {
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
  /** Images with a side below 32 pixels, or more than 8 times as long as wide. */
  odd: string[]
  /** What lies among the images and is not read. */
  skipped: Skipped[]
}

export async function checkSource(source: Source, onImage: (done: number) => void = () => undefined): Promise<DataReport> {
  const broken: DataReport['broken'] = []
  const odd: string[] = []
  const widths: number[] = []
  const heights: number[] = []
  let read = 0
  for (const item of source.items) {
    if (interrupted()) break
    try {
      const { width, height } = await loadPixels(item)
      widths.push(width)
      heights.push(height)
      if (Math.min(width, height) < 32 || Math.max(width, height) > 8 * Math.min(width, height)) odd.push(`${item.name} ${width}x${height}`)
    } catch (error) {
      if (!(error instanceof DenseclError)) throw error
      broken.push({ name: item.name, reason: error.message })
    }
    onImage((read += 1))
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
    odd,
    skipped: source.skipped ?? [],
  }
}
