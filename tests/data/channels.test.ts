/** Images that are not RGB: grey, with alpha, of many channels; from the file to weights that know their images. */
import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

import sharp from 'sharp'
import * as assert from 'uvu/assert'

import {
  colourImages,
  greyImages,
  imageTensor,
  mocoV2Augmentation,
  randomView,
  renderChannels,
  wholeImage,
} from '../../src/data/augment.js'
import { checkSource } from '../../src/data/check.js'
import { channelsOf, decode, decodeChannels, type Pixels } from '../../src/data/decode.js'
import { Loader } from '../../src/data/loader.js'
import { openSource } from '../../src/data/sources.js'
import { evaluation } from '../../src/nn/layers.js'
import { ResNet } from '../../src/nn/resnet.js'
import { imagesOf } from '../../src/run/backbone.js'
import { Random } from '../../src/tensor/random.js'
import { scope, Tensor } from '../../src/tensor/tensor.js'
import { writeBackbone } from '../../src/weights/export.js'
import { importBackbone } from '../../src/weights/import.js'
import { rejectsError, runCli, suite, throwsError, withFolder } from '../support/suite.js'

const test = suite('images of any number of channels')

/** An array as numpy.save() writes it. */
function npy(shape: readonly number[], values: ArrayLike<number>, type: '|u1' | '<u2' | '<f4' = '|u1', fortran = false): Buffer {
  const sides = shape.length === 1 ? `${shape[0]},` : shape.join(', ')
  const text = `{'descr': '${type}', 'fortran_order': ${fortran ? 'True' : 'False'}, 'shape': (${sides}), }`
  const header = text.padEnd(117, ' ') + '\n'
  const head = Buffer.concat([Buffer.from('\x93NUMPY\x01\x00', 'latin1'), Buffer.from([header.length, 0]), Buffer.from(header, 'latin1')])
  const array = type === '|u1' ? Uint8Array.from(values) : type === '<u2' ? Uint16Array.from(values) : Float32Array.from(values)
  return Buffer.concat([head, Buffer.from(array.buffer)])
}

interface TiffForm {
  bits?: 8 | 16
  /** 1: grey, 2: red, green and blue come first. */
  photometric?: 1 | 2
  /** What the channels behind these are: 0 unspecified, 1 and 2 alpha. */
  extraKind?: 0 | 1 | 2
}

/** An uncompressed TIFF of bytes or 16-bit numbers, its channels side by side. */
function tiff(
  width: number,
  height: number,
  channels: number,
  values: readonly number[],
  { bits = 8, photometric = 1, extraKind = 0 }: TiffForm = {},
): Buffer {
  const pixels = bits === 8 ? Buffer.from(values) : Buffer.from(Uint16Array.from(values).buffer)
  const short = (numbers: readonly number[]): Buffer => Buffer.from(Uint16Array.from(numbers).buffer)
  const extra = channels - (photometric === 1 ? 1 : 3)
  const lists = [short(new Array<number>(channels).fill(bits)), short(new Array<number>(extra).fill(extraKind))]
  const places = [8 + pixels.length, 8 + pixels.length + lists[0]!.length]
  const entries: [tag: number, type: number, count: number, value: number][] = [
    [256, 3, 1, width],
    [257, 3, 1, height],
    [258, 3, channels, channels < 3 ? bits * 0x10001 : places[0]!],
    [259, 3, 1, 1],
    [262, 3, 1, photometric],
    [273, 4, 1, 8],
    [277, 3, 1, channels],
    [278, 3, 1, height],
    [279, 4, 1, pixels.length],
    [284, 3, 1, 1],
    ...(extra === 0 ? [] : [[338, 3, extra, extra < 3 ? extraKind * 0x10001 : places[1]!] as [number, number, number, number]]),
  ]
  const directory = Buffer.alloc(2 + 12 * entries.length + 4)
  directory.writeUInt16LE(entries.length, 0)
  entries.forEach(([tag, type, count, value], i) => {
    directory.writeUInt16LE(tag, 2 + 12 * i)
    directory.writeUInt16LE(type, 4 + 12 * i)
    directory.writeUInt32LE(count, 6 + 12 * i)
    directory.writeUInt32LE(value, 10 + 12 * i)
  })
  const head = Buffer.from([0x49, 0x49, 42, 0, 0, 0, 0, 0])
  head.writeUInt32LE(8 + pixels.length + lists[0]!.length + lists[1]!.length, 4)
  return Buffer.concat([head, pixels, ...lists, directory])
}

