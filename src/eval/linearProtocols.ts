/** The published settings of linear classification of frozen features (docs/method.md, Linear protocols). */
import type { AugmentOptions } from '../data/augment.js'
import { cropAndFlip, type Pipeline } from '../data/pipelines.js'
import type { FeatureName } from './features.js'

/** The settings of a linear evaluation (docs/method.md, Linear protocols). */
export interface LinearProtocol {
  describe: string
  /** A classifier on each. */
  heads: readonly FeatureName[]
  epochs: number
  /** Epochs after which the learning rate falls to a tenth. */
  steps: readonly number[]
  batchSize: number
  lr: number
  weightDecay: number
  nesterov: boolean
  /** How training images are cut; with `centre` the features are computed once and kept. */
  pipeline: Extract<Pipeline, 'crop' | 'shifted' | 'centre'>
  augment: AugmentOptions
  /** Standard deviation of the colour noise (PCA lighting). */
  lighting: number
}

const features = ['feature1', 'feature2', 'feature3', 'feature4', 'feature5'] as const
const multiHead = { heads: features, batchSize: 256, lr: 0.01, weightDecay: 1e-4, nesterov: true, lighting: 0 }

/** The published linear protocols by name (docs/method.md, Linear protocols). */
export const linearProtocols: Record<string, LinearProtocol> = {
  'imagenet-avgpool': {
    describe: 'ImageNet, one classifier on the pooled last map, 100 epochs, learning rate 30 (that of MoCo)',
    heads: ['pooled'],
    epochs: 100,
    steps: [60, 80],
    batchSize: 256,
    lr: 30,
    weightDecay: 0,
    nesterov: false,
    pipeline: 'crop',
    augment: cropAndFlip,
    lighting: 0,
  },
  'imagenet-features': {
    describe: 'ImageNet, Feature1 to Feature5, 90 epochs',
    ...multiHead,
    epochs: 90,
    steps: [30, 60, 90],
    pipeline: 'crop',
    augment: { ...cropAndFlip, jitter: 1 },
    lighting: 0.1,
  },
  places205: {
    describe: 'Places205, Feature1 to Feature5, 28 epochs',
    ...multiHead,
    epochs: 28,
    steps: [7, 14, 21],
    pipeline: 'shifted',
    augment: cropAndFlip,
  },
  inat18: {
    describe: 'iNaturalist 2018, Feature1 to Feature5, 84 epochs',
    ...multiHead,
    epochs: 84,
    steps: [24, 48, 72],
    pipeline: 'crop',
    augment: cropAndFlip,
  },
}

/** The protocol for another number of epochs: its steps keep their places in it. */
export function stretched(protocol: LinearProtocol, epochs: number): LinearProtocol {
  return { ...protocol, epochs, steps: protocol.steps.map((step) => Math.round((step * epochs) / protocol.epochs)) }
}

/** The learning rate of an epoch, counted from 0: a tenth after each step. */
export const stepRate = ({ lr, steps }: Pick<LinearProtocol, 'lr' | 'steps'>, epoch: number): number =>
  lr * 0.1 ** steps.filter((step) => step <= epoch).length
