/**
 * What a key encoder in another precision does to the dense matches: maps of the queries in f32, and of the keys in f32, in bf16, and with
 * maps and weights of convolutions of 128 channels or more rounded to E4M3, as `--key-precision fp8` has them on a GPU. Two views of each
 * image, running statistics. Usage: keyPrecision.js --weights FILE --data FOLDER [--images N] [--image-size PIXELS] [--save FILE].
 */
import { parseArgs } from 'node:util'

import { environmentRow, writeResult } from '../../src/bench/result.js'
import { mocoV2Augmentation } from '../../src/data/augment.js'
import { Loader } from '../../src/data/loader.js'
import { partnersByCrops } from '../../src/data/partners.js'
import { orderedBatches } from '../../src/data/sampler.js'
import { openSource } from '../../src/data/sources.js'
import { drawnItems } from '../../src/eval/correspondence.js'
import type { Backbone } from '../../src/nn/backbone.js'
import { evaluation } from '../../src/nn/layers.js'
import { wholeE4m3Slices } from '../../src/ops/e4m3.js'
import { reshape } from '../../src/ops/elementwise.js'
import { denseMatch } from '../../src/ops/similarity.js'
import { imagesOf } from '../../src/run/backbone.js'
import { roundedWeights } from '../../src/selftest/e4m3.js'
import { fromE4m3, toE4m3 } from '../../src/tensor/e4m3.js'
import { observe } from '../../src/tensor/native.js'
import { scope, Tensor } from '../../src/tensor/tensor.js'
import { importBackbone } from '../../src/weights/import.js'

const { values: flags } = parseArgs({
  options: {
    weights: { type: 'string', default: '' },
    data: { type: 'string', default: '' },
    images: { type: 'string', default: '256' },
    'image-size': { type: 'string', default: '128' },
    save: { type: 'string' },
  },
})
const [images, imageSize] = [Number(flags.images), Number(flags['image-size'])]

const rounded = (values: Float32Array): Float32Array => fromE4m3(toE4m3(values))

/** Runs `body` with every map that such a convolution reads rounded where it lies; the weights are rounded already. */
function inE4m3<R>(body: () => R): R {
  observe.op = (name, run, tensors) => {
    const x = tensors.x as Tensor
    if ((name === 'conv2d' || name === 'conv2dNorm') && wholeE4m3Slices(x.shape[3]!)) x.write(rounded(x.data() as Float32Array))
    run()
  }
  try {
    return body()
  } finally {
    delete observe.op
  }
}

const load = (compute: 'f32' | 'bf16'): Backbone => importBackbone(flags.weights, { compute }).backbone
const [exact, half, eighth] = [load('f32'), load('bf16'), load('f32')]
for (const weight of eighth.state().parameters.values())
  if (weight.shape.length === 4 && wholeE4m3Slices(weight.shape[3]!)) weight.write(roundedWeights(weight).data())

/** [N, positions, C] of the last map. */
function positions(backbone: Backbone, view: Tensor): Tensor {
  const map = backbone.stages(backbone.input(view), evaluation).at(-1)!
  const [n, h, w, c] = map.shape as [number, number, number, number]
  return reshape(map.to('f32'), [n, h * w, c])
}

const { items } = await openSource(flags.data)
const drawn = drawnItems(items, images, 1)
const loader = new Loader({
  items: drawn,
  imageSize,
  batchSize: 32,
  views: 'augmented',
  augment: mocoV2Augmentation,
  images: imagesOf(exact),
  seed: 1,
  workers: 0,
  maxBroken: 0.01,
})
const keyForms = {
  f32: (view: Tensor) => positions(exact, view),
  bf16: (view: Tensor) => positions(half, view),
  e4m3: (view: Tensor) => inE4m3(() => positions(eighth, view)),
}
const tallies = Object.fromEntries(Object.keys(keyForms).map((name) => [name, { same: 0, near: 0, right: 0, similarity: 0 }]))
let [matches, shown] = [0, 0]
for await (const batch of loader.batches(orderedBatches(drawn.length, 32))) {
  const [query, key] = batch.views() as [Tensor, Tensor]
  const partners = [...partnersByCrops(batch.crops(), Math.sqrt(scope(() => positions(exact, query).shape[1]!)))]
  shown += partners.filter((right) => right >= 0).length
  scope(() => {
    const queries = positions(exact, query)
    const side = Math.sqrt(queries.shape[1]!)
    let expected: number[] = []
    for (const [name, form] of Object.entries(keyForms)) {
      const { index, similarity } = denseMatch(queries, form(key))
      const [found, tally] = [[...index.data()], tallies[name]!]
      if (name === 'f32') [expected, matches] = [found, matches + found.length]
      found.forEach((at, i) => {
        const other = expected[i]!
        tally.same += Number(at === other)
        tally.near += Number(
          Math.max(Math.abs((at % side) - (other % side)), Math.abs(Math.floor(at / side) - Math.floor(other / side))) <= 1,
        )
        tally.right += Number(partners[i]! >= 0 && at === partners[i])
        tally.similarity += similarity.data()[i]!
      })
    }
  })
  for (const view of [query, key]) view.dispose()
}
await loader.close()

const rows = Object.entries(tallies).map(([precision, { same, near, right, similarity }]) => ({
  precision,
  same: same / matches,
  near: near / matches,
  right: right / shown,
  similarity: similarity / matches,
}))
for (const { precision, same, near, right, similarity } of rows)
  console.log(
    `${precision.padEnd(5)} matches as in f32 ${(100 * same).toFixed(1)} %, or beside ${(100 * near).toFixed(1)} %; ` +
      `right places ${(100 * right).toFixed(1)} %; mean similarity ${similarity.toFixed(4)}`,
  )
if (flags.save !== undefined)
  writeResult(flags.save, { ...environmentRow(), bench: 'key precision', images: drawn.length, imageSize, matches, rows })
