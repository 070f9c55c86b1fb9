/** DenseCL as the training loop sees it; step.ts is what it does. */
import type { EmaTarget } from '../../optim/optimizer.js'
import { Random } from '../../tensor/random.js'
import { type BuiltMethod, defineMethod, type Readings, type StepResult, type Views } from '../method.js'
import { embeddingSpread } from '../spread.js'
import { chanceLoss, matchHealth } from './health.js'
import { DenseCL } from './model.js'
import { type DenseCLConfig, options } from './options.js'
import { presets } from './presets.js'
import { type DenseCLObserved, preparedStep } from './step.js'

/** A model and the settings that its steps are taken with. */
class BuiltDenseCL implements BuiltMethod<DenseCLObserved> {
  constructor(
    readonly model: DenseCL,
    readonly config: DenseCLConfig,
  ) {}

  get backbone() {
    return this.model.query.backbone
  }

  state() {
    return this.model.state()
  }

  trained() {
    return this.model.query.state()
  }

  introduce({ images }: { images: number }): string[] {
    const { numGrid, imageSize, queueLength } = this.config
    const side = numGrid ?? Math.ceil(imageSize / this.backbone.stride)
    const lines = [
      `method  densecl, dense grid ${side}x${side}`,
      `loss    queue ${queueLength}: guessing costs ln(K+1) = ${chanceLoss(queueLength).toFixed(3)}; below it at first ` +
        '(random queue), then a rise, then a fall',
    ]
    if (queueLength <= images) return lines
    const offer = 2 ** Math.floor(Math.log2(Math.max(1, images / 2)))
    return [
      ...lines,
      `warning the queue of ${queueLength} is longer than the data set of ${images}: keys of the image itself are among ` +
        `its negatives; try --queue-length ${offer}`,
    ]
  }

  prepare(globalStep: number): void {
    const { denseWarmup, denseWeight, normGroups, batchSize, shuffle, seed } = this.config
    this.model.prepare({
      denseWeight: globalStep < denseWarmup ? 0 : denseWeight,
      keyOrder: shuffle && normGroups > 1 ? new Random(seed, 19, globalStep).permutation(batchSize) : undefined,
    })
  }

  step(views: Views): StepResult<DenseCLObserved> {
    return preparedStep(this.model, views, this.config)
  }

  emaTarget(): EmaTarget {
    return this.model.emaTarget(this.config.keyMomentum)
  }

  record(): { keyAhead: boolean } {
    return { keyAhead: this.model.keyAhead }
  }

  restore({ keyAhead }: Record<string, unknown>): void {
    this.model.keyAhead = keyAhead === true
  }

  describe(observed: Readings<DenseCLObserved>, globalStep: number): Record<string, number> {
    const { batchSize, queueLength } = this.config
    return { ...describeStep(observed), queueFill: Math.min(1, (globalStep * batchSize) / queueLength) }
  }

  dispose(): void {
    this.model.dispose()
  }
}

/** The numbers of a step; `lossGlobal` and `lossDense` are weighted already, as the original logs them, and sum to `loss`. */
export function describeStep({ loss, lossGlobal, lossDense, statisticsGlobal, statisticsDense, q, index }: Readings<DenseCLObserved>) {
  // infoNce gives, for each loss, means over its rows: the cosine similarity to the positive, that to the queue, and the share of
  // rows whose positive beats every negative.
  const [positiveGlobal, negativeGlobal, accuracyGlobal] = statisticsGlobal.values as unknown as [number, number, number]
  const [positiveDense, negativeDense, accuracyDense] = statisticsDense.values as unknown as [number, number, number]
  return {
    loss: loss.values[0]!,
    lossGlobal: lossGlobal.values[0]!,
    lossDense: lossDense.values[0]!,
    positiveGlobal,
    negativeGlobal,
    accuracyGlobal,
    positiveDense,
    negativeDense,
    accuracyDense,
    spread: embeddingSpread(q.values, q.shape[1]!),
    ...matchHealth(index.values, index.shape[1]!),
  }
}

/** DenseCL, and with `denseWeight` 0 MoCo v2, as a method (docs/method.md, One step). */
export const densecl = defineMethod({
  name: 'densecl',
  describe: 'dense contrastive learning (DenseCL, arXiv:2011.09157); with denseWeight 0 it is MoCo v2 (arXiv:2003.04297)',
  options,
  presets,

  build(config, { backbone, compute }) {
    const { init, hidden, featDim, numGrid, queueLength, seed } = config
    const neck = { hidden: hidden ?? undefined, featDim, numGrid: numGrid ?? undefined }
    return new BuiltDenseCL(new DenseCL({ backbone, neck, init, queueLength, seed, compute }), config)
  },

  logLine: (numbers) => {
    const percent = (key: string): string => (100 * numbers[key]!).toFixed(0)
    return {
      loss: `(global ${numbers.lossGlobal!.toFixed(3)} dense ${numbers.lossDense!.toFixed(3)})`,
      health:
        `acc ${percent('accuracyGlobal')}/${percent('accuracyDense')}% spread ${numbers.spread!.toFixed(2)} ` +
        `same ${percent('samePosition')}%`,
    }
  },

  terms: { global: 'lossGlobal', dense: 'lossDense' },

  collapse: {
    key: 'spread',
    least: 0.02,
    means: 'all global embeddings have been the same vector',
    remedy: 'a lower --lr, a higher --key-momentum or a longer queue',
  },

  charts: [
    {
      title: 'Loss',
      yLabel: 'weighted loss',
      curves: [
        { name: 'total', key: 'loss' },
        { name: 'global', key: 'lossGlobal' },
        { name: 'dense', key: 'lossDense' },
      ],
      levels: ({ queueLength }) => (typeof queueLength === 'number' ? [{ y: chanceLoss(queueLength), name: 'guessing' }] : []),
    },
    {
      title: 'The positive beats every negative',
      yLabel: '% of rows',
      curves: [
        { name: 'global', key: 'accuracyGlobal', scale: 100 },
        { name: 'dense', key: 'accuracyDense', scale: 100 },
      ],
    },
    {
      title: 'Similarity',
      yLabel: 'cosine of positives and negatives',
      curves: [
        { name: '+ global', key: 'positiveGlobal' },
        { name: '− global', key: 'negativeGlobal' },
        { name: '+ dense', key: 'positiveDense' },
        { name: '− dense', key: 'negativeDense' },
      ],
    },
    { title: 'Spread of embeddings', yLabel: '1 sphere, 0 collapse', curves: [{ name: 'spread', key: 'spread' }] },
    {
      title: 'Matching',
      yLabel: '% of positions',
      curves: [
        { name: 'same place', key: 'samePosition', scale: 100 },
        { name: 'distinct keys', key: 'distinctMatches', scale: 100 },
      ],
    },
    { title: 'Queue', yLabel: '% filled', curves: [{ name: 'queue', key: 'queueFill', scale: 100 }] },
  ],
})
