/**
 * What a run takes of the memory, before it is there: its steps are gone through on a device that keeps account of every tensor and has
 * none (native/core/dry.cpp), and what the host holds beside them is added up. A run that cannot fit is refused in a second, instead of
 * being killed by the system after an hour.
 */
import { availableParallelism } from 'node:os'

import { loaderBytes } from '../data/ring.js'
import { workersFor } from '../data/workerPool.js'
import { extractBatch } from '../eval/features.js'
import { knnBytes } from '../eval/knn.js'
import { evaluation } from '../nn/layers.js'
import type { Method } from '../methods/method.js'
import type { BackboneKind } from '../nn/backbone.js'
import { optimizerOf } from '../optim/choose.js'
import { backboneOf } from '../run/backbone.js'
import type { Config } from '../run/config.js'
import { fitting, hostLimits, type MemoryEstimate, mostBytes, type Part, processBytes, workerBytes } from '../run/memory.js'
import { computeSettings, decodePlace, fusionLevel, type Placement } from '../run/placement.js'
import { withCompute } from '../tensor/compute.js'
import { native } from '../tensor/native.js'
import { scope, Tensor, withDevice } from '../tensor/tensor.js'
import { deviceTraits } from '../tensor/traits.js'
import { Trainer } from './trainer.js'

/** How many images kNN looks at, where that is known. */
interface KnnSize {
  bank: number
  queries: number
}

/**
 * The memory that a run of this configuration takes at its largest. `knn` is left out where nothing is known of it yet. Throws
 * OUT_OF_MEMORY for tensors that are larger than any memory.
 */
export function estimateMemory(
  config: Config,
  { method, kind, placement, knn }: { method: Method; kind: BackboneKind; placement: Placement; knn?: KnnSize | undefined },
): MemoryEstimate {
  const { device } = placement
  const { hostMemory } = deviceTraits(device)
  const tensors = tensorBytes(config, { method, kind, placement, knn })
  const workers = workersFor(config.workers)
  const { imageSize, batchSize, mostPixels } = config
  const images = { channels: tensors.inputs, mean: [], deviation: [] }
  const decode = decodePlace(config, device)
  const loader = loaderBytes({ imageSize, batchSize, views: 'augmented', device, augment: config, mostPixels, images, decode })
  const features = knn === undefined ? 0 : knnBytes(knn.bank, knn.queries, tensors.channels)
  const onDevice: Part[] = [
    { what: 'weights, their moving average, optimiser state and queues', bytes: tensors.state },
    { what: `a step of ${batchSize} images of ${imageSize} px: activations, gradients`, bytes: tensors.step },
    ...(tensors.knn === 0 ? [] : [{ what: `features of ${extractBatch} images for kNN, beyond that`, bytes: tensors.knn }]),
  ]
  const onHost: Part[] = [
    { what: 'the program', bytes: processBytes },
    { what: `batches that are loaded ahead`, bytes: loader.host },
    { what: `${workers} data workers`, bytes: workers * (workerBytes + 4 * 4 * tensors.inputs * imageSize * imageSize) },
    { what: 'a checkpoint that is written, and read back', bytes: 2 * tensors.state },
    ...(features === 0 ? [] : [{ what: 'features of kNN', bytes: features }]),
  ]
  if (hostMemory) return { host: [...onDevice, ...onHost], device: [] }
  return { host: onHost, device: [...onDevice, { what: 'batches on their way', bytes: loader.device }] }
}

/** The bytes that a run has in use at one time: at its start, more in its steps, and more in kNN. */
function tensorBytes(
  config: Config,
  { method, kind, placement, knn }: { method: Method; kind: BackboneKind; placement: Placement; knn?: KnnSize | undefined },
): { state: number; step: number; knn: number; channels: number; inputs: number } {
  const device = `dry:${placement.device}`
  const most = mostBytes(device)
  const { live: before } = native.memory(device)
  return withDevice(device, () => {
    const built = method.build(config, { backbone: backboneOf(config, kind), compute: placement.compute })
    try {
      const { parameters, copies } = built.trained()
      const optimizer = optimizerOf(config, parameters, copies)
      // A backbone that takes other images than those that are read is refused later, where that is what is looked at.
      const { inputs } = built.backbone
      const view = (): Tensor => Tensor.empty([config.batchSize, config.imageSize, config.imageSize, inputs], placement.compute, device)
      const compute = { ...computeSettings(config), fusion: fusionLevel(config) }
      const trainer = new Trainer(built, optimizer, { graph: false, compute, views: () => [view(), view()] })
      try {
        native.trimMemory(device)
        // Not the most so far: queues take three times as much while they are drawn.
        const state = native.memory(device).live - before
        // The second step has the moving average to make, and what the first one left.
        for (const step of [0, 1]) trainer.step(step, config.lr).dispose()
        const steps = most()
        if (knn !== undefined)
          scope(() => {
            const x = Tensor.empty([extractBatch, config.imageSize, config.imageSize, inputs], 'f32', device)
            withCompute(computeSettings(config), () => built.backbone.stages(built.backbone.input(x), evaluation))
          })
        return { state, step: steps - state, knn: most() - steps, channels: built.backbone.channels, inputs }
      } finally {
        trainer.dispose()
        optimizer.dispose()
      }
    } finally {
      built.dispose()
      native.trimMemory(device)
    }
  })
}

/**
 * Throws CONFIG where a run takes more memory than there is, with what takes it and what to change; returns one line about it otherwise.
 * Where `processes` share the run, `config` is the share of one, and what to change is said of the run. `limits` are those of this machine
 * unless told.
 */
export function checkMemory(
  config: Config,
  parts: { method: Method; kind: BackboneKind; placement: Placement; knn?: KnnSize | undefined; processes?: number },
  limits = hostLimits(parts.placement.device),
): string {
  const { device } = parts.placement
  return fitting(() => estimateMemory(config, parts), {
    what: 'this run',
    device,
    limits,
    remedies: remedies(config, parts.processes),
    cacheMegabytes: config.cacheMegabytes,
  })
}

/** Options that make a run smaller, those first that do most. */
function remedies(config: Config, processes = 1): string {
  const queue = (config as { queueLength?: number }).queueLength
  return [
    `try a lower --batch-size (${processes * config.batchSize})`,
    `a lower --image-size (${config.imageSize})`,
    ...(queue === undefined ? [] : [`a shorter --queue-length (${queue})`]),
    ...(workersFor(config.workers) > 1 ? [`fewer --workers (${workersFor(config.workers)} of ${availableParallelism()} cores)`] : []),
    'a smaller --depth or --base-channels',
    ...(config.precision === 'f32' ? ['--precision bf16'] : []),
  ].join(', ')
}
