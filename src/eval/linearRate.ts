/** A learning rate for a linear classifier on few images: published ones are for ImageNet, and diverge on some thousand images. */
import type { Item } from '../data/source.js'
import { epochOrder } from '../data/sampler.js'
import type { Backbone } from '../nn/backbone.js'
import { evaluation } from '../nn/layers.js'
import { withCompute } from '../tensor/compute.js'
import { Random } from '../tensor/random.js'
import { scope, Tensor, withDevice } from '../tensor/tensor.js'
import { type ClassificationResult, ClassificationScores } from './classificationScores.js'
import { evaluationCompute } from './compute.js'
import { type ExtractOptions, featureRows, labelsOf } from './features.js'
import { balancedShare, holdOut } from './labelledImages.js'
import { LinearHeads, linearOptimizer, updateHeads } from './linearHeads.js'
import { type LinearProtocol, stepRate, stretched } from './linearProtocols.js'

/** Training images from which on a protocol is used as it is published. */
const manyImages = 100_000

/** Whether a protocol's learning rate is one for many images, and these are few: its features have no batch norm then. */
export const needsRate = ({ heads }: LinearProtocol, images: number): boolean => heads.includes('pooled') && images < manyImages

/** What is tried, and with how much. */
const rates = [30, 10, 3, 1, 0.3, 0.1, 0.03, 0.01]
const mostImages = 2000
const mostEpochs = 20

/** A rate that was tried, and what it reached on images that were held out. */
export interface TriedRate {
  lr: number
  top1: number
  loss: number
}

/** Rows [N, dim] of pooled features with their classes. */
interface Rows {
  values: Float32Array
  dim: number
  labels: Int32Array
}

/**
 * Learning rates on the pooled features of the central crops of some of the training images, tested on a fifth of these that is held out;
 * the best comes first. Validation images have no part in it.
 */
export async function tryLinearRates(
  backbone: Backbone,
  { protocol, train, classes, seed = 0 }: { protocol: LinearProtocol; train: readonly Item[]; classes: number; seed?: number },
  options: ExtractOptions,
): Promise<TriedRate[]> {
  const share = train.length <= mostImages ? 100 : (100 * mostImages) / train.length
  const { rest, heldOut } = holdOut(balancedShare(train, classes, share, seed), classes, seed)
  const rowsOf = async (items: Item[]): Promise<Rows> => ({
    ...(await featureRows(backbone, items, 'pooled', options)),
    labels: labelsOf(items, 'linear'),
  })
  const [known, asked] = [await rowsOf(rest), await rowsOf(heldOut)]
  const short = { ...stretched(protocol, Math.min(mostEpochs, protocol.epochs)), batchSize: Math.min(protocol.batchSize, rest.length) }
  const compute = evaluationCompute(backbone.device, options.compute)
  const tried = rates.map((lr): TriedRate => {
    const { top1, loss } = withDevice(backbone.device, () =>
      withCompute(compute, () => fitted(known, asked, classes, { ...short, lr }, seed)),
    )
    return { lr, top1, loss: Number.isNaN(loss) ? Infinity : loss }
  })
  return tried.sort((a, b) => b.top1 - a.top1 || a.loss - b.loss)
}

/** What a classifier that is trained on rows reaches on others. */
function fitted(known: Rows, asked: Rows, classes: number, protocol: LinearProtocol, seed: number): ClassificationResult {
  const { epochs, batchSize } = protocol
  const heads = new LinearHeads([{ name: 'pooled', shape: [1, 1, known.dim], size: known.dim }], classes, new Random(seed, 43))
  const sgd = linearOptimizer(heads, protocol)
  try {
    for (let epoch = 0; epoch < epochs; ++epoch) {
      const order = epochOrder(seed, epoch, known.labels.length)
      for (let first = 0; first < order.length; first += batchSize) {
        const indices = order.slice(first, first + batchSize)
        scope(() => {
          const target = Tensor.from(
            indices.map((i) => known.labels[i]!),
            [indices.length],
            'i32',
          )
          updateHeads(heads, sgd, [mapsOf(known, indices)], target, stepRate(protocol, epoch))
        })
      }
    }
    const scores = new ClassificationScores(classes)
    const logits = scope(() => heads.logits([mapsOf(asked, Int32Array.from(asked.labels.keys()))], evaluation)[0]!.data())
    asked.labels.forEach((label, i) => scores.add(logits.subarray(i * classes, (i + 1) * classes), label))
    return scores.result()
  } finally {
    sgd.dispose()
    heads.dispose()
  }
}

/** Some rows as maps [N, 1, 1, dim]. */
function mapsOf({ values, dim }: Rows, indices: Int32Array): Tensor {
  const chosen = new Float32Array(indices.length * dim)
  indices.forEach((index, i) => chosen.set(values.subarray(index * dim, (index + 1) * dim), i * dim))
  return Tensor.from(chosen, [indices.length, 1, 1, dim])
}