const drawn = (count: number, most = 256, seed = 1): number[] => {
  const random = new Random(seed)
  return Array.from({ length: count }, () => random.below(most))
}

test('every number of channels is read as what it is, as grey, or refused by name', async () => {
  const [width, height] = [5, 4]
  const of = (channels: number, most = 256): number[] => drawn(width * height * channels, most)
  const bands = of(9)
  const raw = (channels: 1 | 2 | 3 | 4) => sharp(Buffer.from(of(channels)), { raw: { width, height, channels } })
  /** `other`: what lies behind grey or the colours is no alpha. */
  const files: Record<string, { bytes: Buffer; channels: number; other?: true }> = {
    grey: { bytes: await raw(1).toColourspace('b-w').png().toBuffer(), channels: 1 },
    rgb: { bytes: await raw(3).png().toBuffer(), channels: 3 },
    rgba: { bytes: await raw(4).png().toBuffer(), channels: 4 },
    'rgba.tif': { bytes: tiff(width, height, 4, of(4), { photometric: 2, extraKind: 2 }), channels: 4 },
    'two.tif': { bytes: tiff(width, height, 2, of(2)), channels: 2, other: true },
    'four.tif': { bytes: tiff(width, height, 4, of(4)), channels: 4, other: true },
    'infrared.tif': { bytes: tiff(width, height, 4, of(4), { photometric: 2 }), channels: 4, other: true },
    'nine.tif': { bytes: tiff(width, height, 9, bands), channels: 9, other: true },
    'nine.npy': { bytes: npy([height, width, 9], bands), channels: 9 },
    'one.npy': { bytes: npy([height, width], of(1)), channels: 1 },
    'three.npy': { bytes: npy([height, width, 3], of(3)), channels: 3 },
  }
  for (const [name, { bytes, channels, other = false }] of Object.entries(files)) {
    for (const wanted of [1, 2, 3, 4, 9]) {
      const readable = wanted === channels || ((wanted === 3 || wanted === 1) && channels <= 4 && !other)
      if (!readable) {
        await rejectsError(() => decodeChannels(bytes, name, wanted), 'DECODE', new RegExp(name), new RegExp(`${channels} channel`))
        continue
      }
      const pixels = await decodeChannels(bytes, name, wanted)
      assert.equal([pixels.width, pixels.height, channelsOf(pixels), pixels.data.length], [width, height, wanted, width * height * wanted])
      if (wanted === channels) assert.equal([...pixels.data], of(channels), `${name} as it is`)
    }
  }
  const colours = await decode(files.rgb!.bytes, 'rgb')
  const grey = await decodeChannels(files.rgb!.bytes, 'rgb', 1)
  for (let i = 0; i < width * height; ++i) {
    const [r, g, b] = colours.data.subarray(3 * i, 3 * i + 3)
    assert.is(grey.data[i], Math.floor(0.299 * r! + 0.587 * g! + 0.114 * b! + 0.5))
  }
  const wide = of(9, 65536)
  const byte = (value: number): number => Math.floor((value + 128) / 257)
  for (const bytes of [tiff(width, height, 9, wide, { bits: 16 }), npy([height, width, 9], wide, '<u2')])
    assert.equal([...(await decodeChannels(bytes, 'wide', 9)).data], wide.map(byte))
})

test('damaged arrays are refused with what was expected', async () => {
  const good = npy([2, 3, 9], drawn(54))
  for (const [bytes, word] of [
    [good.subarray(0, 9), /cut off/],
    [good.subarray(0, 150), /expected 54 numbers/],
    [npy([2, 3, 9], drawn(54), '<f4'), /uint8/],
    [npy([2, 3, 9], drawn(54), '|u1', true), /C order/],
    [npy([54], drawn(54)), /\[height, width, channels\] but it is \[54\]/],
    [npy([0, 3, 9], []), /\[0, 3, 9\]/],
    [npy([60000, 60000, 9], []), /more than/],
    [Buffer.concat([good.subarray(0, 10), Buffer.alloc(118)]), /header of the array is damaged/],
  ] as const)
    await rejectsError(() => decodeChannels(bytes, 'x.npy', 9), 'DECODE', /x\.npy/, word)
})

