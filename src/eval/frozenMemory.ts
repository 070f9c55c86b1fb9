/** What an evaluation by frozen segmentation takes of the memory, before an image is read (src/run/memory.ts). */
import { loaderBytes } from '../data/ring.js'
import { workersFor } from '../data/workerPool.js'
import type { SegmentationSource } from '../data/segmentationSources.js'
import type { Backbone } from '../nn/backbone.js'
import { evaluation } from '../nn/layers.js'
import { fitting, hostLimits, type MemoryEstimate, workerBytes } from '../run/memory.js'
import { withCompute } from '../tensor/compute.js'
import { largest } from '../tensor/numbers.js'
import { scope, Tensor } from '../tensor/tensor.js'
import { evaluationCompute } from './compute.js'
import { evaluationEstimate, onDryDevice, workersRemedy } from './evaluationMemory.js'
import { batchSizeOf, type FrozenOptions } from './frozenSegmentation.js'

type Planned = Pick<FrozenOptions, 'window' | 'windows' | 'workers' | 'compute'>
type Sets = Record<'train' | 'val', SegmentationSource>

/** A photo that is decoded, and its mask. */
const photoBytes = 4 * 2 ** 20

/** The memory that the evaluation takes at its largest. Throws OUT_OF_MEMORY for tensors that are larger than any memory. */
export function estimateFrozenMemory(backbone: Backbone, sets: Sets, { window, windows, workers = 0, compute }: Planned): MemoryEstimate {
  const counts = [sets.train, sets.val].map(({ items }) => items.length * windows) as [number, number]
  const batchSize = Math.max(batchSizeOf(sets.train), batchSizeOf(sets.val))
  const bytesOf = ({ stride, channels }: { stride: number; channels: number }): number => 4 * channels * Math.ceil(window / stride) ** 2
  const maps = backbone.maps.slice(-2).map(bytesOf)
  const tensors = onDryDevice(backbone, 0, ({ twin, most }) => {
    const weights = most()
    withCompute(evaluationCompute(backbone.device, compute), () =>
      scope(() => void twin.stages(twin.input(Tensor.empty([batchSize, window, window, twin.inputs], 'f32', twin.device)), evaluation)),
    )
    return { weights, maps: most() - weights }
  })
  const count = workersFor(workers)
  return evaluationEstimate(backbone.device, {
    onDevice: [
      { what: 'weights of the network', bytes: tensors.weights },
      { what: `maps of ${batchSize} windows of ${window} px`, bytes: tensors.maps },
      { what: 'the test cells of a map', bytes: counts[1] * largest(maps) },
    ],
    onHost: [
      {
        // In pieces, as they come, and a map at a time once more, as they are joined.
        what: `cells of ${windows} windows of ${sets.train.items.length + sets.val.items.length} images`,
        bytes: (counts[0] + counts[1]) * maps.reduce((a, b) => a + b) + Math.max(counts[0], counts[1]) * largest(maps),
      },
      { what: 'batches that are loaded ahead', bytes: loaderBytes({ imageSize: window, batchSize, views: 'segmentation' }).host },
      { what: `${count} data workers`, bytes: count * (workerBytes + photoBytes) },
      { what: 'the weights once more, as they are read', bytes: tensors.weights },
    ],
  })
}

/** Throws CONFIG, with what to change, where the evaluation cannot fit the memory; returns one line about it otherwise. */
export function checkFrozenMemory(backbone: Backbone, sets: Sets, options: Planned, limits = hostLimits(backbone.device)): string {
  const { window, windows, workers = 0 } = options
  const remedies = [`fewer --windows (${windows})`, `a smaller --window (${window})`, ...workersRemedy(workers)]
  return fitting(() => estimateFrozenMemory(backbone, sets, options), {
    what: 'this evaluation',
    device: backbone.device,
    limits,
    remedies: `change one of: ${remedies.join(', ')}`,
    cacheMegabytes: 0,
  })
}
