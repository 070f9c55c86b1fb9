/** DenseCL as the training loop sees it; step.ts is what it does. */
import type { ViewCrops } from '../../data/augment.js'
import { type Exchange, keyOrder, ownExchange, ownOrder } from '../../distributed/keyOrder.js'
import type { GradientReady } from '../../autograd/tape.js'
import type { EmaTarget } from '../../optim/optimizer.js'
import { fail } from '../../tensor/errors.js'
import { called } from '../../tensor/settingNames.js'
import { Random } from '../../tensor/random.js'
import { deviceTraits } from '../../tensor/traits.js'
import { type BuiltMethod, defineMethod, type Readings, type StepResult, type Views } from '../method.js'
import { embeddingSpread } from '../spread.js'
import { partnersByCrops, wholeViews } from '../../data/partners.js'
import { chanceLoss, explainedVariance, geometryHealth, matchHealth } from './health.js'
import { DenseCL } from './model.js'
import { type DenseCLConfig, options, variant } from './options.js'
import { presets } from './presets.js'
import { type DenseCLObserved, preparedStep } from './step.js'

/** What a checkpoint says of the order of keys in it (src/distributed/keyOrder.ts). */
const balancedKeys = 2

/** A model and the settings that its steps are taken with. */
class BuiltDenseCL implements BuiltMethod<DenseCLObserved> {
  /** Of the steps that may still be described, by the steps taken with them. */
  readonly #crops = new Map<number, ViewCrops>()
  readonly means = ['lossGlobal', 'lossDense', 'lossInImage', 'statisticsGlobal', 'statisticsDense', 'shown'] as const
  /** The run was begun before there was the balanced order of keys: it keeps the one that it has, a uniform permutation. */
  #uniformKeys = false

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

