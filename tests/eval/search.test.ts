/** Search by features: a picture finds itself, a part finds what is painted alike, wherever it lies. */
import { existsSync, mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

import fc from 'fast-check'
import sharp from 'sharp'
import * as assert from 'uvu/assert'

import type { Item } from '../../src/data/source.js'
import { searchImages } from '../../src/eval/search.js'
import { ResNet } from '../../src/nn/resnet.js'
import { Random } from '../../src/tensor/random.js'
import { writeBackbone } from '../../src/weights/export.js'
import { Colours } from '../support/colours.js'
import { rejectsError, runCli, suite, withFolder } from '../support/suite.js'

const test = suite('search')

type Place = readonly [x: number, y: number]

/** A picture of 64 pixels a side in a grey of noise, with a block of 2 x 3 cells in one colour. */
async function paint(path: string, colour: readonly number[], [x, y]: Place, seed: number): Promise<void> {
  const random = new Random(seed)
  const data = Buffer.alloc(64 * 64 * 3)
  for (let at = 0; at < 64 * 64; ++at) {
    const [row, column] = [Math.floor(at / 64 / 8), Math.floor((at % 64) / 8)]
    const inside = column >= x && column < x + 2 && row >= y && row < y + 3
    const grey = 100 + random.below(40)
    for (let c = 0; c < 3; ++c) data[3 * at + c] = inside ? colour[c]! : grey
  }
  await sharp(data, { raw: { width: 64, height: 64, channels: 3 } })
    .png()
    .toFile(path)
}

const itemOf = (path: string): Item => ({ name: path, kind: 'file', path })

test('a region finds the block of its colour wherever it lies, before blocks of others', () =>
  withFolder((folder) =>
    fc.assert(
      fc.asyncProperty(fc.array(fc.tuple(fc.nat(6), fc.nat(5)), { minLength: 4, maxLength: 4 }), async (places) => {
        const colours = [
          [255, 0, 0],
          [255, 0, 0],
          [0, 255, 0],
          [0, 0, 255],
        ]
        const paths = places.map((_, i) => join(folder, `${i}.png`))
        await Promise.all(places.map((place, i) => paint(paths[i]!, colours[i]!, place, i)))
        const [x, y] = places[0]!
        const region = [x / 8, y / 8, (x + 2) / 8, (y + 3) / 8] as const
        const { hits } = await searchImages(new Colours(8), itemOf(paths[0]!), paths.slice(1).map(itemOf), {
          imageSize: 64,
          workers: 1,
          region: [...region],
        })
        const [there, down] = places[1]!
        assert.equal([hits[0]!.item.name, hits[0]!.box], [paths[1], [there / 8, down / 8, (there + 2) / 8, (down + 3) / 8]])
        assert.ok(hits[0]!.similarity > 0.999 && hits[1]!.similarity < 0.9, hits.map(({ similarity }) => similarity).join())
        assert.ok(hits.every(({ similarity }, i) => i === 0 || similarity <= hits[i - 1]!.similarity))
      }),
      { numRuns: 8 },
    ),
  ))

test('the command shows the query itself first, names what it cannot read, and refuses what is no region', () =>
  withFolder(async (folder) => {
    const [photos, weights, out] = [join(folder, 'photos'), join(folder, 'w.safetensors'), join(folder, 'found')]
    mkdirSync(photos)
    for (const [i, name] of ['a', 'b', 'c'].entries()) await paint(join(photos, `${name}.png`), [90 * i, 200, 255 - 90 * i], [i, i], i)
    writeFileSync(join(photos, 'broken.png'), 'no image')
    const backbone = new ResNet({ random: new Random(4), dtype: 'f32' }, { depth: 18, baseChannels: 4 })
    writeBackbone(weights, backbone, 'torchvision')
    backbone.dispose()
    const flags = ['--weights', weights, '--out', out, '--image-size', '64', '--workers', '1', '--device', 'cpu']
    const query = join(photos, 'b.png')
    for (const region of [[], ['--region', '0.1,0.2,0.9,0.8']]) {
      const { code, out: said, err } = runCli(['search', query, photos, ...flags, ...region, '--json', '--top', '2'])
      assert.is(code, 1)
      assert.match(err, /broken\.png: not an image/)
      const { images, picture } = JSON.parse(said) as { images: { image: string; similarity: number; box?: number[] }[]; picture: string }
      assert.is(images.length, 2)
      assert.is(images[0]!.image, query)
      assert.ok(Math.abs(images[0]!.similarity - 1) < 1e-6)
      assert.is(images[0]!.box === undefined, region.length === 0)
      assert.ok(existsSync(picture))
    }
    for (const region of ['1,2', '0.5,0,0.4,1', '0,0,2,1', 'a,b,c,d', '0,0,1,1,1'])
      assert.match(runCli(['search', query, photos, ...flags, '--region', region]).err, new RegExp(`--region is ${region}: expected`))
    assert.match(runCli(['search', photos, photos, ...flags]).err, /the query .*photos is a folder/)
    await rejectsError(
      () => searchImages(new Colours(8), itemOf(join(photos, 'broken.png')), [itemOf(query)], { imageSize: 64, workers: 1 }),
      'DATA',
      /the query cannot be read: .*broken\.png: /,
    )
  }))

test.run()
