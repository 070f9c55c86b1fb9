/** Correspondence: backbones that know what they are asked, only places, or nothing. */
import { join } from 'node:path'

import sharp from 'sharp'
import * as assert from 'uvu/assert'

import { mocoV2Augmentation } from '../../src/data/augment.js'
import type { Item } from '../../src/data/source.js'
import { openSource } from '../../src/data/sources.js'
import { correspondence } from '../../src/eval/correspondence.js'
import { Backbone, type BackboneKind } from '../../src/nn/backbone.js'
import { emptyState } from '../../src/nn/module.js'
import { resnet } from '../../src/nn/resnet.js'
import { concat } from '../../src/ops/concat.js'
import { adaptiveAvgPool2d } from '../../src/ops/pool2d.js'
import { Random } from '../../src/tensor/random.js'
import { Tensor } from '../../src/tensor/tensor.js'
import { pretrainSmall } from '../support/smallRun.js'
import { rejectsError, runCli, suite, withFolder } from '../support/suite.js'

const test = suite('correspondence')

const kind: BackboneKind = { name: 'made', build: () => new Made(() => Tensor.zeros([1, 1, 1, 1])) }

/** A backbone whose only map is what a function makes of the images. */
class Made extends Backbone {
  readonly kind = kind
  readonly options = {}
  readonly name = 'made'
  readonly description = 'made'
  readonly maps = [{ channels: 4, stride: 8 }]
  readonly #map: (x: Tensor) => Tensor

  constructor(map: (x: Tensor) => Tensor) {
    super({ random: new Random(0), dtype: 'f32' })
    this.#map = map
  }

  stages(x: Tensor): Tensor[] {
    return [this.#map(x)]
  }

  state() {
    return emptyState()
  }
}

const side = 8
/** Knows the colours of a place, and a constant, so that vectors of different lengths point elsewhere. */
const colours = new Made((x) => {
  const map = adaptiveAvgPool2d(x, side)
  return concat([map, Tensor.full([...map.shape.slice(0, 3), 1], 1)], 3)
})
/** Knows the place in the view, nothing of the picture. */
const places = new Made((x) => {
  const table = Float32Array.from({ length: side * side * 4 }, (_, i) => Math.sin(1 + i * i))
  return Tensor.from(Array.from({ length: x.shape[0]! }, () => [...table]).flat(), [x.shape[0]!, side, side, 4])
})

/** Pictures whose colours are the coordinates. */
async function withCoordinates(body: (items: Item[]) => Promise<void>): Promise<void> {
  await withFolder(async (folder) => {
    const [width, height] = [200, 160]
    const data = new Uint8Array(width * height * 3)
    for (let y = 0; y < height; ++y) for (let x = 0; x < width; ++x) data.set([x + 20, y + 20, 120], (y * width + x) * 3)
    for (const i of [0, 1, 2, 3, 4])
      await sharp(data, { raw: { width, height, channels: 3 } })
        .png()
        .toFile(join(folder, `${i}.png`))
    await body((await openSource(folder)).items)
  })
}

const plain = { ...mocoV2Augmentation, jitter: 0, grayscale: 0, blur: 0 }

test('features of content find the place, features of places answer the same place, and that is what stands beside them', async () => {
  await withCoordinates(async (items) => {
    const options = { imageSize: 64, workers: 1, augment: plain, seed: 2 }
    const [found] = await correspondence(colours, items, options)
    assert.is(found!.grid, side)
    assert.ok(found!.positions > 40)
    // A centre near the edge of a cell may be nearer, in colours, to its neighbour.
    assert.ok(found!.found.exact > 0.8, `${found!.found.exact}`)
    assert.ok(found!.found.near > 0.99, `${found!.found.near}`)
    const [only] = await correspondence(places, items, options)
    assert.equal(only!.found, only!.samePlace)
    assert.equal(only!.samePlace, found!.samePlace)
    assert.ok(only!.found.exact < 0.4)
  })
})

test('scores depend on the seed, not on workers and batches; the last map comes first', async () => {
  const { items } = await openSource('scenes:12')
  const backbone = resnet({ depth: 18, baseChannels: 4 })({ random: new Random(3), dtype: 'f32' })
  const score = (more: object) => correspondence(backbone, items, { imageSize: 64, workers: 1, ...more })
  const one = await score({})
  assert.equal(
    one.map(({ grid }) => grid),
    [2, 4],
  )
  assert.equal(await score({ workers: 2, batchSize: 5 }), one)
  assert.not.equal(await score({ seed: 1 }), one)
  backbone.dispose()
})

test('one image of ten pixels is scored; views that never meet are an error', async () => {
  await withFolder(async (folder) => {
    await sharp({ create: { width: 10, height: 10, channels: 3, background: '#864' } })
      .png()
      .toFile(join(folder, 'a.png'))
    const { items } = await openSource(folder)
    const [score] = await correspondence(colours, items, { imageSize: 64, workers: 1, augment: { ...plain, cropScale: [1, 1] } })
    assert.ok(score!.positions > 0)
    // Crops of a pixel or two, of which two of the same image meet hardly ever.
    const tiny = { ...plain, cropScale: [0.01, 0.01] as const }
    await rejectsError(() => correspondence(colours, items, { imageSize: 64, workers: 1, augment: tiny }), 'DATA', /share a place/)
  })
})

test('the command: a table for each size, random weights beside it, and what cannot be understood', async () => {
  await withFolder((folder) => {
    const weights = pretrainSmall(join(folder, 'run'))
    const { code, out: text } = runCli(['eval', 'correspondence', weights, '--data', 'scenes:20', '--image-size', '32,64', '--json'])
    assert.is(code, 0)
    const { scored, images } = JSON.parse(text) as {
      images: number
      scored: { size: number; weights: { grid: number }[]; random: unknown[] }[]
    }
    assert.is(images, 20)
    assert.equal(
      scored.map(({ size, weights: maps, random }) => [size, maps.map(({ grid }) => grid), random.length]),
      [
        [32, [1, 2], 2],
        [64, [2, 4], 2],
      ],
    )
    const bad = runCli(['eval', 'correspondence', weights, '--data', 'scenes:20', '--image-size', '4'])
    assert.is(bad.code, 2)
    assert.match(bad.err, /image-size is 4/)
  })
})

test.run()