test('a view of nine channels is the view of each, and one of grey that of RGB', () => {
  const [width, height] = [40, 30]
  const nine: Pixels = { width, height, channels: 9, data: Uint8Array.from(drawn(width * height * 9)) }
  const format = { channels: 9, mean: [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9], deviation: new Array<number>(9).fill(0.25) }
  const size = { height: 16, width: 16 }
  const view = randomView(new Random(4), width, height, { ...mocoV2Augmentation, jitter: 1, blur: 1 })
  const all = renderChannels(nine, view, size, format)
  const brightness = { ...view, adjust: view.adjust.filter(({ kind }) => kind === 'brightness') }
  for (let c = 0; c < 9; ++c) {
    const own = { width, height, channels: 1, data: nine.data.filter((_, i) => i % 9 === c) }
    const alone = renderChannels(own, brightness, size, { channels: 1, mean: [format.mean[c]!], deviation: [0.25] })
    alone.forEach((value, i) => assert.is(all[9 * i + c], value))
  }
  const grey: Pixels = { width, height, channels: 1, data: Uint8Array.from(drawn(width * height)) }
  const asRgb = { width, height, data: Uint8Array.from({ length: 3 * grey.data.length }, (_, i) => grey.data[Math.floor(i / 3)]!) }
  const same = { mean: [0.4, 0.4, 0.4], deviation: [0.2, 0.2, 0.2] }
  const one = renderChannels(grey, view, size, { channels: 1, mean: [0.4], deviation: [0.2] })
  const three = renderChannels(asRgb, view, size, { channels: 3, ...same })
  // Colour adjustments leave grey as it is, but for rounding.
  one.forEach((value, i) => assert.ok(Math.abs(value - three[3 * i]!) < 2e-3, `${value} ${three[3 * i]}`))
  throwsError(() => renderChannels(grey, view, size, colourImages), 'SHAPE', /3 channels/, /received 1/)
})

/** Two classes of arrays: which channels are bright tells them apart. */
function writeArrays(folder: string, channels: number, each = 12): void {
  for (const [label, name] of ['dark', 'bright'].entries()) {
    mkdirSync(join(folder, name), { recursive: true })
    for (let i = 0; i < each; ++i) {
      const noise = drawn(32 * 32 * channels, 100, 10 * i + label)
      const values = noise.map((value, at) => value + (at % channels === channels - 1 ? 150 * label : 20))
      writeFileSync(join(folder, name, `${i}.npy`), npy(channels === 1 ? [32, 32] : [32, 32, channels], values))
    }
  }
}

test('mean and deviation are those of all pixels, and normalise them to 0 and 1', () =>
  withFolder(async (folder) => {
    writeArrays(folder, 9, 3)
    const source = await openSource(folder)
    const { mean, deviation, broken } = await checkSource(source, undefined, undefined, 9)
    assert.equal(broken, [])
    const pixels = await Promise.all(
      source.items.map(async (item) => (await import('../../src/data/source.js')).loadPixels(item, undefined, 9)),
    )
    for (let c = 0; c < 9; ++c) {
      const values = pixels.flatMap(({ data }) => [...data.filter((_, i) => i % 9 === c)].map((value) => value / 255))
      const average = values.reduce((a, b) => a + b) / values.length
      assert.ok(Math.abs(mean![c]! - average) < 1e-9)
      assert.ok(Math.abs(deviation![c]! - Math.sqrt(values.reduce((a, b) => a + (b - average) ** 2, 0) / values.length)) < 1e-9)
    }
    const images = { channels: 9, mean: mean!, deviation: deviation! }
    const whole = pixels.map((each) => renderChannels(each, wholeImage(each), { height: 32, width: 32 }, images))
    for (let c = 0; c < 9; ++c) {
      const values = whole.flatMap((view) => [...view.filter((_, i) => i % 9 === c)])
      const average = values.reduce((a, b) => a + b) / values.length
      const spread = Math.sqrt(values.reduce((a, b) => a + b * b, 0) / values.length - average * average)
      assert.ok(Math.abs(average) < 1e-4 && Math.abs(spread - 1) < 1e-4, `channel ${c}: ${average} ${spread}`)
    }
    const loader = new Loader({ items: source.items, imageSize: 32, batchSize: 6, views: 'augmented', images, workers: 1 })
    for await (const batch of loader.batches([{ epoch: 0, indices: Int32Array.of(0, 1, 2, 3, 4, 5) }])) {
      const views = batch.views()
      assert.equal(
        views.map(({ shape }) => shape),
        [
          [6, 32, 32, 9],
          [6, 32, 32, 9],
        ],
      )
      for (const view of views) view.dispose()
    }
    await loader.close()
  }))

