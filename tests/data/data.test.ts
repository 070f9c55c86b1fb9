import { spawnSync } from 'node:child_process'
import { chmodSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

import sharp from 'sharp'
import * as assert from 'uvu/assert'

import { mocoV2Augmentation, randomView } from '../../src/data/augment.js'
import { checkSource } from '../../src/data/check.js'
import { decode, exifOrientation, jpegFrame, orient } from '../../src/data/decode.js'
import { Loader } from '../../src/data/loader.js'
import type { BatchRequest } from '../../src/data/loaderOptions.js'
import { epochOrder } from '../../src/data/sampler.js'
import { scene, sceneClasses } from '../../src/data/scenes.js'
import type { Source } from '../../src/data/source.js'
import { openSource } from '../../src/data/sources.js'
import { Random } from '../../src/tensor/random.js'
import { hasRealData, noRealData, realData, rejectsError, suite, testWhere, throwsError, withFolder } from '../support/suite.js'

const test = suite('data')

/** A smooth picture: JPEG keeps it to a few steps of 255. */
const smooth = (width: number, height: number): Buffer =>
  Buffer.from(
    Uint8Array.from(
      { length: width * height * 3 },
      (_, i) => [(255 * (Math.floor(i / 3) % width)) / width, (255 * Math.floor(i / 3 / width)) / height, 128][i % 3]!,
    ),
  )
const picture = (width = 40, height = 30) => sharp(smooth(width, height), { raw: { width, height, channels: 3 } })

test('JPEG, PNG, WebP and TIFF of one picture decode to it', async () => {
  const expected = smooth(40, 30)
  for (const format of ['jpeg', 'png', 'webp', 'tiff'] as const) {
    const bytes = await (format === 'png' ? picture().png() : picture().toFormat(format, { quality: 100 })).toBuffer()
    const { width, height, data } = await decode(bytes, format)
    assert.equal([width, height], [40, 30])
    const worst = data.reduce((most, value, i) => Math.max(most, Math.abs(value - expected[i]!)), 0)
    assert.ok(worst <= (format === 'png' || format === 'tiff' ? 1 : 12), `${format}: differs by ${worst}`)
  }
})

test('grey, CMYK, alpha and 16 bit become 8-bit RGB', async () => {
  const cases = {
    greyJpeg: picture().greyscale().jpeg(),
    greyPng: picture().greyscale().png(),
    cmykJpeg: picture().toColourspace('cmyk').jpeg({ quality: 100 }),
    alphaPng: picture().ensureAlpha(0.5).png(),
    deepPng: picture().toColourspace('rgb16').png(),
    palettePng: picture().png({ palette: true }),
  }
  for (const [name, image] of Object.entries(cases)) {
    const { width, height, data } = await decode(await image.toBuffer(), name)
    assert.equal([width, height, data.length], [40, 30, 3600], name)
    const spread = Math.max(...data) - Math.min(...data)
    assert.ok(spread > 60, `${name}: the picture is still there (${spread})`)
    if (name.startsWith('grey')) for (let i = 0; i < data.length; i += 3) assert.ok(data[i] === data[i + 1] && data[i] === data[i + 2])
  }
})

test('EXIF orientation is applied as libvips applies it, 0 and nonsense are not', async () => {
  for (let orientation = 1; orientation <= 8; ++orientation) {
    const bytes = await picture().jpeg({ quality: 100 }).withMetadata({ orientation }).toBuffer()
    assert.is(exifOrientation(bytes), orientation)
    const ours = await decode(bytes, 'exif')
    const { data, info } = await sharp(bytes).rotate().raw().toBuffer({ resolveWithObject: true })
    assert.equal([ours.width, ours.height], [info.width, info.height], `orientation ${orientation}`)
    const worst = ours.data.reduce((most, value, i) => Math.max(most, Math.abs(value - data[i]!)), 0)
    assert.ok(worst <= 8, `orientation ${orientation}: differs by ${worst}`)
  }
})

test('pixels are turned here, where sharp is not installed, as the EXIF standard says', () => {
  // abc   The letters as they are to be seen, row by row, by what the standard calls
  // def   the sides of the first row and the first column.
  const seen = ['abc/def', 'cba/fed', 'fed/cba', 'def/abc', 'ad/be/cf', 'da/eb/fc', 'fc/eb/da', 'cf/be/ad']
  const rgb = (letters: string): number[] => [...Buffer.from(letters)].flatMap((letter) => [0, 1, 2].map((c) => 10 * letter - 900 + c))
  for (const [i, rows] of seen.entries()) {
    const { width, height, data } = orient({ width: 3, height: 2, data: Uint8Array.from(rgb('abcdef')) }, i + 1)
    const [first, ...others] = rows.split('/')
    assert.equal([width, height, ...data], [first!.length, 1 + others.length, ...rgb(rows.replaceAll('/', ''))], `orientation ${i + 1}`)
  }
})

test('a JPEG ends with its marker, whatever pads it and whatever marker a picture within it has', async () => {
  const bytes = await picture().jpeg().toBuffer()
  const size = { width: 40, height: 30, components: 3 }
  for (const whole of [bytes, Buffer.concat([bytes, Buffer.alloc(5000)])]) assert.equal(jpegFrame(whole, 'whole'), size)
  // As a thumbnail in EXIF data would end.
  const inner = Buffer.from([0xff, 0xe1, 0, 6, 0, 0, 0xff, 0xd9])
  const nested = Buffer.concat([bytes.subarray(0, 2), inner, bytes.subarray(2)])
  assert.equal(jpegFrame(nested, 'nested'), size)
  for (const whole of [bytes, nested])
    for (const missing of [1, 2, 3, 50]) {
      const cut = whole.subarray(0, -missing)
      throwsError(() => jpegFrame(cut, 'cut.jpg'), 'DECODE', 'cut.jpg', 'no end marker')
      await rejectsError(() => decode(cut, 'cut.jpg'), 'DECODE', 'cut.jpg')
    }
})

test('broken bytes are errors that name the file: cut at every 400th byte, empty, text, wrong end', async () => {
  const bytes = await picture(120, 90).jpeg().toBuffer()
  for (let cut = 0; cut < bytes.length; cut += 400)
    await rejectsError(() => decode(bytes.subarray(0, cut), 'cut.jpg'), 'DECODE', /cut\.jpg/)
  const png = await picture(120, 90).png().toBuffer()
  for (let cut = 0; cut < png.length; cut += 400) await rejectsError(() => decode(png.subarray(0, cut), 'cut.png'), 'DECODE', /cut\.png/)
  await rejectsError(() => decode(Buffer.from('<html>not found</html>'), 'page.jpg'), 'DECODE', /page\.jpg/)
})

test('scenes are a function of seed and index; mask and box belong together; classes are balanced', () => {
  const a = scene(1, 7)
  assert.equal(scene(1, 7), a)
  assert.not.equal(scene(2, 7).pixels.data, a.pixels.data)
  assert.is(a.label, 7 % sceneClasses.length)
  const [x0, y0, x1, y1] = a.box
  a.mask.forEach((on, i) => {
    const [x, y] = [i % 96, Math.floor(i / 96)]
    if (on === 1) assert.ok(x >= x0 && x < x1 && y >= y0 && y < y1)
  })
  assert.ok(a.mask.reduce((sum, on) => sum + on, 0) > 100)
})

test('folders with and without classes, lists, COCO and VOC trees are read', async () => {
  await withFolder(async (root) => {
    const jpeg = await picture().jpeg().toBuffer()
    const put = (...path: string[]): void => {
      mkdirSync(join(root, ...path.slice(0, -1)), { recursive: true })
      writeFileSync(join(root, ...path), jpeg)
    }
    put('classes', 'cat', 'a.jpg')
    put('classes', 'dog', 'deep', 'b.JPEG')
    put('flat', 'a.jpg')
    put('flat', 'b.jpg')
    put('coco', 'val2017', 'x.jpg')
    mkdirSync(join(root, 'coco', 'annotations'))
    writeFileSync(join(root, 'coco', 'annotations', 'instances_val2017.json'), JSON.stringify({ images: [{ id: 1, file_name: 'x.jpg' }] }))
    put('voc', 'JPEGImages', '1.jpg')
    put('voc', 'JPEGImages', '2.jpg')
    mkdirSync(join(root, 'voc', 'ImageSets', 'Main'), { recursive: true })
    writeFileSync(join(root, 'voc', 'ImageSets', 'Main', 'train.txt'), '2\n')
    writeFileSync(join(root, 'list.txt'), '# images\nflat/a.jpg 1\nflat/b.jpg 0\n')

    const classes = await openSource(join(root, 'classes'))
    assert.equal(classes.classes, ['cat', 'dog'])
    assert.equal(
      classes.items.map(({ label }) => label),
      [0, 1],
    )
    const flat = await openSource(join(root, 'flat'))
    assert.is(flat.classes, undefined)
    assert.is(flat.items.length, 2)
    const list = await openSource(join(root, 'list.txt'))
    assert.equal(
      list.items.map(({ label }) => label),
      [1, 0],
    )
    assert.is((await openSource(join(root, 'coco', 'annotations', 'instances_val2017.json'))).items.length, 1)
    assert.equal(
      (await openSource(join(root, 'voc'))).items.map(({ name }) => name),
      ['2.jpg'],
    )
    for (const source of [classes, flat, list]) assert.equal((await checkSource(source)).broken, [])

    mkdirSync(join(root, 'empty'))
    await rejectsError(() => openSource(join(root, 'empty')), 'DATA', /empty/, /no image/)
    await rejectsError(() => openSource(join(root, 'nowhere')), 'DATA', /nowhere/, /does not exist/)
    writeFileSync(join(root, 'bad.tar'), Buffer.alloc(1024, 7))
    await rejectsError(() => openSource(join(root, 'bad.tar')), 'DATA', /not a tar/)
    writeFileSync(join(root, 'bad.json'), '{')
    await rejectsError(() => openSource(join(root, 'bad.json')), 'DATA', /not JSON/)
  })
})

testWhere(
  process.platform !== 'win32',
  'Windows has no such permissions',
  test,
  'a folder without permission is an error that names it',
  async () => {
    await withFolder(async (root) => {
      chmodSync(root, 0o755)
      mkdirSync(join(root, 'locked'))
      chmodSync(join(root, 'locked'), 0)
      // Root may read everything: be nobody for the moment.
      const isRoot = process.geteuid?.() === 0
      if (isRoot) process.seteuid!(65534)
      try {
        await rejectsError(() => openSource(join(root, 'locked')), 'DATA', /locked/, /EACCES/)
      } finally {
        if (isRoot) process.seteuid!(0)
        chmodSync(join(root, 'locked'), 0o700)
      }
    })
  },
)

interface Loaded {
  views: number[][]
  broken: Map<string, string>
  read: number
}

async function load(path: string, workers: number, more: { maxBroken?: number } = {}): Promise<Loaded> {
  const source = await openSource(path)
  const loader = new Loader({
    items: source.items,
    imageSize: 32,
    batchSize: 4,
    views: 'augmented',
    augment: mocoV2Augmentation,
    seed: 3,
    workers,
    maxBroken: 0.5,
    ...more,
  })
  const views: number[][] = []
  try {
    const requests = [0, 1, 2, 3, 4, 5].map((step) => ({
      epoch: 2,
      indices: epochOrder(3, 2, source.items.length).slice(4 * (step % 2), 4 * (step % 2) + 4),
    }))
    for await (const batch of loader.batches(requests)) {
      for (const view of batch.views()) {
        views.push([...view.data()])
        view.dispose()
      }
    }
    return { views, broken: loader.broken, read: loader.spent.images }
  } finally {
    await loader.close()
  }
}

test('batches do not depend on the number of workers; the same image of an epoch gives the same views', async () => {
  const one = await load('scenes:9', 1)
  const three = await load('scenes:9', 3)
  assert.is(one.views.length, 12)
  assert.equal(three.views, one.views)
  assert.equal([one.read, three.read], [24, 24], 'each image is read by one worker')
  assert.equal(one.views[4], one.views[0])
  assert.not.equal(one.views[1], one.views[0])
})

test('a batch says where its views lie: what randomView draws, with another range for the second view where asked', async () => {
  const augment = { ...mocoV2Augmentation, cropScale: [0.8, 1] as const, keyCropScale: [0.1, 0.2] as const }
  const source = await openSource('scenes:9')
  for (const workers of [1, 2]) {
    const loader = new Loader({ items: source.items, imageSize: 32, batchSize: 4, views: 'augmented', augment, seed: 3, workers })
    try {
      for await (const batch of loader.batches([2, 5].map((epoch) => ({ epoch, indices: Int32Array.of(7, 1, 3, 8) })))) {
        const { values, images } = batch.crops()
        assert.is(images, 4)
        for (const [view, cropScale] of [augment.cropScale, augment.keyCropScale].entries())
          for (const [i, index] of batch.indices.entries()) {
            const [left, top, width, height, flip] = values.subarray(5 * (4 * view + i), 5 * (4 * view + i) + 5)
            const random = new Random(3, 17, batch.epoch, index, view)
            const { crop, flip: mirrored } = randomView(random, 96, 96, { ...augment, cropScale })
            assert.equal(
              [left, top, width, height, flip],
              [crop.left / 96, crop.top / 96, crop.width / 96, crop.height / 96, Number(mirrored)],
            )
            const area = width! * height!
            assert.ok(area > 0.9 * cropScale[0] && area < 1.1 * cropScale[1], `view ${view}: ${area}`)
          }
      }
    } finally {
      await loader.close()
    }
  }
})

/** What a loader makes of images of the scenes: each value of a batch is that of its images, read alone. */
async function readScenes(body: (loader: Loader, read: (requests: number[][], most?: number) => Promise<number>) => Promise<void>) {
  const { items } = await openSource('scenes:48')
  const options = { items, imageSize: 32, views: 'centre', workers: 3 } as const
  const size = 32 * 32 * 3
  const asked = (requests: readonly (readonly number[])[]): BatchRequest[] =>
    requests.map((indices, epoch) => ({ epoch, indices: Int32Array.from(indices) }))
  const [whole, loader] = [new Loader({ ...options, batchSize: 48 }), new Loader({ ...options, batchSize: 16 })]
  try {
    const all = (await whole.batches(asked([items.map((_, i) => i)])).next()).value as { values(): Float32Array }
    const valuesOf = (index: number): Float32Array => all.values().subarray(index * size, (index + 1) * size)
    await body(loader, async (requests, most = Infinity) => {
      let count = 0
      for await (const batch of loader.batches(asked(requests))) {
        const values = batch.values()
        for (const [i, index] of batch.indices.entries())
          assert.equal(values.subarray(i * size, (i + 1) * size), valuesOf(index), `batch ${count}, image ${i}`)
        if ((count += 1) === most) break
      }
      return count
    })
  } finally {
    await whole.close()
    await loader.close()
  }
}
const scenesFrom = (first: number, count: number, step = 1): number[] => Array.from({ length: count }, (_, i) => (first + i * step) % 48)

test('a batch that has no room, or images that are not there, is refused in its turn, and is in no other', async () => {
  await readScenes(async (loader, read) => {
    const before = [scenesFrom(0, 16), scenesFrom(16, 3), scenesFrom(5, 16)]
    const after = [scenesFrom(20, 16)]
    const refused = (wrong: number[], ...words: RegExp[]): Promise<void> =>
      rejectsError(() => read([...before, wrong, ...after]), 'ARGUMENT', ...words)
    await refused(scenesFrom(20, 17), /Loader: expected batches of at most batchSize 16 images but received one of 17/)
    await refused([1, 48], /Loader: expected indices of 48 items but received 48/)
    await refused([-1, 2], /indices .* but received -1/)
    const view = { width: 96, height: 96, flip: false, original: { width: 96, height: 96 } }
    const boxes = { height: 96, width: 96, resampling: 'bilinear', views: [view, view] } as never
    const large = { epoch: 0, indices: Int32Array.of(0, 1), boxes }
    await rejectsError(() => loader.batches([large]).next(), 'ARGUMENT', /at most 196608 bytes, .* one of 221184, 2 images of 96x96 pixels/)
    assert.is(await read(before), 3)
  })
})

test('the batches of a loader that was left in the middle of others are those that it is asked for now', async () => {
  await readScenes(async (loader, read) => {
    for (let turn = 0; turn < 12; ++turn) {
      const requests = (step: number): number[][] => Array.from({ length: 6 }, (_, batch) => scenesFrom(7 * batch + turn, 16, step))
      assert.is(await read(requests(1), 1), 1)
      assert.is(await read(requests(5)), 6)
    }
    const older = loader.batches([0, 1, 2].map((epoch) => ({ epoch, indices: Int32Array.of(0) })))
    await older.next()
    assert.is(await read([scenesFrom(3, 16)]), 1)
    await rejectsError(() => older.next(), 'ARGUMENT', /the batches of one call at a time/)
  })
})

test('broken images are replaced, counted and named, and too many are an error', async () => {
  await withFolder(async (root) => {
    for (let i = 0; i < 8; ++i)
      writeFileSync(
        join(root, `${i}.jpg`),
        i === 3
          ? 'not a picture'
          : await picture(40 + i, 40)
              .jpeg()
              .toBuffer(),
      )
    const one = await load(root, 1)
    const two = await load(root, 2)
    assert.equal([...one.broken.keys()], [join(root, '3.jpg')])
    assert.match(one.broken.get(join(root, '3.jpg'))!, /3\.jpg/)
    assert.equal(two.views, one.views)
    await rejectsError(() => load(root, 2, { maxBroken: 0.01 }), 'DATA', /1 of 8 images/, /3\.jpg/, /maxBroken 0\.01/)
  })
})

test('an image of one pixel and one of 20,000x10 go through', async () => {
  await withFolder(async (root) => {
    writeFileSync(join(root, 'a.png'), await picture(1, 1).png().toBuffer())
    writeFileSync(join(root, 'b.png'), await picture(20_000, 10).png().toBuffer())
    for (const name of ['c', 'd', 'e', 'f', 'g', 'h']) writeFileSync(join(root, `${name}.png`), await picture().png().toBuffer())
    const { views, broken } = await load(root, 1)
    assert.is(broken.size, 0)
    for (const view of views) assert.ok(view.every(Number.isFinite))
  })
})

test('iNaturalist’s annotations and Places’ list give labels; boxes are no labels', async () => {
  await withFolder(async (root) => {
    for (const name of ['a', 'b', 'c']) writeFileSync(join(root, `${name}.jpg`), await picture().jpeg().toBuffer())
    const images = ['a', 'b', 'c'].map((name, i) => ({ id: 10 + i, file_name: `${name}.jpg` }))
    const categories = [
      { id: 7, name: 'Abies' },
      { id: 3, name: 'Zea mays' },
    ]
    const annotations = [
      { image_id: 12, category_id: 3 },
      { image_id: 10, category_id: 7 },
      { image_id: 11, category_id: 3 },
    ]
    const write = (content: object): Promise<Source> => {
      writeFileSync(join(root, 'train2018.json'), JSON.stringify(content))
      return openSource(join(root, 'train2018.json'))
    }
    const source = await write({ images, categories, annotations })
    assert.equal(
      [source.classes, source.items.map(({ label }) => label)],
      [
        ['Abies', 'Zea mays'],
        [0, 1, 1],
      ],
    )
    const boxes = await write({ images, categories, annotations: annotations.map((annotation) => ({ ...annotation, bbox: [0, 0, 1, 1] })) })
    assert.equal([boxes.classes, boxes.items[0]!.label], [undefined, undefined])
    const none: object[][] = [
      annotations.slice(1),
      [...annotations, annotations[0]!],
      [annotations[0]!, annotations[1]!, { image_id: 13, category_id: 3 }],
      [annotations[0]!, annotations[1]!, { image_id: 11, category_id: 4 }],
      [annotations[0]!, annotations[1]!, { ...annotations[2]!, bbox: [0, 0, 1, 1] }],
    ]
    for (const rows of none) assert.is((await write({ images, categories, annotations: rows })).classes, undefined, JSON.stringify(rows))
    assert.is((await write({ images, annotations })).classes, undefined)
    writeFileSync(join(root, 'train_places205.csv'), 'a.jpg 2\nb.jpg 0\nc.jpg 2\n')
    const places = await openSource(join(root, 'train_places205.csv'))
    assert.equal(
      [places.classes, places.items.map(({ label }) => label)],
      [
        ['0', '1', '2'],
        [2, 0, 2],
      ],
    )
  })
})

testWhere(hasRealData, noRealData, test, 'real odd images and shards decode; labels of shards are read', async () => {
  const odd = await checkSource(await openSource(join(realData, 'odd_images')))
  assert.equal(odd.broken, [])
  const shards = await openSource(join(realData, 'shards'))
  assert.is(shards.items.length, 120)
  assert.ok(shards.items.every(({ label }) => label !== undefined && label < 10))
  assert.equal((await checkSource(shards)).broken, [])
  const image = readFileSync(join(realData, 'camvid_voc', 'JPEGImages', '0001TP_006690.jpg'))
  assert.equal([(await decode(image, 'camvid')).width, (await decode(image, 'camvid')).height], [480, 360])
})

test('closing a loader while its workers compute ends them, not the process', async () => {
  const from = (path: string): string => new URL(`../../src/${path}.js`, import.meta.url).href
  const source = `
    const { Loader } = await import('${from('data/loader')}')
    const { openSource } = await import('${from('data/sources')}')
    const { mocoV2Augmentation } = await import('${from('data/augment')}')
    const { items } = await openSource('scenes:16')
    for (let round = 0; round < 15; ++round) {
      const loader = new Loader({
        items,
        imageSize: 32,
        batchSize: 8,
        views: 'augmented',
        augment: mocoV2Augmentation,
        seed: 1,
        workers: 3,
        maxBroken: 1,
        cacheMegabytes: 64,
      })
      let taken = 0
      const requests = Array.from({ length: 50 }, () => ({ epoch: 0, indices: Int32Array.from([0, 1, 2, 3, 4, 5, 6, 7]) }))
      for await (const { views: make } of loader.batches(requests)) {
        for (const view of make()) view.dispose()
        if (++taken === 2 + (round % 3)) break // images are cached by now: workers render
      }
      await loader.close()
    }
    console.log('alive')`
  await withFolder((folder) => {
    const script = join(folder, 'close.mjs')
    writeFileSync(script, source)
    const { stdout, stderr } = spawnSync(process.execPath, [script], { encoding: 'utf8' })
    assert.is(stdout.trim(), 'alive', stderr)
  })
})

test('a loader that is not closed does not keep the process', async () => {
  const from = (path: string): string => new URL(`../../src/${path}.js`, import.meta.url).href
  const source = `
    const { Loader } = await import('${from('data/loader')}')
    const { openSource } = await import('${from('data/sources')}')
    const { items } = await openSource('scenes:16')
    const loader = new Loader({ items, imageSize: 32, batchSize: 8, views: 'centre', workers: 2, maxBroken: 1 })
    for await (const { views } of loader.batches([{ epoch: 0, indices: Int32Array.from([0, 1, 2, 3, 4, 5, 6, 7]) }])) {
      for (const view of views()) view.dispose()
      console.log('loaded')
    }`
  await withFolder((folder) => {
    const script = join(folder, 'open.mjs')
    writeFileSync(script, source)
    const { stdout, stderr, status } = spawnSync(process.execPath, [script], { encoding: 'utf8', timeout: 60_000 })
    assert.equal([stdout.trim(), status], ['loaded', 0], stderr)
  })
})

test.run()
