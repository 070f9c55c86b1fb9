import { z } from 'zod'

import { kebabCase } from '../../run/options.js'
import type { ConfigOf } from '../method.js'

const count = z.int().min(1)
const share = z.number().min(0).max(1)

export const options = {
  hidden: count.max(65_536).nullable().default(null).describe("width of the heads' hidden layers; default: the backbone's channels"),
  featDim: count.max(65_536).default(128).describe('embedding dimension'),
  numGrid: count.max(1024).nullable().default(null).describe("side of the dense grid; default: the backbone's"),
  queueLength: count
    .max(2 ** 24)
    .default(65536)
    .describe('negatives in each queue'),
  keyMomentum: share.default(0.999).describe('of the key encoder'),
  keyPrecision: z
    .enum(['fp8'])
    .nullable()
    .default(null)
    .describe('fp8: maps of the key encoder in E4M3, faster on GPUs of compute capability 9.0; default: as precision'),
  temperature: z.number().positive().default(0.2).describe('of both losses'),
  denseWeight: share.default(0.5).describe('lambda: weight of the dense loss; 0 is MoCo v2'),
  denseMatch: z
    .enum(['feature', 'geometry'])
    .default('feature')
    .describe('partners of dense positions: the most similar feature (published), or the same place of the image, by the known crops'),
  denseNegatives: z
    .enum(['pooled', 'local'])
    .default('pooled')
    .describe("keys of the dense queue: an image's pooled embedding (published), or some of its positions"),
  denseKeys: count.max(1024).default(4).describe('positions of an image that local negatives are taken from'),
  denseInImage: share.default(0).describe('share of the dense loss that tells a partner from all positions of its own picture'),
  denseTemperature: z.number().positive().nullable().default(null).describe('of the dense loss; default: temperature'),
  denseQueueLength: count
    .max(2 ** 24)
    .nullable()
    .default(null)
    .describe('keys in the dense queue; default: queueLength'),
  denseWarmup: z.int().min(0).default(0).describe('steps with dense weight 0 before lambda applies'),
  shuffle: z.boolean().default(true).describe('shuffle the key batch among the groups (shuffle-BN)'),
} as const

/** The options of DenseCL with their values. */
export type DenseCLConfig = ConfigOf<typeof options>

/** The options that DenseCL has beside the published method's, with what they are in it. */
const published = {
  denseMatch: 'feature',
  denseNegatives: 'pooled',
  denseInImage: 0,
  denseTemperature: null,
  denseQueueLength: null,
  keyCropScale: null,
} as const

/** What of a configuration is not the published method, as `key value`; those of the dense loss only where there is one. */
export function variant(config: DenseCLConfig): string[] {
  const keys = Object.keys(published) as (keyof typeof published)[]
  return keys
    .filter((key) => config[key] !== published[key] && (config.denseWeight > 0 || !key.startsWith('dense')))
    .map((key) => `${kebabCase(key)} ${config[key]}${key === 'denseNegatives' ? ` of ${config.denseKeys} keys` : ''}`)
}
