/**
 * Which tile a convolution's kernel takes, by architecture: tables in src/ops/tuning that `densecl bench tune` writes, from times
 * on a GPU or from the model of bench/ops/model.ts. A shape that no table has is left to the kernels' own rule.
 */
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'

import { type KernelFamily, usesFamily } from '../tensor/families.js'
import { native, packageRoot } from '../tensor/native.js'

export const directions = ['forward', 'backward input', 'backward weight'] as const
export type Direction = (typeof directions)[number]

const opOf = { forward: 'conv2d', 'backward input': 'conv2dBackwardInput', 'backward weight': 'conv2dBackwardWeight' } as const

/** The family of the kernels of a convolution's product: those of Hopper, or those by mma.sync. */
export const familyOf = (kind: 'wgmma' | 'mma', direction: Direction): KernelFamily => `${kind}.${opOf[direction]}`

/** The product of a convolution: result [rows, columns], summed over `depth`. */
export interface Product {
  direction: Direction
  rows: number
  columns: number
  depth: number
}

export interface TuningTable {
  architecture: string
  date: string
  /** The GPU that was timed, or `model`. */
  how: string
  entries: (Product & { tile: number })[]
}

export const tuningFile = (architecture: string): string => join(packageRoot, 'src', 'ops', 'tuning', `${architecture}.json`)

/** sm_90 of a GPU of compute capability 9.0; undefined for other devices. */
export function architectureOf(device: string): string | undefined {
  if (!known.has(device)) known.set(device, describedArchitecture(device))
  return known.get(device)
}

const known = new Map<string, string | undefined>()

function describedArchitecture(device: string): string | undefined {
  if (!device.startsWith('cuda')) return undefined
  const capability = /compute capability (\d+)\.(\d+)/.exec(native.describeDevice(device))
  if (capability === null) return undefined
  const own = Number(capability[1]! + capability[2]!)
  return `sm_${Math.min(own, Number(process.env.DENSECL_CAPABILITY ?? own))}`
}

const lookups = new Map<string, Map<string, TuningTable['entries']> | undefined>()

/** Entries by what must agree: direction, columns and depth. */
export function indexed(table: TuningTable): Map<string, TuningTable['entries']> {
  const index = new Map<string, TuningTable['entries']>()
  for (const entry of table.entries) {
    const key = keyOf(entry)
    index.set(key, [...(index.get(key) ?? []), entry])
  }
  return index
}

const keyOf = ({ direction, columns, depth }: Product): string => `${direction} ${columns}x${depth}`

/** The tile of the entry with the same columns and depth whose rows are nearest, within a factor of 4; 0 without one. */
export function nearestTile(index: Map<string, TuningTable['entries']>, product: Product): number {
  let [tile, least] = [0, Math.log(4)]
  for (const entry of index.get(keyOf(product)) ?? []) {
    const distance = Math.abs(Math.log(entry.rows / product.rows))
    if (distance <= least) [tile, least] = [entry.tile, distance]
  }
  return tile
}

export function tunedTile(device: string, product: Product): number {
  if (device === 'cpu') return 0
  const own = architectureOf(device)
  if (own === undefined) return 0
  // Without Hopper's kernels the others have the tiles that suit them elsewhere.
  const architecture = own === 'sm_90' && !usesFamily(device, familyOf('wgmma', product.direction)) ? 'sm_80' : own
  if (!lookups.has(architecture)) {
    const path = tuningFile(architecture)
    lookups.set(architecture, existsSync(path) ? indexed(JSON.parse(readFileSync(path, 'utf8')) as TuningTable) : undefined)
  }
  const index = lookups.get(architecture)
  return index === undefined ? 0 : nearestTile(index, product)
}
