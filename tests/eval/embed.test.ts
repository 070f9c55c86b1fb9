/** Features of images in files: the same rows in every format, of the images that can be read; and the dense map of one image. */
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { basename, join } from 'node:path'

import { parquetReadObjects } from 'hyparquet'
import sharp from 'sharp'
import * as assert from 'uvu/assert'

import { embedImages, denseFeatures } from '../../src/eval/embed.js'
import { openRows, rowFormats } from '../../src/files/rowFiles.js'
import { ResNet } from '../../src/nn/resnet.js'
import { Random } from '../../src/tensor/random.js'
import { writeBackbone } from '../../src/weights/export.js'
import { rejectsError, runCli, suite, withFolder } from '../support/suite.js'

const test = suite('embed')

const backboneOf = (): ResNet => new ResNet({ random: new Random(4), dtype: 'f32' }, { depth: 18, baseChannels: 4 })

interface Rows {
  images: string[]
  shape: number[]
  values: number[][]
}

/** NumPy's format, read by its own rules. */
function readNpy(path: string): Rows {
  const bytes = readFileSync(path)
  assert.is(bytes.toString('latin1', 0, 8), '\x93NUMPY\x01\x00')
  const start = 10 + bytes.readUInt16LE(8)
  assert.is(start % 64, 0)
  const header = bytes.toString('latin1', 10, start)
  assert.match(header, /^\{'descr': '<f4', 'fortran_order': False, 'shape': \(.*\), \} *\n$/)
  const [count, ...shape] = /\(([\d, ]+)\)/
    .exec(header)![1]!
    .split(',')
    .filter((part) => part.trim() !== '')
    .map(Number) as [number, ...number[]]
  const size = shape.reduce((a, b) => a * b)
  assert.is(bytes.length, start + 4 * count * size)
  const images = readFileSync(`${path}.txt`, 'utf8').split('\n').slice(0, -1)
  return {
    images,
    shape,
    values: images.map((_, i) => Array.from({ length: size }, (_value, j) => bytes.readFloatLE(start + 4 * (i * size + j)))),
  }
}

function readJsonl(path: string): Rows {
  const lines = readFileSync(path, 'utf8').trimEnd().split('\n')
  const rows = lines.map((line) => JSON.parse(line) as { image: string; shape: number[]; features: number[] })
  return { images: rows.map(({ image }) => image), shape: rows[0]!.shape, values: rows.map(({ features }) => features.map(Math.fround)) }
}

async function readParquet(path: string, shape: number[]): Promise<Rows> {
  const { buffer, byteOffset, length } = readFileSync(path)
  const file = buffer.slice(byteOffset, byteOffset + length)
  const rows = (await parquetReadObjects({ file })) as { image: string; features: number[] }[]
  return { images: rows.map(({ image }) => image), shape, values: rows.map(({ features }) => features) }
}

/** Photographs of noise, one of them broken, and the weights of a network. */
async function prepare(folder: string): Promise<{ photos: string; weights: string }> {
  const [photos, weights] = [join(folder, 'photos'), join(folder, 'w.safetensors')]
  mkdirSync(photos)
  const random = new Random(2)
  for (const name of ['a', 'c', 'd']) {
    const data = Buffer.from(Array.from({ length: 40 * 56 * 3 }, () => random.below(256)))
    await sharp(data, { raw: { width: 56, height: 40, channels: 3 } })
      .png()
      .toFile(join(photos, `${name}.png`))
  }
  writeFileSync(join(photos, 'b.png'), 'no image')
  const backbone = backboneOf()
  writeBackbone(weights, backbone, 'torchvision')
  backbone.dispose()
  return { photos, weights }
}

