import { writeFileSync } from 'node:fs'
import { join } from 'node:path'

import * as assert from 'uvu/assert'

import {
  mocoV2Augmentation,
  pixelTensor,
  randomCrop,
  randomView,
  renderInto,
  renderView,
  renderViews,
  type ViewParameters,
  wholeImage,
} from '../../src/data/augment.js'
import type { Pixels } from '../../src/data/decode.js'
import { scene } from '../../src/data/scenes.js'
import { native } from '../../src/tensor/native.js'
import { Random } from '../../src/tensor/random.js'
import { scope, Tensor } from '../../src/tensor/tensor.js'
import { resolveConfig } from '../../src/methods/index.js'
import { hasTorch, noTorch, runPython } from '../support/python.js'
import { suite, testWhere, throwsError, withFolder } from '../support/suite.js'

const test = suite('augment')

function render(pixels: Pixels, view: ViewParameters, [height, width]: [number, number]): Float32Array {
  return scope(() => {
    const out = Tensor.empty([1, height, width, 3])
    renderView(out, 0, pixelTensor(pixels), view, false)
    return out.data() as Float32Array
  })
}

const { pixels } = scene(5, 3)

test('crops lie in the image and have the area and aspect asked for', () => {
  const random = new Random(1)
  for (let i = 0; i < 2000; ++i) {
    const [w, h] = [1 + random.below(300), 1 + random.below(300)]
    const crop = randomCrop(random, w, h, [0.2, 1], [3 / 4, 4 / 3])
    assert.ok(
      crop.width >= 1 && crop.height >= 1 && crop.top >= 0 && crop.left >= 0 && crop.top + crop.height <= h && crop.left + crop.width <= w,
    )
    if (w > 50 && h > 50 && w < 1.3 * h && h < 1.3 * w) {
      assert.ok((crop.width * crop.height) / (w * h) > 0.18)
      assert.ok(crop.width / crop.height > 0.7 && crop.width / crop.height < 1.4)
    }
  }
  assert.equal(randomCrop(random, 20000, 10, [0.9, 1], [3 / 4, 4 / 3]), { top: 0, left: 9993, width: 13, height: 10 })
})

test('a flip turns the picture, twice gives it back, and nothing else is drawn from the crop', () => {
  const whole = wholeImage(pixels)
  const plain = render(pixels, whole, [20, 24])
  const flipped = render(pixels, { ...whole, flip: true }, [20, 24])
  for (let y = 0; y < 20; ++y)
    for (let x = 0; x < 24; ++x) for (let c = 0; c < 3; ++c) assert.is(flipped[(y * 24 + x) * 3 + c], plain[(y * 24 + 23 - x) * 3 + c])
})

test('a mirrored view is the view, mirrored, whatever else is done', () => {
  const random = new Random(12)
  for (let i = 0; i < 30; ++i) {
    const view = { ...randomView(random, pixels.width, pixels.height, mocoV2Augmentation), flip: false }
    const [height, width] = [1 + random.below(60), 1 + random.below(60)]
    const plain = render(pixels, view, [height, width])
    render(pixels, { ...view, flip: true }, [height, width]).forEach((value, at) => {
      const [y, x, c] = [Math.floor(at / 3 / width), Math.floor(at / 3) % width, at % 3]
      assert.ok(Math.abs(value - plain[3 * (y * width + width - 1 - x) + c]!) < 1e-4)
    })
  }
})

/** The weights of an antialiased bilinear resize from `inputs` samples to one of `outputs`, written down from its definition. */
function triangle(output: number, inputs: number, outputs: number): number[] {
  const support = Math.max(1, inputs / outputs)
  const centre = ((output + 0.5) * inputs) / outputs
  const weights = Array.from({ length: inputs }, (_, i) => Math.max(0, 1 - Math.abs((i + 0.5 - centre) / support)))
  const sum = weights.reduce((a, b) => a + b)
  return weights.map((weight) => weight / sum)
}

test('a resize to any size is the triangle filter’s, row by row and column by column', () => {
  const { width, data } = pixels
  for (const [height, wide] of [
    [96, 96],
    [61, 200],
    [40, 47],
    [17, 23],
    [5, 9],
    [1, 2],
  ] as const) {
    const crop = { top: 3, left: 5, height: 80, width: 90 }
    const out = render(pixels, { ...wholeImage(pixels), crop }, [height, wide])
    for (let y = 0; y < height; y += 3) {
      const rows = triangle(y, crop.height, height)
      for (let x = 0; x < wide; ++x) {
        const columns = triangle(x, crop.width, wide)
        let sum = 0
        for (const [i, row] of rows.entries())
          if (row > 0) for (const [j, column] of columns.entries()) sum += row * column * data[3 * ((3 + i) * width + 5 + j)]!
        assert.ok(Math.abs(out[3 * (y * wide + x)]! - sum / 255) < 1e-5, `${height}x${wide} at ${y},${x}`)
      }
    }
  }
})

test('a view is written where it is wanted as it is made in a tensor, to the bit, and nothing beside it', () => {
  const random = new Random(3)
  const [height, width] = [20, 31]
  const floats = 3 * height * width
  const shared = new Float32Array(new SharedArrayBuffer(4 * (floats + 2))).fill(-7)
  for (let i = 0; i < 10; ++i) {
    const view = randomView(random, pixels.width, pixels.height, mocoV2Augmentation)
    renderInto(shared.subarray(1, 1 + floats), pixels, view, { height, width }, false)
    assert.equal(shared.slice(1, 1 + floats), render(pixels, view, [height, width]))
    assert.equal([shared[0], shared[floats + 1]], [-7, -7])
  }
  const whole = wholeImage(pixels)
  throwsError(() => renderInto(shared, pixels, whole, { height, width }), 'SHAPE', /3 floats for each pixel/)
  throwsError(() => renderInto(shared.subarray(0, floats), { ...pixels, data: new Uint8Array(9) }, whole, { height, width }), 'RANGE')
  const row = new Float64Array(24)
  throwsError(() => native.renderView(shared.subarray(0, floats), [height, width], pixels.data, row), 'SHAPE', /a row of 25 numbers/)
})

