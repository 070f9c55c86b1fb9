import { createHash } from 'node:crypto'

import * as assert from 'uvu/assert'

import { type Resampling, resizeBytes } from '../../src/data/resizeBytes.js'
import type { Pixels } from '../../src/data/decode.js'
import { Random } from '../../src/tensor/random.js'
import { hasModules, python, runPython } from '../support/python.js'
import { suite, testWhere } from '../support/suite.js'

const test = suite('resizing bytes')
const hasPillow = hasModules(python, 'PIL', 'numpy')
const hasOpenCv = hasModules(python, 'cv2', 'numpy')

/** Noise, where every weight shows. */
function noise(seed: number, width: number, height: number): Pixels {
  const random = new Random(seed)
  return { width, height, data: Uint8Array.from({ length: width * height * 3 }, () => random.below(256)) }
}
const sizes = [
  [13, 9, 29, 40],
  [64, 48, 20, 17],
  [50, 40, 50, 13],
  [50, 40, 133, 40],
  [1, 7, 5, 3],
  [97, 31, 1, 1],
  [640, 427, 333, 222],
] as const

interface Case {
  pixels: Pixels
  w: number
  h: number
}

const hashOf = ({ data }: Pixels): string => createHash('sha256').update(data).digest('hex')

/** Hashes of what a library makes of images: `resized` is its expression for one, of which `image` is an array, `w` and `h` the size. */
function hashesOf(imports: string, resized: string, cases: readonly Case[]): string[] {
  const program = `
import sys, json, hashlib, base64
import numpy as np
${imports}
out = []
for width, height, w, h, data in json.load(sys.stdin):
    image = np.frombuffer(base64.b64decode(data), np.uint8).reshape(height, width, 3)
    out.append(hashlib.sha256(np.asarray(${resized}).tobytes()).hexdigest())
print(json.dumps(out))`
  const input = cases.map(({ pixels: { width, height, data }, w, h }) => [width, height, w, h, Buffer.from(data).toString('base64')])
  return JSON.parse(runPython(program, [], JSON.stringify(input))) as string[]
}

testWhere(hasPillow, `Pillow is not installed for ${python}`, test, 'with antialiasing every byte is Pillow’s', () => {
  const cases = sizes.map(([width, height, w, h], i) => ({ pixels: noise(i, width, height), w, h }))
  const expected = hashesOf('from PIL import Image', 'Image.fromarray(image).resize((w, h), Image.BILINEAR)', cases)
  cases.forEach(({ pixels, w, h }, i) => assert.is(hashOf(resizeBytes(pixels, w, h, 'antialiased')), expected[i], sizes[i]!.join(' ')))
})

test('both forms keep a constant image, commute with mirroring and transposing, and stay within what they read', () => {
  const mirrored = ({ width, height, data }: Pixels): Pixels => ({
    width,
    height,
    data: Uint8Array.from(
      data,
      (_, i) => data[(Math.floor(i / 3 / width) * width + width - 1 - (Math.floor(i / 3) % width)) * 3 + (i % 3)]!,
    ),
  })
  const transposed = ({ width, height, data }: Pixels): Pixels => ({
    width: height,
    height: width,
    data: Uint8Array.from(data, (_, i) => data[((Math.floor(i / 3) % height) * width + Math.floor(i / 3 / height)) * 3 + (i % 3)]!),
  })
  const worst = (a: Pixels, b: Pixels): number => a.data.reduce((most, value, i) => Math.max(most, Math.abs(value - b.data[i]!)), 0)
  for (const how of ['antialiased', 'fourTaps'] as Resampling[])
    for (const [i, [width, height, w, h]] of sizes.entries()) {
      const pixels = noise(i, width, height)
      const result = resizeBytes(pixels, w, h, how)
      assert.equal([result.width, result.height, result.data.length], [w, h, w * h * 3])
      assert.ok(resizeBytes({ ...pixels, data: pixels.data.fill(77).slice() }, w, h, how).data.every((value) => value === 77))
      const again = noise(i, width, height)
      // A pass rounds, and transposing turns the order of the passes.
      assert.ok(worst(mirrored(resizeBytes(again, w, h, how)), resizeBytes(mirrored(again), w, h, how)) <= 1)
      assert.ok(worst(transposed(resizeBytes(again, w, h, how)), resizeBytes(transposed(again), h, w, how)) <= 1)
      assert.is(resizeBytes(again, width, height, how), again)
    }
})

