/** What the evaluation of a backbone by segmentation takes of the memory, before it trains on one (src/run/memory.ts). */
import type { Pixels } from '../data/decode.js'
import { loaderBytes } from '../data/ring.js'
import { workersFor } from '../data/workerPool.js'
import type { SegmentedItem } from '../data/segmentationSources.js'
import { scaledSize } from '../data/segmentationView.js'
import { loadPixels } from '../data/source.js'
import type { Backbone } from '../nn/backbone.js'
import { fitting, hostLimits, type MemoryEstimate, workerBytes } from '../run/memory.js'
import { withCompute } from '../tensor/compute.js'
import { native } from '../tensor/native.js'
import { scope, Tensor } from '../tensor/tensor.js'
import { evaluationCompute } from './compute.js'
import { evaluationEstimate, onDryDevice, ownImages, type Sharing, workersRemedy } from './evaluationMemory.js'
import { segmentImage } from './segmentImage.js'
import type { SegmentationOptions } from './segmentation.js'
import { buildSegmenter, disposeSegmenter, updateSegmenter } from './segmenterTraining.js'

/** What the estimate depends on. */
type Planned = Pick<SegmentationOptions, 'protocol' | 'train' | 'val' | 'seed' | 'workers' | 'cacheMegabytes' | 'compute'> & Sharing

/** An image that is only as large as one. */
type Size = Pick<Pixels, 'width' | 'height'>

const sampleCount = 8

/** The size of the largest of some images, spread over all of them. Throws where one cannot be read. */
async function largestImage(items: readonly SegmentedItem[]): Promise<Size> {
  let most = { width: 0, height: 0 }
  const every = Math.ceil(items.length / sampleCount)
  for (let i = 0; i < items.length; i += every) {
    const { width, height } = await loadPixels(items[i]!)
    if (width * height > areaOf(most)) most = { width, height }
  }
  return most
}

const areaOf = ({ width, height }: Size): number => width * height

/**
 * The memory that the evaluation takes of a process at its largest, where images are of `image`'s size. Throws OUT_OF_MEMORY as
 * run/memory.ts says.
 */
export function estimateSegmentationMemory(backbone: Backbone, options: Planned, image: Size): MemoryEstimate {
  const { protocol, train, workers = 0 } = options
  const { crop, scale, slide } = protocol
  const batchSize = ownImages(protocol.batchSize, options)
  const tensors = tensorBytes(backbone, options, image)
  const count = workersFor(workers)
  const classes = train.classes.length
  const tested = areaOf(scaledSize(image.width, image.height, ...scale))
  // Logits in arrays: those of the image, and of windows their sums.
  const logits = 4 * classes * (areaOf(image) + (slide === 0 ? 0 : tested))
  return evaluationEstimate(backbone.device, {
    onDevice: [
      { what: 'weights and optimiser state', bytes: tensors.state },
      { what: `a step of ${batchSize} crops of ${crop}x${crop} px: activations, gradients`, bytes: tensors.step },
      { what: `the test of an image of ${image.width}x${image.height} px, beyond that`, bytes: tensors.test },
    ],
    onHost: [
      { what: 'batches that are loaded ahead', bytes: loaderBytes({ imageSize: crop, batchSize, views: 'segmentation' }).host },
      { what: `${count} data workers`, bytes: count * (workerBytes + 4 * areaOf(image) + 13 * crop ** 2) },
      { what: 'test images and the logits of one', bytes: logits + 12 * tested + 8 * areaOf(image) },
      { what: 'a state that is written, and read back', bytes: 2 * tensors.state },
    ],
  })
}

/** The bytes that are in use at one time: at the start, more in steps, and more in the test. */
function tensorBytes(backbone: Backbone, options: Planned, { width, height }: Size): { state: number; step: number; test: number } {
  const { protocol, train, seed = 0, compute } = options
  const { crop, alignCorners } = protocol
  const batchSize = ownImages(protocol.batchSize, options)
  const settings = evaluationCompute(backbone.device, compute)
  return onDryDevice(backbone, seed, ({ twin, random, most }) => {
    const segmenter = buildSegmenter(twin, { classes: train.classes.length, alignCorners, random })
    try {
      native.trimMemory(twin.device)
      const state = most()
      // The second step has momenta to keep, and what the first one left.
      for (let draw = 0; draw < 2; ++draw)
        withCompute(settings, () =>
          scope(() => {
            const x = Tensor.empty([batchSize, crop, crop, twin.inputs], 'f32', twin.device)
            const labels = Tensor.empty([batchSize, crop, crop], 'i32', twin.device)
            updateSegmenter(segmenter, { x, labels, labelled: 1, draw, rate: 0 })
          }),
        )
      const steps = most()
      const pixels = { width, height, data: new Uint8Array(width * height * 3) }
      withCompute(settings, () => segmentImage(segmenter.model, pixels, protocol))
      return { state, step: steps - state, test: most() - steps }
    } finally {
      disposeSegmenter(segmenter)
    }
  })
}

/**
 * Throws CONFIG where the evaluation takes more memory than there is, with what takes it and what to change; resolves to one line about it
 * otherwise. Some validation images are read for their sizes. `limits` are those of this machine unless told.
 */
export async function checkSegmentationMemory(backbone: Backbone, options: Planned, limits = hostLimits(backbone.device)): Promise<string> {
  const { protocol, val, workers = 0, cacheMegabytes = 1024 } = options
  const image = await largestImage(val.items)
  const remedies = [
    `try a lower --batch-size (${protocol.batchSize})`,
    `a smaller --crop (${protocol.crop})`,
    `a smaller --scale (${protocol.scale.join(',')})`,
    ...workersRemedy(workers),
  ].join(', ')
  const about = { what: 'this evaluation', device: backbone.device, limits, remedies, cacheMegabytes }
  return fitting(() => estimateSegmentationMemory(backbone, options, image), about)
}