test('at the size of the crop nothing is resampled', () => {
  const same = render(pixels, wholeImage(pixels), [96, 96])
  same.forEach((value, i) => assert.ok(Math.abs(value * 255 - pixels.data[i]!) < 1e-3))
})

test('the shares of jitter, grey, blur and flip are those asked for', () => {
  const random = new Random(9)
  const views = Array.from({ length: 4000 }, () => randomView(random, 100, 100, mocoV2Augmentation))
  const share = (of: (view: ViewParameters) => boolean): number => views.filter(of).length / views.length
  // Four standard deviations of a share of 4000 are at most 0.032.
  for (const [actual, expected] of [
    [share((v) => v.adjust.length === 4), 0.8],
    [share((v) => v.grayscale), 0.2],
    [share((v) => v.sigma > 0), 0.5],
    [share((v) => v.flip), 0.5],
    [share((v) => v.adjust[0]?.kind === 'hue'), 0.2],
  ] as const)
    assert.ok(Math.abs(actual - expected) < 0.032, `${actual} ${expected}`)
})

test('a crop outside of the image, or an image outside of the pixels, is an error', () => {
  throwsError(
    () => render(pixels, { ...wholeImage(pixels), crop: { top: 90, left: 0, height: 10, width: 10 } }, [8, 8]),
    'RANGE',
    /outside/,
  )
  scope(() => {
    const place = { view: wholeImage(pixels), offset: 1, height: pixels.height, width: pixels.width }
    throwsError(() => renderViews(Tensor.empty([1, 8, 8, 3]), 0, pixelTensor(pixels), [place]), 'RANGE', /byte 1 reaches beyond/)
  })
})

const oracle = `
import sys, json, torch
from torchvision.transforms import functional as F
spec = json.load(open(sys.argv[1]))
image = torch.tensor(spec["pixels"], dtype=torch.uint8).reshape(spec["height"], spec["width"], 3).permute(2, 0, 1).float() / 255
adjust = {k: getattr(F, f"adjust_{k}") for k in ("brightness", "contrast", "saturation", "hue")}
out = []
for v in spec["views"]:
    c = v["crop"]
    x = F.resized_crop(image, c["top"], c["left"], c["height"], c["width"], spec["size"], F.InterpolationMode.BILINEAR, antialias=True)
    for a in v["adjust"]:
        x = adjust[a["kind"]](x, a["value"])
    if v["grayscale"]: x = F.rgb_to_grayscale(x, 3)
    if v["sigma"] > 0: x = F.gaussian_blur(x, 2 * v["radius"] + 1, v["sigma"])
    if v["flip"]: x = F.hflip(x)
    out.append(x.permute(1, 2, 0).flatten().tolist())
print(json.dumps(out))
`

testWhere(hasTorch, noTorch, test, 'each operation, and all of them, equal torchvision to 1/255', async () => {
  const random = new Random(4)
  const whole = wholeImage(pixels)
  const single = (more: Partial<ViewParameters>): ViewParameters => ({ ...whole, ...more })
  const views: ViewParameters[] = [
    single({ crop: { top: 11, left: 5, height: 70, width: 64 } }),
    single({ crop: { top: 30, left: 40, height: 9, width: 13 } }),
    single({ adjust: [{ kind: 'brightness', value: 1.37 }] }),
    single({ adjust: [{ kind: 'contrast', value: 0.62 }] }),
    single({ adjust: [{ kind: 'saturation', value: 1.4 }] }),
    single({ adjust: [{ kind: 'hue', value: 0.1 }] }),
    single({ adjust: [{ kind: 'hue', value: -0.47 }] }),
    single({ grayscale: true }),
    single({ sigma: 1.7 }),
    single({ flip: true }),
    ...Array.from({ length: 20 }, () => randomView(random, pixels.width, pixels.height, mocoV2Augmentation)),
  ]
  const spec = {
    pixels: [...pixels.data],
    width: pixels.width,
    height: pixels.height,
    size: [40, 48],
    views: views.map((view) => ({ ...view, radius: Math.ceil(3 * view.sigma) })),
  }
  const expected = await withFolder((folder) => {
    writeFileSync(join(folder, 'spec.json'), JSON.stringify(spec))
    return JSON.parse(runPython(oracle, [join(folder, 'spec.json')])) as number[][]
  })
  views.forEach((view, i) => {
    const worst = render(pixels, view, [40, 48]).reduce((most, value, j) => Math.max(most, Math.abs(value - expected[i]![j]!)), 0)
    assert.ok(worst <= 1 / 255, `${JSON.stringify(view)} differs by ${worst * 255} / 255`)
  })
})

test('a configuration with a blur that no kernel holds is refused', () => {
  const config = (blurSigma: number[]): unknown =>
    resolveConfig([
      { key: 'data', value: 'scenes:8', from: 'test' },
      { key: 'blurSigma', value: blurSigma, from: 'test' },
    ])
  config([0.1, 21])
  throwsError(() => config([0.1, 30]), 'CONFIG', /blurSigma is \[0\.1, 30\]: expected at most 21/)
})

test.run()