test('four taps of an enlarged edge are the weights of OpenCV', () => {
  const data = Uint8Array.from([0, 255].flatMap((value) => [value, value, value]))
  const { data: wide } = resizeBytes({ width: 2, height: 1, data }, 4, 1, 'fourTaps')
  assert.equal(
    [...wide].filter((_, i) => i % 3 === 0),
    [0, 64, 191, 255],
  )
})

/**
 * OpenCV's INTER_LINEAR of bytes from its definition, in doubles: output i lies at (i + 1/2) * from / to - 1/2, between two pixels, of
 * which those beyond the border are the border's; both weights of an axis are rounded to 11 bits. Of a row's sum 4 bits are left away, of
 * its product with the row's weight 16, and the sum of both is rounded.
 */
function linear({ width: from, height: rows, data }: Pixels, width: number, height: number): Uint8Array {
  const axis = (length: number, to: number): { first: number; weights: [number, number] }[] =>
    Array.from({ length: to }, (_, i) => {
      const place = ((i + 0.5) * length) / to - 0.5
      const first = Math.floor(place)
      const share = place - first
      return { first, weights: [Math.round((1 - share) * 2048), Math.round(share * 2048)] }
    })
  const within = (at: number, length: number): number => Math.min(length - 1, Math.max(0, at))
  const [xs, ys] = [axis(from, width), axis(rows, height)]
  return Uint8Array.from({ length: width * height * 3 }, (_, i) => {
    const [c, x, y] = [i % 3, xs[Math.floor(i / 3) % width]!, ys[Math.floor(i / 3 / width)]!]
    const kept = [0, 1].map((down) => {
      const row = within(y.first + down, rows) * from
      const sum = [0, 1].reduce((part, across) => part + x.weights[across]! * data[(row + within(x.first + across, from)) * 3 + c]!, 0)
      return Math.floor((Math.floor(sum / 16) * y.weights[down]!) / 2 ** 16)
    })
    return Math.floor((kept[0]! + kept[1]! + 2) / 4)
  })
}
const more = [
  [40, 30, 20, 15],
  [3, 2, 4000, 1],
  [33, 65, 17, 130],
  [500, 375, 1067, 800],
] as const

/**
 * Positions are floats in OpenCV and here, doubles in the reference: where a weight is at a half it becomes another one, which moves a
 * sum by an eighth of a byte at most. Where the scale is a power of two both are exact. A build of OpenCV whose processor has kernels of
 * their own (IPP, ARM) may be another byte off.
 */
test('four taps are the definition of OpenCV’s bilinear resize', () => {
  for (const [i, [width, height, w, h]] of ([...sizes, ...more, [40, 24, 160, 12], [16, 64, 64, 16]] as const).entries()) {
    const pixels = noise(i, width, height)
    const { data } = resizeBytes(pixels, w, h, 'fourTaps')
    let different = 0
    linear(pixels, w, h).forEach((value, at) => {
      assert.ok(Math.abs(value - data[at]!) <= 1, `${value} instead of ${data[at]}`)
      different += Number(value !== data[at])
    })
    const exact = [w / width, h / height].every((scale) => Number.isInteger(Math.log2(scale)))
    assert.ok(different <= (exact ? 0 : 0.005 * data.length), `${different} of ${data.length} at ${width} ${height} ${w} ${h}`)
  }
})

testWhere(hasOpenCv, `OpenCV is not installed for ${python}`, test, 'with four taps every byte is OpenCV’s', () => {
  const cases = [...sizes, ...more].map(([width, height, w, h], i) => ({ pixels: noise(i, width, height), w, h }))
  const expected = hashesOf('import cv2', 'cv2.resize(image, (w, h), interpolation=cv2.INTER_LINEAR)', cases)
  cases.forEach(({ pixels, w, h }, i) => assert.is(hashOf(resizeBytes(pixels, w, h, 'fourTaps')), expected[i], `case ${i}`))
})

test.run()
