/** What a linear evaluation of a backbone takes of the memory, before an image is read (src/run/memory.ts). */
import { loaderBytes } from '../data/ring.js'
import { workersFor } from '../data/workerPool.js'
import type { Backbone } from '../nn/backbone.js'
import { fitting, hostLimits, type MemoryEstimate, workerBytes } from '../run/memory.js'
import { withCompute } from '../tensor/compute.js'
import { native } from '../tensor/native.js'
import { largest } from '../tensor/numbers.js'
import { scope, Tensor } from '../tensor/tensor.js'
import { evaluationCompute } from './compute.js'
import { evaluationEstimate, onDryDevice, workersRemedy } from './evaluationMemory.js'
import { FeatureFile, type FeatureShape } from './featureFile.js'
import { extractBatch, pooledFeatures } from './features.js'
import { type LinearOptions, shapesOf } from './linear.js'
import { LinearHeads, linearOptimizer, updateHeads } from './linearHeads.js'

/** What the estimate depends on. */
type Planned = Pick<LinearOptions, 'protocol' | 'val' | 'classes' | 'imageSize' | 'seed' | 'workers' | 'cacheBytes' | 'compute'>

/** A photo that is decoded: 500 x 375 pixels are usual, so that this is on the safe side. */
const photoBytes = 3 * 2 ** 20

/** Images that pass through the network at a time: of a batch, unless all features are kept and computed before. */
const imagesAtOnce = ({ protocol: { pipeline, batchSize }, val, cacheBytes }: Planned, shapes: readonly FeatureShape[]): number =>
  pipeline === 'centre' && FeatureFile.fits(val.length, shapes, cacheBytes) ? extractBatch : Math.max(batchSize, extractBatch)

/** The memory that the evaluation takes at its largest. Throws OUT_OF_MEMORY for tensors that are larger than any memory. */
export function estimateLinearMemory(backbone: Backbone, options: Planned): MemoryEstimate {
  const { protocol, classes, imageSize, workers = 0 } = options
  const { batchSize, heads } = protocol
  const tensors = tensorBytes(backbone, options)
  const count = workersFor(workers)
  const { images } = tensors
  const classifiers = heads.length === 1 ? 'the classifier' : `${heads.length} classifiers`
  return evaluationEstimate(backbone.device, {
    onDevice: [
      { what: 'weights of the network, of classifiers, and optimiser state', bytes: tensors.state },
      { what: `maps and features of ${images} images of ${imageSize} px`, bytes: tensors.features },
      { what: `a step of ${classifiers} on features of ${batchSize} images, beyond that`, bytes: tensors.step },
    ],
    onHost: [
      { what: 'batches that are loaded ahead', bytes: loaderBytes({ imageSize, batchSize: images, views: 'crop' }).host },
      { what: `${count} data workers`, bytes: count * (workerBytes + photoBytes + 12 * imageSize ** 2) },
      { what: 'features of a batch in arrays', bytes: 2 * 4 * batchSize * tensors.values },
      { what: 'the weights of a classifier as they are drawn', bytes: 8 * tensors.largest * classes },
      { what: 'a state that is written, and read back', bytes: 2 * tensors.own },
    ],
  })
}

/**
 * The bytes that are in use at one time: at the start, of which a state has `own`, those of classifiers and momenta; more for features, and
 * more in steps; how many images are computed together, and how many values the features of one, and the largest of them, have.
 */
function tensorBytes(
  backbone: Backbone,
  options: Planned,
): { state: number; own: number; features: number; step: number; images: number; values: number; largest: number } {
  const { protocol, classes, imageSize, seed = 0, compute } = options
  const settings = evaluationCompute(backbone.device, compute)
  return onDryDevice(backbone, seed, ({ twin, random, most }) => {
    const { device } = twin
    const shapes = withCompute(settings, () => shapesOf(twin, protocol.heads, imageSize))
    const heads = new LinearHeads(shapes, classes, random)
    const sgd = linearOptimizer(heads, protocol)
    try {
      native.trimMemory(device)
      const state = most()
      const images = imagesAtOnce(options, shapes)
      const pass = (): void =>
        withCompute(settings, () =>
          scope(() => {
            const x = Tensor.empty([images, imageSize, imageSize, twin.inputs], 'f32', device)
            pooledFeatures(twin, x, protocol.heads)
          }),
        )
      pass()
      const features = most() - state
      // The second step has momenta to keep, and what the first one left.
      for (let step = 0; step < 2; ++step)
        withCompute(settings, () =>
          scope(() => {
            const pooled = shapes.map(({ shape }) => Tensor.empty([protocol.batchSize, ...shape], 'f32', device))
            updateHeads(heads, sgd, pooled, Tensor.zeros([protocol.batchSize], 'i32', device), 0)
          }),
        )
      pass()
      const sizes = shapes.map(({ size }) => size)
      return {
        state,
        own: 2 * [...heads.tensors()].reduce((sum, [, { bytes }]) => sum + bytes, 0),
        features,
        step: most() - state - features,
        images,
        values: sizes.reduce((sum, size) => sum + size, 0),
        largest: largest(sizes),
      }
    } finally {
      sgd.dispose()
      heads.dispose()
    }
  })
}

/**
 * Throws CONFIG where the evaluation takes more memory than there is, with what takes it and what to change; returns one line about it
 * otherwise. `limits` are those of this machine unless told.
 */
export function checkLinearMemory(backbone: Backbone, options: Planned, limits = hostLimits(backbone.device)): string {
  const { protocol, imageSize, workers = 0 } = options
  const remedies = [
    `try a lower --batch-size (${protocol.batchSize})`,
    `a smaller --image-size (${imageSize})`,
    ...(protocol.heads.length > 1 ? ['a --protocol of one classifier'] : []),
    ...workersRemedy(workers),
  ].join(', ')
  const { device } = backbone
  // Its loaders keep no decoded images.
  return fitting(() => estimateLinearMemory(backbone, options), { what: 'this evaluation', device, limits, remedies, cacheMegabytes: 0 })
}