  /** Side of the dense grid. */
  get #side(): number {
    const { numGrid, imageSize } = this.config
    return numGrid ?? Math.ceil(imageSize / this.backbone.stride)
  }

  introduce({ images }: { images: number }): string[] {
    const { queueLength, denseWeight, keyPrecision } = this.config
    const [side, own] = [this.#side, this.variant()]
    const lines = [
      `method  ${denseWeight === 0 ? 'MoCo v2 (dense weight 0)' : 'densecl'}, dense grid ${side}x${side}`,
      ...(keyPrecision === null ? [] : ['keys    FP8 (E4M3): what convolutions of 128 channels or more read in the key encoder']),
      ...(own.length === 0 ? [] : [`variant ${own.join(', ')}: not the published method`]),
      `loss    queue ${queueLength}: guessing costs ln(K+1) = ${chanceLoss(queueLength).toFixed(3)}; below it at first ` +
        '(random queue), then a rise, then a fall',
    ]
    if (queueLength <= images / 2) return lines
    const offer = 2 ** Math.floor(Math.log2(Math.max(1, images / 2)))
    const share = queueLength > images ? `longer than the data set of ${images}` : `more than half of the data set of ${images}`
    return [
      ...lines,
      `warning the queue of ${queueLength} is ${share}: keys of the image itself are among its negatives; try --queue-length ${offer}`,
    ]
  }

  variant(): string[] {
    return variant(this.config)
  }

  prepare(globalStep: number, crops?: ViewCrops): void {
    const { denseWarmup, denseWeight, denseMatch, denseNegatives, denseInImage, batchSize } = this.config
    const images = batchSize
    // The step before may not have been read yet.
    this.#crops.delete(globalStep - 1)
    if (crops !== undefined) this.#crops.set(globalStep + 1, crops)
    this.model.prepare({
      denseWeight: globalStep < denseWarmup ? 0 : denseWeight,
      inImage: denseInImage,
      ...this.#keyOrder(globalStep),
      partners: denseMatch === 'geometry' ? { index: partnersByCrops(crops ?? wholeViews(images), this.#side), images } : undefined,
      keyPicks: denseNegatives === 'local' ? { index: this.#keyPicks(globalStep), images } : undefined,
    })
  }

  /** How the key batch is shuffled among the groups of all processes. */
  #keyOrder(globalStep: number): { keyOrder?: Int32Array; keyExchange?: Exchange } {
    const { shuffle, seed, batchSize, normGroups } = this.config
    const { rank, size } = this.model.group
    const batch = { images: size * batchSize, groups: size * (normGroups ?? 1) }
    if (!shuffle || batch.groups === 1) return {}
    if (this.#uniformKeys) return { keyOrder: new Random(seed, 19, globalStep).permutation(batchSize) }
    const draw = (group: number, images: number): Int32Array => new Random(seed, 19, globalStep, group).permutation(images)
    if (size === 1) return { keyOrder: keyOrder(batch, draw) }
    return { keyOrder: ownOrder(batch, rank, size, draw), keyExchange: ownExchange(batch, rank, size) }
  }

  /** Throws CONFIG for a grid that has too few positions for what the configuration makes of them. */
  checkGrid(): void {
    const { denseNegatives, denseKeys, denseInImage } = this.config
    const side = this.#side
    if (denseNegatives === 'local' && denseKeys > side ** 2)
      fail(
        'CONFIG',
        `${called('denseKeys')} is ${denseKeys}: expected at most the ${side ** 2} positions of the dense grid ${side}x${side}`,
      )
    if (denseInImage > 0 && side === 1)
      fail(
        'CONFIG',
        `${called('denseInImage')} is ${denseInImage}: expected 0 on a dense grid of 1x1, where a picture has no other position`,
      )
  }

  /** Throws CONFIG for FP8 keys where the device does not take them. */
  checkKeys(): void {
    const { compute, device } = this.model
    if (this.config.keyPrecision === null || (compute === 'bf16' && deviceTraits(device).e4m3)) return
    fail(
      'CONFIG',
      `${called('keyPrecision')} is fp8: expected bf16 on a GPU of compute capability 9.0 with a build for it, or on a CPU, ` +
        `but the run computes in ${compute} on ${device.replace(/^dry:/, '')}`,
    )
  }

  /** Distinct positions of each key map, for the dense queue: drawn for the whole batch, of which the own images' are taken. */
  #keyPicks(globalStep: number): Int32Array {
    const { seed, batchSize, denseKeys } = this.config
    const { rank } = this.model.group
    const random = new Random(seed, 73, globalStep)
    const draw = (): Int32Array => random.permutation(this.#side ** 2)
    for (let n = 0; n < rank * batchSize; ++n) draw()
    const picks = new Int32Array(batchSize * denseKeys)
    for (let n = 0; n < batchSize; ++n) picks.set(draw().slice(0, denseKeys), n * denseKeys)
    return picks
  }

  step(views: Views, ready?: GradientReady): StepResult<DenseCLObserved> {
    const { denseWeight, normGroups } = this.config
    const constants = { ...this.config, normGroups: normGroups ?? 1, heads: denseWeight === 0 ? 'global' : 'both' } as const
    return preparedStep(this.model, views, constants, ready)
  }

  emaTarget(): EmaTarget {
    return this.model.emaTarget(this.config.keyMomentum)
  }

  record(): Record<string, unknown> {
    return { keyAhead: this.model.keyAhead, ...(this.#uniformKeys ? {} : { keyOrder: balancedKeys }) }
  }

  restore({ keyAhead, keyOrder: order }: Record<string, unknown>): void {
    this.model.keyAhead = keyAhead === true
    this.#uniformKeys = order !== balancedKeys
    const { group } = this.model
    if (this.#uniformKeys && group.size > 1)
      fail(
        'CONFIG',
        `resume: the run was begun with an order of keys that ${group.size} processes cannot share; continue it with one process`,
      )
  }

  describe(observed: Readings<DenseCLObserved>, globalStep: number): Record<string, number> {
    const { queueLength } = this.config
    const images = this.config.batchSize * this.model.group.size
    const crops = this.#crops.get(globalStep)
    const partners = crops === undefined ? undefined : partnersByCrops(crops, this.#side)
    return { ...describeStep(observed, partners), queueFill: Math.min(1, (globalStep * images) / queueLength) }
  }

  dispose(): void {
    this.model.dispose()
  }
}

/**
 * The numbers of a step; `lossGlobal` and `lossDense` are weighted already, as the original logs them, and sum to `loss`. `partners` [N, P]
 * are those that the known crops give, if they are known.
 */
export function describeStep(observed: Readings<DenseCLObserved>, partners?: Int32Array) {
  const { loss, lossGlobal = loss, lossDense, lossInImage, statisticsGlobal, q } = observed
  // infoNce gives, for each loss, means over its rows: the cosine similarity to the positive, that to the queue, and the share of
  // rows whose positive beats every negative.
  const [positiveGlobal, negativeGlobal, accuracyGlobal] = statisticsGlobal.values as unknown as [number, number, number]
  return {
    loss: loss.values[0]!,
    lossGlobal: lossGlobal.values[0]!,
    lossDense: lossDense?.values[0] ?? 0,
    ...(lossInImage === undefined ? {} : { lossInImage: lossInImage.values[0]! }),
    positiveGlobal,
    negativeGlobal,
    accuracyGlobal,
    spread: embeddingSpread(q.values, q.shape[1]!),
    ...describeDense(observed, partners),
  }
}

type DenseNumber = 'positiveDense' | 'negativeDense' | 'accuracyDense' | 'place' | 'image'

/** What of the numbers is of the dense loss; none without one. */
function describeDense(
  { statisticsDense, shown, positionMeans, imageMeans, index }: Readings<DenseCLObserved>,
  partners?: Int32Array,
): Partial<Record<DenseNumber, number> & ReturnType<typeof matchHealth> & ReturnType<typeof geometryHealth>> {
  if (statisticsDense === undefined || positionMeans === undefined || imageMeans === undefined) return {}
  const [positions, columns] = positionMeans.shape as [number, number]
  const matches = index?.values ?? partners
  const geometry = matches === undefined || partners === undefined ? undefined : geometryHealth(matches, partners, positions)
  // Rows without a partner are zeros in all of them.
  const counted = shown?.values[0] ?? 1
  const [positiveDense, negativeDense, accuracyDense] = Array.from(statisticsDense.values, (value) => value / counted) as [
    number,
    number,
    number,
  ]
  return {
    positiveDense,
    negativeDense,
    accuracyDense,
    place: explainedVariance(positionMeans.values, columns),
    image: explainedVariance(imageMeans.values, columns),
    ...(matches === undefined ? {} : matchHealth(matches, positions)),
    ...geometry,
  }
}

/** DenseCL, and with `denseWeight` 0 MoCo v2, as a method (docs/method.md, One step). */
export const densecl = defineMethod({
  name: 'densecl',
  describe: 'dense contrastive learning (DenseCL, arXiv:2011.09157); with denseWeight 0 it is MoCo v2 (arXiv:2003.04297)',
  options,
  presets,
  distributed: true,

  build(config, { backbone, compute, group }) {
    const { init, hidden, featDim, numGrid, queueLength, denseQueueLength, seed } = config
    const neck = { hidden: hidden ?? undefined, featDim, numGrid: numGrid ?? undefined }
    const queues = { queueLength, denseQueueLength: denseQueueLength ?? queueLength }
    const built = new BuiltDenseCL(
      new DenseCL({ backbone, neck, init, ...queues, seed, compute, ...(group === undefined ? {} : { group }) }),
      config,
    )
    try {
      built.checkGrid()
      built.checkKeys()
      return built
    } catch (error) {
      built.dispose()
      throw error
    }
  },

  logLine: (numbers) => {
    const percent = (key: string): string => (100 * numbers[key]!).toFixed(0)
    return {
      loss: `global ${numbers.lossGlobal!.toFixed(3)} dense ${numbers.lossDense!.toFixed(3)}`,
      health:
        `acc ${percent('accuracyGlobal')}${numbers.accuracyDense === undefined ? '' : `/${percent('accuracyDense')}`}% ` +
        `spread ${numbers.spread!.toFixed(2)}` +
        (numbers.place === undefined ? '' : ` place ${percent('place')}%`) +
        (numbers.rightMatches === undefined
          ? ''
          : ` same ${percent('samePosition')}/${percent('sameExpected')}% right ${percent('rightMatches')}%`),
    }
  },

  terms: { global: 'lossGlobal', dense: 'lossDense' },

  collapse: {
    key: 'spread',
    least: 0.02,
    means: 'all global embeddings have been the same vector',
    remedy: 'a lower --lr, a higher --key-momentum or a longer queue',
  },

  cautions: [
    {
      key: 'place',
      most: 0.9,
      means:
        "position explains more than 90 % of the dense embeddings' variance: the dense loss teaches where things lie, not what they are",
      remedy: '--dense-match geometry with --dense-negatives local, a larger grid, a higher --dense-temperature, or --dense-weight 0',
    },
  ],

  charts: [
    {
      title: 'Loss',
      yLabel: 'weighted loss',
      curves: [
        { name: 'total', key: 'loss' },
        { name: 'global', key: 'lossGlobal' },
        { name: 'dense', key: 'lossDense' },
        { name: 'in the image', key: 'lossInImage' },
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
        { name: 'same by the crops', key: 'sameExpected', scale: 100 },
        { name: 'right', key: 'rightMatches', scale: 100 },
        { name: 'distinct keys', key: 'distinctMatches', scale: 100 },
      ],
    },
    {
      title: 'What dense embeddings say',
      yLabel: '% of their variance',
      curves: [
        { name: 'place', key: 'place', scale: 100 },
        { name: 'image', key: 'image', scale: 100 },
      ],
    },
    { title: 'Queue', yLabel: '% filled', curves: [{ name: 'queue', key: 'queueFill', scale: 100 }] },
  ],
})
