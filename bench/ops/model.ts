/**
 * A model of what a convolution's kernels take on a GPU that is not here: operations, bytes, shared memory, and how tiles fill the
 * multiprocessors. It chooses tiles, and its times stand beside measured ones; it knows nothing of latencies within a tile but one
 * constant.
 */
import type { Product } from '../../src/ops/tuning.js'

export interface Architecture {
  name: string
  gpu: string
  multiprocessors: number
  /** What large products and copies reach, TFLOP/s of bf16 with f32 sums and GB/s read and written; assumed except on sm_90. */
  teraflops: number
  gigabytesPerSecond: number
  /** KiB of a multiprocessor. */
  shared: number
  gigahertz: number
  /** Share of the tensor rate that mma.sync reaches. */
  mmaSync: number
}

export const architectures: Record<string, Architecture> = {
  sm_80: { name: 'sm_80', gpu: 'A100 80 GB', multiprocessors: 108, teraflops: 265, gigabytesPerSecond: 1750, shared: 164, gigahertz: 1.41, mmaSync: 1 },
  sm_86: { name: 'sm_86', gpu: 'RTX 3090', multiprocessors: 82, teraflops: 64, gigabytesPerSecond: 840, shared: 100, gigahertz: 1.7, mmaSync: 1 },
  sm_89: { name: 'sm_89', gpu: 'RTX 4090', multiprocessors: 128, teraflops: 150, gigabytesPerSecond: 900, shared: 100, gigahertz: 2.5, mmaSync: 1 },
  sm_90: { name: 'sm_90', gpu: 'H200', multiprocessors: 132, teraflops: 790, gigabytesPerSecond: 4300, shared: 227, gigahertz: 1.75, mmaSync: 0.5 },
}

export interface Tile {
  id: number
  m: number
  n: number
  /** Warps along m and n: each reads its part of both operands from shared memory. */
  warps: readonly [number, number]
  shared: number
  /** Registers of a block, in thousands. */
  registers: number
  hopper: boolean
}

export const tiles: readonly Tile[] = [
  { id: 1, m: 128, n: 128, warps: [2, 4], shared: 64, registers: 32, hopper: false },
  { id: 2, m: 128, n: 64, warps: [4, 2], shared: 48, registers: 20, hopper: false },
  { id: 3, m: 64, n: 64, warps: [2, 2], shared: 32, registers: 10, hopper: false },
  { id: 4, m: 128, n: 128, warps: [2, 1], shared: 163, registers: 64, hopper: true },
  { id: 5, m: 128, n: 64, warps: [2, 1], shared: 115, registers: 64, hopper: true },
]

/** Which tiles the kernels have for a product: Hopper's want whole slices of 64 channels. */
export const tilesFor = (architecture: Architecture, wholeSlices: boolean): Tile[] => tiles.filter(({ hopper }) => !hopper || (architecture.name === 'sm_90' && wholeSlices))

const launchMicroseconds = 2
/** Cycles until a tile's first slice has arrived and its result has left. */
const fillCycles = 2500

export interface Predicted {
  microseconds: number
  /** What the time is made of: the larger is the floor. */
  math: number
  memory: number
  /** Blocks on a multiprocessor. */
  resident: number
}

/** Microseconds of a product on one architecture with one tile; `bytes` is what passes device memory. */
export function predict(architecture: Architecture, { rows, columns, depth, direction }: Product, tile: Tile, bytes: number): Predicted {
  const { multiprocessors, teraflops, gigabytesPerSecond, shared, gigahertz, mmaSync } = architecture
  const resident = tile.hopper ? 1 : Math.max(1, Math.min(Math.floor(shared / (tile.shared + 1)), Math.floor(64 / tile.registers)))
  const tileCount = Math.ceil(rows / tile.m) * Math.ceil(columns / tile.n)
  // A weight gradient's depth is split until every multiprocessor has two blocks.
  const splits = direction === 'backward weight' ? Math.max(1, Math.min(Math.ceil((2 * multiprocessors) / tileCount), Math.floor(depth / 512))) : 1
  const waves = Math.ceil((tileCount * splits) / (multiprocessors * resident))
  const perSplit = depth / splits
  // Cycles of a multiprocessor for the products of one tile, and for reading its operands from shared memory, 128 bytes a cycle.
  const perCycle = (teraflops * 1e3 * (tile.hopper ? 1 : mmaSync)) / gigahertz / multiprocessors
  const products = (2 * tile.m * tile.n * perSplit) / perCycle
  const operands = tile.hopper ? ((tile.m + 2 * tile.n) * perSplit * 2) / 128 : ((tile.m * tile.warps[1] + tile.n * tile.warps[0]) * perSplit * 2) / 128
  const cycles = waves * (Math.max(products, operands) * resident + fillCycles)
  const math = cycles / gigahertz / 1e3
  const partial = splits > 1 ? 2 * splits * rows * columns * 4 : 0
  const memory = (bytes + partial) / gigabytesPerSecond / 1e3
  return { microseconds: Math.max(math, memory) + launchMicroseconds, math, memory, resident }
}
