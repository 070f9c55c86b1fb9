/** What the evaluation of a backbone by detection takes of the memory, before an image is read (src/run/memory.ts). */
import { publishedAnchors } from '../detection/anchors.js'
import { workersFor } from '../data/workerPool.js'
import { noGrad } from '../autograd/tape.js'
import { detect, testRules } from '../detection/detect.js'
import type { Detector } from '../detection/detector.js'
import type { DetectorRecord } from '../detection/detectorFile.js'
import { detectorOf } from '../detection/detectorShape.js'
import { fullSamples, regionsOfAllSizes } from '../detection/fullSamples.js'
import { proposalLimits } from '../detection/proposals.js'
import { type DetectionStyle, styleOf } from '../detection/styles.js'
import type { Backbone } from '../nn/backbone.js'
import { evaluation } from '../nn/layers.js'
import { fitting, hostLimits, type MemoryEstimate, workerBytes } from '../run/memory.js'
import { withCompute } from '../tensor/compute.js'
import { fail } from '../tensor/errors.js'
import { native } from '../tensor/native.js'
import { largest } from '../tensor/numbers.js'
import { scope, Tensor } from '../tensor/tensor.js'
import { deviceTraits } from '../tensor/traits.js'
import { evaluationCompute } from './compute.js'
import type { DetectionOptions } from './detection.js'
import { batchTensor, type DetectionBatch, largestBatch, testPlacement } from './detectionBatches.js'
import { buildDetector, shapeOf, updateDetector } from './detectorTraining.js'
import { evaluationEstimate, onDryDevice, ownImages, type Sharing, workersRemedy } from './evaluationMemory.js'

/** What the estimate depends on. */
type Planned = Pick<
  DetectionOptions,
  'protocol' | 'style' | 'train' | 'val' | 'seed' | 'anchors' | 'imagesAtOnce' | 'workers' | 'cacheMegabytes' | 'compute'
> &
  Sharing

/** The images that one process has of a batch, and of those that are computed at a time. */
function ownParts(options: Planned): { batch: number; atOnce: number } {
  const {
    protocol: { batchSize },
    imagesAtOnce = batchSize,
  } = options
  return { batch: ownImages(batchSize, options), atOnce: ownImages(Math.min(imagesAtOnce, batchSize), options) }
}

/** Targets of an anchor, and what it is assigned by, in arrays of the host. */
const anchorBytes = 130

/** A batch of a size, of images without objects, that holds nothing. */
function emptyBatch<Image>(images: Image[], height: number, width: number): DetectionBatch<Image> {
  return { values: new Float32Array(images.length * height * width * 3), shape: [images.length, height, width, 3], images }
}

/** The memory that the evaluation takes of a process at its largest. Throws OUT_OF_MEMORY for tensors that are larger than any memory. */
export function estimateDetectionMemory(backbone: Backbone, options: Planned): MemoryEstimate {
  const { protocol, style: name, train, val, seed = 0, workers = 0 } = options
  const own = ownParts(options)
  const style = styleOf(name, protocol.form)
  const batch = largestBatch(train, { protocol, style, seed, from: 0, until: protocol.iterations })
  const placed = val.items.map((item) => testPlacement(item, protocol, style))
  const test = placed.reduce((most, each) => (areaOf(each.boxes) > areaOf(most.boxes) ? each : most))
  const tensors = tensorBytes(backbone, options, batch, test)
  const count = workersFor(workers)
  const image = largest(train.items.map(areaOf)) * 3
  const side = `${batch.width}x${batch.height}`
  return evaluationEstimate(backbone.device, {
    onDevice: [
      { what: 'weights and optimiser state', bytes: tensors.state },
      { what: `a step of ${own.atOnce} of ${own.batch} images of ${side} px at once: activations, gradients`, bytes: tensors.step },
      { what: `the test of an image of ${test.boxes.width}x${test.boxes.height} px, beyond that`, bytes: tensors.test },
    ],
    onHost: [
      { what: `batches of ${own.batch} images of ${side} px that are loaded ahead`, bytes: 4 * own.batch * areaOf(batch) * 12 },
      { what: `${count} data workers`, bytes: count * (workerBytes + image + areaOf(batch) * 3) },
      { what: 'targets of anchors', bytes: anchorBytes * tensors.anchors * own.atOnce },
      { what: 'a state that is written, and read back', bytes: 2 * tensors.state },
    ],
  })
}

const areaOf = ({ width, height }: { width: number; height: number }): number => width * height

