import { z } from 'zod'

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
  temperature: z.number().positive().default(0.2).describe('of both losses'),
  denseWeight: share.default(0.5).describe('lambda: weight of the dense loss; 0 is MoCo v2'),
  denseWarmup: z.int().min(0).default(0).describe('steps with dense weight 0 before lambda applies'),
  shuffle: z.boolean().default(true).describe('shuffle the key batch among the groups (shuffle-BN)'),
} as const

/** The options of DenseCL with their values. */
export type DenseCLConfig = ConfigOf<typeof options>
