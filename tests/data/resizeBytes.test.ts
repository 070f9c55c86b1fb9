import { spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'

import * as assert from 'uvu/assert'

import { type Resampling, resizeBytes } from '../../src/data/resizeBytes.js'
import type { Pixels } from '../../src/data/decode.js'
import { Random } from '../../src/tensor/random.js'
import { python, runPython, suite, testWhere } from '../support/suite.js'

const test = suite('resizing bytes')
const hasPillow = spawnSync(python, ['-c', 'import PIL, numpy']).status === 0

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

testWhere(hasPillow, `Pillow is not installed for ${python}`, test, 'with antialiasing every byte is Pillow’s', () => {
  const cases = sizes.map(([width, height, w, h], i) => ({ pixels: noise(i, width, height), w, h }))
  const program = `
import sys, json, hashlib, base64
import numpy as np
from PIL import Image
out = []
for width, height, w, h, data in json.load(sys.stdin):
    image = Image.fromarray(np.frombuffer(base64.b64decode(data), np.uint8).reshape(height, width, 3))
    out.append(hashlib.sha256(np.asarray(image.resize((w, h), Image.BILINEAR)).tobytes()).hexdigest())
print(json.dumps(out))`
  const input = JSON.stringify(
    cases.map(({ pixels: { width, height, data }, w, h }) => [width, height, w, h, Buffer.from(data).toString('base64')]),
  )
  const expected = JSON.parse(runPython(program, [], input)) as string[]
  cases.forEach(({ pixels, w, h }, i) => {
    const actual = createHash('sha256')
      .update(resizeBytes(pixels, w, h, 'antialiased').data)
      .digest('hex')
    assert.is(actual, expected[i], sizes[i]!.join(' '))
  })
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

test.run()