test('check-data prints them, and names an image of nine channels among colour images', () =>
  withFolder(async (folder) => {
    const photos = join(folder, 'photos')
    mkdirSync(photos)
    for (let i = 0; i < 3; ++i)
      writeFileSync(
        join(photos, `${i}.png`),
        await sharp(Buffer.from(drawn(40 * 40 * 3)), { raw: { width: 40, height: 40, channels: 3 } })
          .png()
          .toBuffer(),
      )
    writeFileSync(join(photos, 'odd.tif'), tiff(40, 40, 9, drawn(40 * 40 * 9)))
    writeFileSync(join(photos, 'features.npy'), npy([4, 4], drawn(16)))
    const { code, out } = runCli(['check-data', photos])
    assert.is(code, 1)
    assert.match(out, /odd\.tif: has 9 channels: expected a grey or colour image/)
    assert.match(out, /mean \[0\.\d{4},0\.\d{4},0\.\d{4}\] deviation \[0\.\d{4},/)
    assert.match(out, /1 skipped \(array among images\): .*features\.npy/)
    const nine = runCli(['check-data', photos, '--channels', '9', '--json'])
    const report = JSON.parse(nine.out) as { broken: { reason: string }[]; mean: number[] }
    assert.is(report.broken.length, 3, JSON.stringify(report.broken))
    assert.match(report.broken[0]!.reason, /has 3 channels: expected 9/)
    assert.is(report.mean.length, 9)
  }))

test('a stem of RGB becomes one of other channels that gives the same for the same images', () =>
  withFolder((folder) => {
    const path = join(folder, 'rgb.safetensors')
    const backbone = new ResNet({ random: new Random(5), dtype: 'f32' }, { depth: 18, baseChannels: 4 })
    writeBackbone(path, backbone, 'torchvision')
    const [n, side] = [2, 48]
    for (const channels of [1, 4, 9]) {
      const { backbone: adapted, report } = importBackbone(path, {
        images: { channels, mean: new Array<number>(channels).fill(0.4), deviation: new Array<number>(channels).fill(0.2) },
      })
      assert.equal([adapted.inputs, report.unexpected], [channels, []])
      scope(() => {
        const random = new Random(7)
        const grey = Float32Array.from({ length: n * side * side }, () => random.normal())
        const repeated = (count: number): Tensor =>
          Tensor.from(
            Float32Array.from({ length: grey.length * count }, (_, i) => grey[Math.floor(i / count)]!),
            [n, side, side, count],
          )
        // Four channels weigh red twice: only of a multiple of three the colours keep their balance.
        if (channels === 4) return
        const [theirs, ours] = [backbone.forward(repeated(3), evaluation).data(), adapted.forward(repeated(channels), evaluation).data()]
        const magnitude = Math.max(...Array.from(theirs, Math.abs))
        theirs.forEach((value, i) => assert.ok(Math.abs(value - ours[i]!) <= 1e-4 * magnitude))
      })
      // Written and read again it knows its images.
      const own = join(folder, `own${channels}.safetensors`)
      writeBackbone(own, adapted, 'torchvision')
      const { backbone: back } = importBackbone(own)
      assert.equal(imagesOf(back), {
        channels,
        mean: new Array<number>(channels).fill(0.4),
        deviation: new Array<number>(channels).fill(0.2),
      })
      if (channels === 9) throwsError(() => importBackbone(own, { images: greyImages }), 'IMPORT', /takes 9 channels/, /expected 3/)
      for (const each of [adapted, back]) each.dispose()
    }
    assert.equal(imagesOf(backbone), colourImages)
    scope(() => assert.is(imageTensor({ width: 2, height: 2, data: new Uint8Array(12) }).shape[3], 3))
    backbone.dispose()
  }))

for (const channels of [1, 9])
  test(`from arrays of ${channels} channels to a backbone that is evaluated, exported and imported`, () =>
    withFolder((folder) => {
      const data = join(folder, 'data')
      writeArrays(data, channels)
      const ran = (args: string[]): string => {
        const { code, out, err } = runCli(args)
        assert.is(code, 0, `${args.join(' ')}: ${out}${err}`)
        return out
      }
      const { mean, deviation } = JSON.parse(ran(['check-data', data, '--channels', String(channels), '--json'])) as Record<
        'mean' | 'deviation',
        number[]
      >
      const run = join(folder, 'run')
      const small = ['--depth', '18', '--base-channels', '4', '--image-size', '32', '--batch-size', '8', '--epochs', '1', '--workers', '1']
      const head = ['--queue-length', '16', '--hidden', '8', '--feat-dim', '8']
      const images = ['--channels', String(channels), '--mean', `[${mean.join()}]`, '--deviation', `[${deviation.join()}]`]
      if (channels === 9) {
        const refused = runCli(['pretrain', '--data', data, ...small, ...head, '--channels', '9', '--out', run])
        assert.match(refused.err, /channels is 9: expected mean and deviation of each; densecl check-data .* --channels 9 prints them/)
      }
      ran(['pretrain', '--data', data, ...small, ...head, ...images, '--knn-data', data, '--out', run])
      const weights = join(run, 'backbone.safetensors')
      const knn = JSON.parse(ran(['eval', 'knn', weights, '--train', data, '--val', data, '--k', '3', '--json', '--workers', '1'])) as {
        results: { accuracy: number }[]
      }
      // The channel that tells the classes apart is seen: by chance a half of 24 images is right, with a deviation of a tenth.
      assert.ok(Math.max(...knn.results.map(({ accuracy }) => accuracy)) > 0.75, JSON.stringify(knn.results))
      assert.match(ran(['export', weights, '--for', 'onnx', '--out', join(folder, 'x.onnx')]), new RegExp(`\\[N, ${channels}, H, W\\]`))
      for (const [file, said] of [
        ['x.safetensors', mean],
        // torchvision's dictionary holds tensors alone.
        ['x.pth', undefined],
      ] as const) {
        ran(['export', weights, '--out', join(folder, file)])
        const imported = JSON.parse(ran(['import', join(folder, file), '--json'])) as { channels: number; mean?: number[] }
        assert.equal([imported.channels, imported.mean], [channels, said])
      }
      // Before data is looked for.
      const none = join(folder, 'none')
      for (const [args, what, taken] of [
        [['eval', 'finetune', weights, '--train', none, '--val', none], 'eval finetune', '3'],
        [['eval', 'segmentation', weights, '--data', none], 'eval segmentation', '3'],
        [['eval', 'segmentation', weights, '--data', none, '--frozen'], 'eval segmentation', '3'],
        [['eval', 'detection', weights, '--data', none], 'eval detection', '3'],
        [['match', none, '--weights', weights], 'match', '3'],
        ...(channels === 1 ? [] : [[['search', join(data, 'dark', '0.npy'), data, '--weights', weights], 'search', '1 or 3'] as const]),
      ] as const) {
        const { code, err } = runCli([...args])
        assert.is(code, 2, err)
        assert.match(err, `densecl: ${what}: expected weights of images of ${taken} channels but ResNet-18 takes ${channels}`)
      }
      const detectron = runCli(['export', weights, '--for', 'detectron2', '--out', join(folder, 'd.pth')])
      assert.match(detectron.err, /channels/)
    }))

test.run()