/** The bytes that are in use at one time: at the start, more in steps, and more in the test; and the anchors of an image. */
function tensorBytes(
  backbone: Backbone,
  options: Planned,
  { height, width }: { height: number; width: number },
  { boxes, images }: ReturnType<typeof testPlacement>,
): { state: number; step: number; test: number; anchors: number } {
  const { protocol, style: name, train, seed = 0, anchors = publishedAnchors.sizes, compute } = options
  const own = ownParts(options)
  const style = styleOf(name, protocol.form)
  const settings = evaluationCompute(backbone.device, compute)
  return onDryDevice(backbone, seed, ({ twin, random, most }) => {
    const { device } = twin
    const { model, optimizers } = buildDetector(twin, { ...shapeOf(protocol, name, { classes: train.classes.length, anchors }), random })
    try {
      native.trimMemory(device)
      const state = most()
      const batch = emptyBatch(
        Array.from({ length: own.batch }, () => ({ height, width, objects: [{ label: 0, box: [0, 0, width, height] as const }] })),
        height,
        width,
      )
      const chooser = fullSamples(protocol.regions, train.classes.length)
      const pass = { style, regions: protocol.regions, imagesAtOnce: own.atOnce, random: () => random, chooser }
      // The second step has momenta to keep, and what the first one left.
      for (let step = 0; step < 2; ++step)
        withCompute(settings, () => scope(() => updateDetector(model, optimizers, batch, { ...pass, rate: 0 })))
      const steps = most()
      withCompute(settings, () => findNothing(model, { boxes, images }, style, protocol.testRegions))
      const ofMaps = scope(() => {
        const x = Tensor.empty([1, height, width, 3], 'f32')
        return model.anchors(model.features(x, evaluation), x)
      })
      return { state, step: steps - state, test: most() - steps, anchors: ofMaps.reduce((sum, each) => sum + each.length / 4, 0) }
    } finally {
      for (const optimizer of optimizers) optimizer.dispose()
      model.dispose()
    }
  })
}

/** Goes through the test of an image on a dry device, where nothing is computed and so nothing found. */
function findNothing(model: Detector, { boxes, images }: ReturnType<typeof testPlacement>, style: DetectionStyle, after: number): void {
  scope(() => {
    const x = batchTensor(emptyBatch(images, boxes.height, boxes.width), model.backbone.device)
    detect(model, x, images, style, { ...proposalLimits[model.form].test, after })
    if (model.masks !== undefined) noGrad(() => model.masks!(model.features(x, evaluation), regionsOfAllSizes(testRules.most), evaluation))
  })
}

/**
 * Throws CONFIG where a detector of a record on this backbone takes more memory for an image of this size than there is; a record may ask
 * for images of any size. `limits` are those of this machine unless told.
 */
export function checkFindingMemory(
  backbone: Backbone,
  record: DetectorRecord,
  image: { width: number; height: number },
  limits = hostLimits(backbone.device),
): void {
  const style = styleOf(record.style, record.form)
  const placed = testPlacement(image, record, style)
  const tensors = onDryDevice(backbone, 0, ({ twin, random, most }) => {
    const model = detectorOf({ random, dtype: 'f32', compute: twin.compute }, twin, { ...record, classes: record.classes.length })
    try {
      withCompute(evaluationCompute(backbone.device), () => findNothing(model, placed, style, record.testRegions))
      return most()
    } finally {
      model.dispose()
    }
  })
  const { hostMemory } = deviceTraits(backbone.device)
  const limit = hostMemory ? limits.host : limits.device
  // Its pixels, resized, and what is made of them.
  const bytes = tensors + (hostMemory ? areaOf(placed.boxes) * (3 + 12) : 0)
  if (limit === 0 || bytes <= limit) return
  const [side, gib] = [`${placed.boxes.width}x${placed.boxes.height}`, (value: number) => (value / 2 ** 30).toPrecision(3)]
  fail(
    'CONFIG',
    `memory: an image of ${image.width}x${image.height} px becomes ${side} by the detector's record (testScale ${record.testScale}, ` +
      `longest ${record.longest}), which takes about ${gib(bytes)} GiB: expected at most the ${gib(limit)} GiB of ${backbone.device}`,
  )
}

/**
 * Throws CONFIG where the evaluation takes more memory than there is, with what takes it and what to change; returns one line about it
 * otherwise. `limits` are those of this machine unless told.
 */
export function checkDetectionMemory(backbone: Backbone, options: Planned, limits = hostLimits(backbone.device)): string {
  const { protocol, imagesAtOnce = protocol.batchSize, workers = 0, cacheMegabytes = 1024 } = options
  const remedies = [
    ...(ownParts(options).atOnce > 1
      ? [`try a lower --images-at-once (${imagesAtOnce})`, `a lower --batch-size (${protocol.batchSize})`]
      : []),
    `smaller --scales (up to ${largest(protocol.scales)})`,
    `fewer --regions (${protocol.regions})`,
    `a smaller --longest (${protocol.longest})`,
    `a smaller --test-scale (${protocol.testScale})`,
    ...workersRemedy(workers),
  ].join(', ')
  const { device } = backbone
  return fitting(() => estimateDetectionMemory(backbone, options), { what: 'this evaluation', device, limits, remedies, cacheMegabytes })
}