test('every format holds the same rows, those of the network, and the broken image is named', () =>
  withFolder(async (folder) => {
    const { photos, weights } = await prepare(folder)
    const backbone = backboneOf()
    for (const features of ['pooled', 'dense', 'feature4'] as const) {
      const expected: Rows = { images: [], shape: [], values: [] }
      const items = readdirSync(photos)
        .sort()
        .map((name) => ({ name: join(photos, name), kind: 'file' as const, path: join(photos, name) }))
      const broken = await embedImages(backbone, items, features, { imageSize: 64, workers: 1 }, (image, values, shape) => {
        expected.images.push(image)
        expected.values.push([...values])
        expected.shape = [...shape]
      })
      assert.equal([...broken.keys()], [join(photos, 'b.png')])
      assert.equal(expected.shape, { pooled: [32], dense: [2, 2, 32], feature4: [3, 3, 16] }[features])
      assert.equal(
        expected.images,
        ['a', 'c', 'd'].map((name) => join(photos, `${name}.png`)),
      )
      for (const ending of Object.keys(rowFormats)) {
        const out = join(folder, `${features}${ending}`)
        const args = ['--weights', weights, '--out', out, '--features', features, '--image-size', '64', '--workers', '1', '--device', 'cpu']
        const { code, out: said, err } = runCli(['embed', photos, ...args])
        assert.is(code, 1)
        assert.is(err.split('b.png').length - 1, 1, err)
        assert.match(err, /1 of 4 images/)
        assert.ok(said.includes(out), said)
        const rows = ending === '.npy' ? readNpy(out) : ending === '.jsonl' ? readJsonl(out) : await readParquet(out, expected.shape)
        assert.equal(
          rows.images.map((name) => basename(name)),
          ['a.png', 'c.png', 'd.png'],
        )
        assert.equal([rows.shape, rows.values], [expected.shape, expected.values], `${features} ${ending}`)
      }
    }
    backbone.dispose()
  }))

test('what cannot be written is refused by name, before images are read or with nothing left behind', () =>
  withFolder(async (folder) => {
    const { photos, weights } = await prepare(folder)
    const run = (out: string, from = photos): ReturnType<typeof runCli> =>
      runCli(['embed', from, '--weights', weights, '--out', out, '--image-size', '32', '--workers', '1', '--device', 'cpu'])
    const wrong = run(join(folder, 'x.csv'))
    assert.is(wrong.code, 2)
    assert.match(wrong.err, /x\.csv: expected a file ending in \.npy, \.jsonl, \.parquet/)
    const there = join(folder, 'there.jsonl')
    writeFileSync(there, 'mine')
    assert.match(run(there).err, /there\.jsonl exists already; --overwrite/)
    assert.is(readFileSync(there, 'utf8'), 'mine')
    assert.match(run(photos).err, /is a folder: expected a file/)
    for (const ending of Object.keys(rowFormats)) {
      const nowhere = join(folder, 'nowhere', `x${ending}`)
      assert.match(run(nowhere).err, new RegExp(`nowhere.x\\${ending}: cannot be written \\(there is no folder`))
      const empty = join(folder, `none${ending}`)
      assert.match(run(empty, join(photos, 'b.png')).err, /none of 1 images could be read/)
      assert.not.ok(existsSync(empty))
      const rows = await openRows(join(folder, `half${ending}`))
      rows.write('a', Float32Array.of(1, 2), [2])
      rows.abandon()
    }
    assert.equal(
      readdirSync(folder).filter((name) => /half|tmp|none/.test(name)),
      [],
    )
  }))

test('the dense map of an image is the network’s, by path and by bytes, and follows its shape', () =>
  withFolder(async (folder) => {
    const { photos } = await prepare(folder)
    const path = join(photos, 'a.png')
    const backbone = backboneOf()
    // 56 x 40 pixels: the short side becomes 64, the long one 90, of which 96 is the nearest multiple of 32.
    const map = await denseFeatures(backbone, path, { shortSide: 64 })
    assert.equal(map.shape, [2, 3, 32])
    const same = await denseFeatures(backbone, readFileSync(path), { shortSide: 64 })
    assert.equal(same.data(), map.data())
    assert.ok(map.data().some((value) => value !== map.data()[0]))
    const whole = await denseFeatures(backbone, path)
    assert.equal(whole.shape, [7, 10, 32])
    for (const tensor of [map, same, whole]) tensor.dispose()
    await rejectsError(() => denseFeatures(backbone, path, { shortSide: 16 }), 'ARGUMENT', /shortSide/, /stride 32/, /16/)
    await rejectsError(() => denseFeatures(backbone, join(folder, 'no.png')), 'FILE', /no\.png/)
    await rejectsError(() => denseFeatures(backbone, Buffer.from('no')), 'DECODE', /image/)
    backbone.dispose()
  }))

test.run()
