/** What fine-tuning a classifier takes of the memory, before an image is read (src/run/memory.ts). */
import { mostOfEvenBatch } from '../data/sampler.js'
import { loaderBytes } from '../data/ring.js'
import { workersFor } from '../data/workerPool.js'
import { noGrad } from '../autograd/tape.js'
import type { Backbone } from '../nn/backbone.js'
import { evaluation } from '../nn/layers.js'
import { allTensors } from '../nn/module.js'
import { fitting, hostLimits, type MemoryEstimate, type Part, processBytes, workerBytes } from '../run/memory.js'
import { withCompute } from '../tensor/compute.js'
import { native } from '../tensor/native.js'
import { scope, Tensor } from '../tensor/tensor.js'
import { deviceTraits } from '../tensor/traits.js'
import { evaluationCompute } from './compute.js'
import { onDryDevice, ownImages, type Sharing, workersRemedy } from './evaluationMemory.js'
import type { FinetuneOptions } from './finetuneOptions.js'
import { buildFinetuned, disposeFinetuned, leastImages, testBatchSize, updateClassifier } from './finetuneTraining.js'

/** What the estimate depends on. */
type Planned = Pick<FinetuneOptions, 'protocol' | 'train' | 'classes' | 'imageSize' | 'workers' | 'cacheMegabytes' | 'compute'> & Sharing

/** Images of the largest batch: of few images all are one. */
const batchOf = ({ train, protocol: { batchSize } }: Planned, least: number): number =>
  Math.min(train.length, mostOfEvenBatch(train.length, batchSize, least))

/** The memory that the fine-tuning takes of a process at its largest. Throws OUT_OF_MEMORY for tensors that are larger than any memory. */
export function estimateFinetuneMemory(backbone: Backbone, options: Planned): MemoryEstimate {
  const { imageSize, workers = 0 } = options
  const { device } = backbone
  const batchSize = ownImages(batchOf(options, leastImages(backbone, options)), options)
  const tensors = tensorBytes(backbone, options, batchSize)
  const count = workersFor(workers)
  const own = [...allTensors(backbone.state())].reduce((sum, [, { size }]) => sum + 4 * size, 0)
  const loaded = loaderBytes({ imageSize, batchSize, views: 'crop', device })
  const onDevice: Part[] = [
    { what: 'weights and optimiser state', bytes: tensors.state },
    { what: `a step of ${batchSize} images of ${imageSize} px: activations, gradients`, bytes: tensors.step },
    ...(tensors.test === 0 ? [] : [{ what: `the test of ${testBatchSize} images of ${imageSize} px, beyond that`, bytes: tensors.test }]),
  ]
  const onHost: Part[] = [
    { what: 'the program', bytes: processBytes },
    { what: 'the backbone that was given, and its weights to begin each training with', bytes: 2 * own },
    { what: `batches of ${batchSize} images of ${imageSize} px that are loaded ahead`, bytes: loaded.host },
    { what: `${count} data workers`, bytes: count * workerBytes },
    { what: 'a state that is written, and read back', bytes: 2 * tensors.state },
  ]
  return deviceTraits(device).hostMemory ? { host: [...onDevice, ...onHost], device: [] } : { host: onHost, device: onDevice }
}

/** The bytes that are in use at one time: at the start, more in steps, and more in the test. */
function tensorBytes(backbone: Backbone, options: Planned, batchSize: number): { state: number; step: number; test: number } {
  const { protocol, classes, imageSize, compute } = options
  const settings = evaluationCompute(backbone.device, compute)
  return onDryDevice(backbone, 0, ({ twin, random, most }) => {
    const trained = buildFinetuned(twin, { classes: classes.length, weightDecay: protocol.weightDecay, random })
    try {
      native.trimMemory(twin.device)
      const state = most()
      const images = (count: number): Tensor => Tensor.empty([count, imageSize, imageSize, twin.inputs])
      // The second step has what the first one left.
      for (let step = 0; step < 2; ++step)
        withCompute(settings, () =>
          scope(() => updateClassifier(trained, images(batchSize), new Int32Array(batchSize), { backbone: 0, head: 0 })),
        )
      const steps = most()
      withCompute(settings, () => scope(() => noGrad(() => void trained.model.logits(images(testBatchSize), evaluation))))
      return { state, step: steps - state, test: most() - steps }
    } finally {
      disposeFinetuned(trained)
    }
  })
}

/**
 * Throws CONFIG where the fine-tuning takes more memory than there is, with what takes it and what to change; returns one line about it
 * otherwise. `limits` are those of this machine unless told.
 */
export function checkFinetuneMemory(backbone: Backbone, options: Planned, limits = hostLimits(backbone.device)): string {
  const { imageSize, workers = 0, cacheMegabytes = 1024 } = options
  const remedies = [
    `try a lower --batch-size (${batchOf(options, leastImages(backbone, options))})`,
    `a smaller --image-size (${imageSize})`,
    ...workersRemedy(workers),
  ].join(', ')
  const { device } = backbone
  return fitting(() => estimateFinetuneMemory(backbone, options), { what: 'this fine-tuning', device, limits, remedies, cacheMegabytes })
}
