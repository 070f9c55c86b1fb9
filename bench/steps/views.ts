/**
 * Writes the batches of a run to standard output for a peer to train on: for each step, the key order (int32), then the two
 * views (f32, NHWC), exactly those that `densecl pretrain` with this configuration sees. Usage: views.js key=value...
 */
import { Random } from '../../src/tensor/random.js'
import { Loader } from '../../src/data/loader.js'
import { batchIndices, epochOrder, stepsPerEpoch } from '../../src/data/sampler.js'
import { openSource } from '../../src/data/sources.js'
import { native } from '../../src/tensor/native.js'
import { densecl } from '../../src/methods/densecl/method.js'
import { optionsOf, resolveConfig } from '../../src/methods/index.js'
import { keyValue } from '../../src/run/options.js'

native.setThreads(1)
const config = resolveConfig(process.argv.slice(2).map((text) => keyValue(optionsOf(densecl), text)))
const { items } = await openSource(config.data)
const { imageSize, batchSize, seed, workers, maxBroken, epochs, shuffle, normGroups } = config
const loader = new Loader({
  items,
  imageSize,
  batchSize,
  views: 'augmented',
  augment: config,
  seed,
  workers,
  maxBroken,
  cacheMegabytes: config.cacheMegabytes,
})
const steps = stepsPerEpoch(items.length, batchSize)

function* requests(): Generator<{ epoch: number; indices: Int32Array }> {
  for (let epoch = 0; epoch < epochs; ++epoch) {
    const order = epochOrder(seed, epoch, items.length)
    for (let step = 0; step < steps; ++step) yield { epoch, indices: batchIndices(order, batchSize, step) }
  }
}

const write = (data: Uint8Array): Promise<void> =>
  new Promise((resolve) => (process.stdout.write(data) ? resolve() : process.stdout.once('drain', resolve)))
let globalStep = 0
for await (const batch of loader.batches(requests())) {
  const order =
    shuffle && normGroups !== null && normGroups > 1
      ? new Random(seed, 19, globalStep).permutation(batchSize)
      : Int32Array.from({ length: batchSize }, (_, i) => i)
  await write(new Uint8Array(order.buffer))
  for (const view of batch.views()) {
    await write(new Uint8Array(view.data().buffer))
    view.dispose()
  }
  globalStep += 1
}
await loader.close()
