/** The augmentation on the device under test: all views of a batch in one call, against the CPU's, which is torchvision's. */
import * as assert from 'uvu/assert'

import {
  maxBlurSigma,
  mocoV2Augmentation,
  type PlacedView,
  randomView,
  renderTable,
  renderViews,
  tableColumns,
  tableRow,
  wholeImage,
} from '../../src/data/augment.js'
import { Loader } from '../../src/data/loader.js'
import { pixelsOfCrops } from '../../src/data/ring.js'
import { scene } from '../../src/data/scenes.js'
import { openSource } from '../../src/data/sources.js'
import { Random } from '../../src/tensor/random.js'
import { scope, Tensor } from '../../src/tensor/tensor.js'
import { device } from '../support/devices.js'
import { suite, throwsError } from '../support/suite.js'

const test = suite(`augment on ${device}`, device)

test("views of several images are the CPU's, in f32 and bf16", () => {
  const random = new Random(5)
  const pictures = [0, 1, 2].map((i) => scene(9, i).pixels)
  let offset = 0
  const places = pictures.map((pixels) => {
    const place = { offset, height: pixels.height, width: pixels.width }
    offset += pixels.data.length
    return place
  })
  const packed = new Uint8Array(offset)
  pictures.forEach((pixels, i) => packed.set(pixels.data, places[i]!.offset))
  const whole = wholeImage(pictures[0]!)
  const views: PlacedView[] = [
    { ...places[0]!, view: whole },
    { ...places[1]!, view: { ...whole, flip: true, sigma: 1.9 } },
    {
      ...places[2]!,
      view: {
        ...whole,
        adjust: [
          { kind: 'contrast', value: 0.6 },
          { kind: 'contrast', value: 1.3 },
        ],
      },
    },
    { ...places[0]!, view: { ...whole, crop: { top: 30, left: 40, height: 9, width: 13 }, grayscale: true } },
    // More views than there are blocks on `simt`: some make several.
    ...Array.from({ length: 24 }, (_, i) => {
      const at = i % 3
      return {
        ...places[at]!,
        view: randomView(random, places[at]!.width, places[at]!.height, { ...mocoV2Augmentation, blurSigma: [0.5, 2] }),
      }
    }),
  ]
  for (const [height, width] of [
    [24, 20],
    [17, 33],
  ] as const) {
    const render = (where: string, dtype: 'f32' | 'bf16'): ArrayLike<number> =>
      scope(() => {
        const out = Tensor.empty([views.length + 1, height, width, 3], dtype, where)
        renderViews(out, 1, Tensor.from(packed, [packed.length], 'u8', where), views, false)
        return out.data().slice(height * width * 3)
      })
    const expected = render('cpu', 'f32')
    for (const dtype of ['f32', 'bf16'] as const) {
      const actual = render(device, dtype)
      // Hue and saturation divide by the range of a colour, which amplifies rounding near grey: 1/1000, and bf16's 2^-9.
      const bound = dtype === 'bf16' ? 1e-3 + 2 ** -9 : 1e-3
      for (let i = 0; i < expected.length; ++i)
        assert.ok(
          Math.abs(actual[i]! - expected[i]!) <= bound,
          `${dtype} view ${Math.floor(i / (height * width * 3))}: ${actual[i]} against ${expected[i]}`,
        )
    }
  }
})

test("the largest blur is the CPU's, and a larger one is refused: by the table, and by the kernel that reads one", () => {
  const { pixels } = scene(9, 1)
  const place = { offset: 0, height: pixels.height, width: pixels.width }
  const size = 140
  const render = (where: string, sigma: number): ArrayLike<number> =>
    scope(() => {
      const out = Tensor.empty([1, size, size, 3], 'f32', where)
      renderViews(
        out,
        0,
        Tensor.from(pixels.data, [pixels.data.length], 'u8', where),
        [{ ...place, view: { ...wholeImage(pixels), sigma } }],
        false,
      )
      return out.data()
    })
  const [expected, actual] = [render('cpu', maxBlurSigma), render(device, maxBlurSigma)]
  for (let i = 0; i < expected.length; ++i) assert.ok(Math.abs(actual[i]! - expected[i]!) <= 1e-4)
  for (const where of ['cpu', device])
    throwsError(() => render(where, 30), 'RANGE', 'augment: a blur of standard deviation 30: expected at most 21')
  scope(() => {
    // sigma and radius of a table that was made otherwise
    const row = tableRow({ ...place, view: { ...wholeImage(pixels), sigma: maxBlurSigma } }, false)
    row[9] = 30
    row[10] = 90
    const out = Tensor.empty([1, size, size, 3], 'f32', device)
    renderTable(out, 0, Tensor.from(pixels.data, [pixels.data.length], 'u8', device), Tensor.from(row, [1, tableColumns], 'f64', device))
    throwsError(() => out.data(), 'RANGE', 'augment: a blur that reaches 90 pixels: expected at most 63')
  })
})

test("images are reduced to what crops need, or to the pixels that are asked for; whole ones give the CPU's views", async () => {
  const { items } = await openSource('scenes:4')
  const { height, width } = scene(0, 0).pixels
  const imageSize = 16
  const augment = { ...mocoV2Augmentation, blur: 0, jitter: 0, grayscale: 0 }
  assert.ok(pixelsOfCrops(imageSize, augment) < height * width)
  const viewsOn = async (where: string, mostPixels: number | null): Promise<ArrayLike<number>> => {
    const loader = new Loader({ items, imageSize, batchSize: 4, views: 'augmented', augment, workers: 1, device: where, mostPixels })
    try {
      for await (const batch of loader.batches([{ epoch: 0, indices: Int32Array.of(0, 1, 2, 3) }])) {
        const views = batch.views()
        const values = views.flatMap((view) => Array.from(view.data()))
        for (const view of views) view.dispose()
        return values
      }
    } finally {
      await loader.close()
    }
    return []
  }
  const furthest = (a: ArrayLike<number>, b: ArrayLike<number>): number =>
    Array.from(a).reduce((most, value, i) => Math.max(most, Math.abs(value - b[i]!)), 0)
  const expected = await viewsOn('cpu', null)
  assert.is(expected.length, 2 * 4 * imageSize ** 2 * 3)
  assert.ok(furthest(expected, await viewsOn(device, height * width)) < 1e-2)
  assert.ok(furthest(expected, await viewsOn(device, null)) > 0.1)
})

test.run()
