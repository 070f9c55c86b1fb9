/** Bilinear resizing of 8-bit images as the two libraries do it whose rounding detectors were trained with. */
import type { Pixels } from './decode.js'

/**
 * - `antialiased`: PIL's; the triangle filter widens with the scale when an image shrinks, each pass is rounded to bytes
 * - `fourTaps`: OpenCV's INTER_LINEAR; the four nearest pixels, whatever the scale, weights of 11 bits
 */
export type Resampling = 'antialiased' | 'fourTaps'

/** An image at another size. A side that stays as it is costs nothing. */
export function resizeBytes(pixels: Pixels, width: number, height: number, resampling: Resampling): Pixels {
  if (width === pixels.width && height === pixels.height) return pixels
  if (resampling === 'fourTaps') return fourTaps(pixels, width, height)
  const wide = width === pixels.width ? pixels : resizedRows(pixels, width)
  return height === wide.height ? wide : resizedColumns(wide, height)
}

/** For each output the first input, and its weights in 22 bits, `taps` of them, which sum to one. */
interface Filter {
  first: Int32Array
  weights: Int32Array
  taps: number
}

const precision = 22
const half = 1 << (precision - 1)

/** PIL's triangle filter: of support 1, or of the scale when the image shrinks (Pillow's Resample.c states the arithmetic). */
function triangle(from: number, to: number): Filter {
  const scale = from / to
  const support = Math.max(scale, 1)
  const taps = Math.ceil(support) * 2 + 1
  const first = new Int32Array(to)
  const weights = new Int32Array(to * taps)
  for (let i = 0; i < to; ++i) {
    const centre = (i + 0.5) * scale
    const low = Math.max(0, Math.trunc(centre - support + 0.5))
    const high = Math.min(from, Math.trunc(centre + support + 0.5))
    const drawn = Float64Array.from({ length: high - low }, (_, k) => Math.max(0, 1 - Math.abs((k + low - centre + 0.5) * (1 / support))))
    const sum = drawn.reduce((a, b) => a + b, 0)
    first[i] = low
    drawn.forEach((value, k) => (weights[i * taps + k] = Math.trunc(0.5 + (value / sum) * (1 << precision))))
  }
  return { first, weights, taps }
}

/** A sum of 22 fractional bits as a byte. */
const toByte = (sum: number): number => {
  const value = sum >> precision
  return value < 0 ? 0 : value > 255 ? 255 : value
}

function resizedRows({ data, width: from, height }: Pixels, width: number): Pixels {
  const { first, weights, taps } = triangle(from, width)
  const out = new Uint8Array(width * height * 3)
  for (let y = 0; y < height; ++y) {
    for (let x = 0; x < width; ++x) {
      let [r, g, b] = [half, half, half]
      let at = (y * from + first[x]!) * 3
      // Taps behind the last one weigh nothing, and may lie in the next row.
      for (let k = x * taps; k < (x + 1) * taps; ++k, at += 3) {
        const weight = weights[k]!
        if (weight === 0) continue
        r += weight * data[at]!
        g += weight * data[at + 1]!
        b += weight * data[at + 2]!
      }
      const to = (y * width + x) * 3
      out[to] = toByte(r)
      out[to + 1] = toByte(g)
      out[to + 2] = toByte(b)
    }
  }
  return { width, height, data: out }
}

function resizedColumns({ data, width, height: from }: Pixels, height: number): Pixels {
  const { first, weights, taps } = triangle(from, height)
  const row = width * 3
  const out = new Uint8Array(row * height)
  const sums = new Int32Array(row)
  for (let y = 0; y < height; ++y) {
    sums.fill(half)
    for (let k = 0; k < taps; ++k) {
      const weight = weights[y * taps + k]!
      if (weight === 0) continue
      const at = (first[y]! + k) * row
      for (let x = 0; x < row; ++x) sums[x]! += weight * data[at + x]!
    }
    for (let x = 0; x < row; ++x) out[y * row + x] = toByte(sums[x]!)
  }
  return { width, height, data: out }
}

/** Halves to the even neighbour, as the processor rounds and OpenCV with it. */
function toEven(value: number): number {
  const down = Math.floor(value)
  const rest = value - down
  return rest > 0.5 || (rest === 0.5 && down % 2 === 1) ? down + 1 : down
}

/** Two neighbours of each output and their weights in 11 bits; positions are those of half-pixel centres, floats as OpenCV's are. */
function neighbours(from: number, to: number): Record<'low' | 'high' | 'lowWeight' | 'highWeight', Int32Array> {
  const scale = 1 / (to / from)
  const at = Float32Array.from({ length: to }, (_, i) => (i + 0.5) * scale - 0.5)
  const first = Int32Array.from(at, Math.floor)
  const share = Float32Array.from(at, (value, i) => value - first[i]!)
  return {
    low: first.map((value) => Math.max(0, value)),
    high: first.map((value) => Math.min(from - 1, value + 1)),
    lowWeight: Int32Array.from(share, (value) => toEven(Math.fround(1 - value) * 2048)),
    highWeight: Int32Array.from(share, (value) => toEven(value * 2048)),
  }
}

/** In OpenCV's arithmetic: 4 of the 11 bits behind a byte of each row's sum are left away, then 16 of its product with the row's weight. */
function fourTaps({ data, width: from, height: rows }: Pixels, width: number, height: number): Pixels {
  const [xs, ys] = [neighbours(from, width), neighbours(rows, height)]
  const out = new Uint8Array(width * height * 3)
  for (let y = 0; y < height; ++y) {
    const [upper, lower] = [ys.low[y]! * from, ys.high[y]! * from]
    const [up, down] = [ys.lowWeight[y]!, ys.highWeight[y]!]
    for (let x = 0; x < width; ++x) {
      const [left, right] = [xs.low[x]! * 3, xs.high[x]! * 3]
      const [near, far] = [xs.lowWeight[x]!, xs.highWeight[x]!]
      for (let c = 0; c < 3; ++c) {
        const above = data[upper * 3 + left + c]! * near + data[upper * 3 + right + c]! * far
        const below = data[lower * 3 + left + c]! * near + data[lower * 3 + right + c]! * far
        out[(y * width + x) * 3 + c] = (((up * (above >> 4)) >> 16) + ((down * (below >> 4)) >> 16) + 2) >> 2
      }
    }
  }
  return { width, height, data: out }
}
