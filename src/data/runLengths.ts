/** Masks of objects as COCO keeps them: lengths of runs, column by column. */

/**
 * A mask of height x width pixels: lengths of runs of equal pixels, each column from the top, the columns from the left. The first run is
 * of zeros, which may be none; their sum is height * width.
 */
export interface RunLengths {
  height: number
  width: number
  counts: Uint32Array
}

/** Collects runs; those of no length vanish, and their neighbours become one. */
class RunWriter {
  readonly #counts: number[] = [0]

  add(value: boolean, length: number): void {
    if (length === 0) return
    if (value === (this.#counts.length % 2 === 0)) this.#counts[this.#counts.length - 1]! += length
    else this.#counts.push(length)
  }

  finish = (height: number, width: number): RunLengths => ({ height, width, counts: Uint32Array.from(this.#counts) })
}

/** Rows and columns of pixels, without the last ones. */
export interface PixelRange {
  left: number
  top: number
  right: number
  bottom: number
}

/** The mask of pixels [height, width], row-major, those that are not 0; where a range is given, all others are taken for 0. */
export function encodeMask(pixels: Uint8Array, height: number, width: number, range?: PixelRange): RunLengths {
  const { left, top, right, bottom } = range ?? { left: 0, top: 0, right: width, bottom: height }
  const places: number[] = []
  for (let x = left; x < right; ++x) {
    let before = true
    for (let y = top; y < bottom; ++y) {
      const zero = pixels[y * width + x] === 0
      if (zero !== before) places.push(x * height + y)
      before = zero
    }
    if (!before) places.push(x * height + bottom)
  }
  return runsBetween(Uint32Array.from(places), height, width)
}

/** The pixels [height, width], row-major, of a mask: 0 or 1. */
export function decodeMask({ height, width, counts }: RunLengths): Uint8Array {
  const pixels = new Uint8Array(height * width)
  forEachColumnRun({ height, counts }, (x, from, until) => {
    for (let y = from; y < until; ++y) pixels[y * width + x] = 1
  })
  return pixels
}

/** Calls `visit` with each run of ones within a column: x, the first y and the one after the last. */
export function forEachColumnRun(
  { height, counts }: Pick<RunLengths, 'height' | 'counts'>,
  visit: (x: number, from: number, until: number) => void,
): void {
  let at = 0
  counts.forEach((length, i) => {
    const end = at + length
    if (i % 2 === 1)
      while (at < end) {
        const x = Math.floor(at / height)
        const until = Math.min(end, (x + 1) * height)
        visit(x, at - x * height, until - x * height)
        at = until
      }
    at = end
  })
}

/** The mask whose value changes at each of `places`, indices of pixels column by column in ascending order; two at one place cancel. */
export function runsBetween(places: Uint32Array, height: number, width: number): RunLengths {
  const writer = new RunWriter()
  let value = false
  let from = 0
  for (const place of places) {
    writer.add(value, place - from)
    value = !value
    from = place
  }
  writer.add(value, height * width - from)
  return writer.finish(height, width)
}

/** The union of masks of one size. */
export const uniteMasks = (masks: readonly [RunLengths, ...RunLengths[]]): RunLengths => masks.reduce(unite)

function unite(a: RunLengths, b: RunLengths): RunLengths {
  const writer = new RunWriter()
  forEachCommonRun(a, b, (inA, inB, length) => writer.add(inA || inB, length))
  return writer.finish(a.height, a.width)
}

/** Calls `visit` with the runs in which neither of two masks of one size changes. */
function forEachCommonRun(a: RunLengths, b: RunLengths, visit: (inA: boolean, inB: boolean, length: number) => void): void {
  let [i, j] = [0, 0]
  let [leftA, leftB] = [a.counts[0]!, b.counts[0]!]
  for (;;) {
    const length = Math.min(leftA, leftB)
    visit(i % 2 === 1, j % 2 === 1, length)
    leftA -= length
    leftB -= length
    if (leftA === 0) {
      if (++i === a.counts.length) return
      leftA = a.counts[i]!
    }
    if (leftB === 0) {
      if (++j === b.counts.length) return
      leftB = b.counts[j]!
    }
  }
}

/** The number of pixels of a mask. */
export const maskArea = ({ counts }: RunLengths): number => counts.reduce((sum, length, i) => (i % 2 === 1 ? sum + length : sum), 0)

/** The number of pixels that two masks of one size share. */
export function sharedArea(a: RunLengths, b: RunLengths): number {
  let area = 0
  forEachCommonRun(a, b, (inA, inB, length) => {
    if (inA && inB) area += length
  })
  return area
}

/** The corner and sides of the rectangle around a mask, in pixels; zeros where it is empty. */
export function maskBounds(mask: RunLengths): [x: number, y: number, width: number, height: number] {
  let [left, top, right, bottom] = [mask.width, mask.height, 0, 0]
  forEachColumnRun(mask, (x, from, until) => {
    left = Math.min(left, x)
    right = Math.max(right, x + 1)
    top = Math.min(top, from)
    bottom = Math.max(bottom, until)
  })
  return right === 0 ? [0, 0, 0, 0] : [left, top, right - left, bottom - top]
}

/**
 * Runs as COCO's string: from the fourth run on differences to the one of the same value before, each in groups of five bits, the lowest
 * first, a sixth bit where more follow; as characters from "0" on.
 */
export function writeRuns(counts: Uint32Array): string {
  let text = ''
  counts.forEach((length, i) => {
    let rest = i > 2 ? length - counts[i - 2]! : length
    for (let more = true; more;) {
      const bits = rest & 31
      rest >>= 5
      more = (bits & 16) !== 0 ? rest !== -1 : rest !== 0
      text += String.fromCharCode(48 + bits + (more ? 32 : 0))
    }
  })
  return text
}

/** The numbers of COCO's string of runs, which may be anything where the string is damaged; undefined where it ends within one. */
export function readRuns(text: string): number[] | undefined {
  const counts: number[] = []
  for (let at = 0; at < text.length;) {
    let value = 0
    let scale = 1
    for (let more = true; more; ++at) {
      const bits = text.charCodeAt(at) - 48
      if (!(bits >= 0 && bits < 64)) return undefined
      value += (bits & 31) * scale
      scale *= 32
      more = (bits & 32) !== 0
      if (!more && (bits & 16) !== 0) value -= scale
    }
    counts.push(counts.length > 2 ? value + counts.at(-2)! : value)
  }
  return counts
}
