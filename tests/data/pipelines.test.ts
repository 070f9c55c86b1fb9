import fc from 'fast-check'
import * as assert from 'uvu/assert'

import { imagenetDeviation, imagenetMean, mocoV2Augmentation } from '../../src/data/augment.js'
import type { Pixels } from '../../src/data/decode.js'
import { cropAndFlip, renderPipeline } from '../../src/data/pipelines.js'
import { Random } from '../../src/tensor/random.js'
import { hasTorch, noTorch, runPython } from '../support/python.js'
import { suite, testWhere } from '../support/suite.js'

const test = suite('pipelines')
const options = { augment: cropAndFlip, lighting: 0 }
const pipelines = ['crop', 'shifted', 'centre', 'square'] as const

const picture = (seed: number, width: number, height: number): Pixels => {
  const random = new Random(seed)
  return { width, height, data: Uint8Array.from({ length: width * height * 3 }, () => random.below(256)) }
}
const plain = (values: Float32Array): number[] =>
  [...values].map((value, i) => (value * imagenetDeviation[i % 3]! + imagenetMean[i % 3]!) * 255)

test('a picture of one colour stays that colour, whatever is done with its place', () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 1, max: 90 }),
      fc.integer({ min: 1, max: 90 }),
      fc.constantFrom(...pipelines),
      fc.integer(),
      (width, height, pipeline, seed) => {
        const colour = [200, 90, 30]
        const pixels = { width, height, data: Uint8Array.from({ length: width * height * 3 }, (_, i) => colour[i % 3]!) }
        const values = plain(renderPipeline(pipeline, pixels, 16, new Random(seed), options))
        assert.is(values.length, 16 * 16 * 3)
        values.forEach((value, i) => assert.ok(Math.abs(value - colour[i % 3]!) < 0.6))
      },
    ),
    { numRuns: 60 },
  )
})

test('test transforms do not depend on the random stream, training transforms do', () => {
  const pixels = picture(1, 60, 45)
  for (const pipeline of pipelines) {
    const [a, b] = [1, 2].map((seed) => renderPipeline(pipeline, pixels, 28, new Random(seed), options))
    if (pipeline === 'centre' || pipeline === 'square') assert.equal(a, b)
    else assert.not.equal(a, b)
  }
})

test('a shifted view is a window of the central square, mirrored or not', () => {
  // At 28 pixels the square has 32.
  const pixels = picture(2, 50, 32)
  const square = renderPipeline('centre', { ...pixels }, 28, new Random(0), options)
  const centre = (y: number, x: number): string => square.subarray((y * 28 + x) * 3, (y * 28 + x) * 3 + 3).join()
  const places = new Set<string>()
  for (let seed = 0; seed < 60; ++seed) {
    const view = renderPipeline('shifted', pixels, 28, new Random(seed), options)
    const at = (y: number, x: number, flip: boolean): string =>
      view.subarray((y * 28 + (flip ? 27 - x : x)) * 3, (y * 28 + (flip ? 27 - x : x)) * 3 + 3).join()
    const found = [false, true].flatMap((flip) =>
      [-2, -1, 0, 1, 2].flatMap((dy) =>
        [-2, -1, 0, 1, 2].flatMap((dx) =>
          [5, 12, 20].every((y) => [4, 15, 23].every((x) => at(y, x, flip) === centre(y + dy, x + dx))) ? [`${flip} ${dy} ${dx}`] : [],
        ),
      ),
    )
    assert.is(found.length, 1)
    places.add(found[0]!)
  }
  assert.ok(places.size > 20)
})

test('lighting adds one colour to a whole view, of the size of its deviation', () => {
  const pixels = picture(3, 40, 40)
  const shifts = Array.from({ length: 200 }, (_, seed) => {
    const [dark, lit] = [0, 0.1].map((lighting) => renderPipeline('crop', pixels, 16, new Random(seed), { ...options, lighting })) as [
      Float32Array,
      Float32Array,
    ]
    const shift = [0, 1, 2].map((c) => lit[c]! - dark[c]!)
    lit.forEach((value, i) => assert.ok(Math.abs(value - dark[i]! - shift[i % 3]!) < 1e-5))
    return shift.map((value, c) => value * imagenetDeviation[c]!)
  })
  // The first principal axis has variance 0.2175 and is nearly grey: each channel moves by about 0.1 * 0.2175 * 0.57.
  const deviation = Math.sqrt(shifts.reduce((sum, [r]) => sum + r! ** 2, 0) / shifts.length)
  assert.ok(deviation > 0.009 && deviation < 0.017, String(deviation))
})

test('the colours of ImageNet’s protocol are always jittered, those of the other never', () => {
  const pixels = picture(4, 40, 40)
  const whole = { ...cropAndFlip, cropScale: [1, 1] as const, cropRatio: [1, 1] as const, flip: 0 }
  const original = renderPipeline('crop', pixels, 40, new Random(1), { augment: whole, lighting: 0 })
  assert.equal(renderPipeline('crop', pixels, 40, new Random(2), { augment: whole, lighting: 0 }), original)
  for (let seed = 0; seed < 20; ++seed)
    assert.not.equal(
      renderPipeline('crop', pixels, 40, new Random(seed), {
        augment: { ...whole, jitter: 1, hue: 0, brightness: mocoV2Augmentation.brightness },
        lighting: 0,
      }),
      original,
    )
})

testWhere(hasTorch, noTorch, test, 'the test transforms are torchvision’s', () => {
  const [width, height] = [70, 50]
  const pixels = picture(5, width, height)
  // Smooth pictures: Pillow rounds each pass to bytes.
  for (let i = 0; i < pixels.data.length; ++i) pixels.data[i] = 128 + 100 * Math.sin(i / 37 + ((i % 3) * Math.PI) / 3)
  const program = `
import json, sys
import numpy as np
from PIL import Image
from torchvision import transforms as T
image = Image.fromarray(np.array(json.loads(sys.argv[1]), dtype=np.uint8).reshape(${height}, ${width}, 3))
out = {'centre': T.Compose([T.Resize(32), T.CenterCrop(28)])(image), 'square': T.Compose([T.Resize(32), T.Resize((28, 28))])(image)}
print(json.dumps({k: np.asarray(v).reshape(-1).tolist() for k, v in out.items()}))`
  const expected = JSON.parse(runPython(program, [JSON.stringify([...pixels.data])])) as Record<'centre' | 'square', number[]>
  for (const name of ['centre', 'square'] as const) {
    const values = plain(renderPipeline(name, pixels, 28, new Random(0), options))
    const worst = Math.max(...values.map((value, i) => Math.abs(value - expected[name][i]!)))
    assert.ok(worst < 2.5, `${name}: ${worst}`)
  }
})

test.run()
