/**
 * Which kernel a convolution takes: what a run has timed for its own shapes where it has (src/train/tuner.ts), else the tile that
 * the table of the architecture has, in src/ops/tuning, which `densecl bench tune` writes from times on a GPU or from the model of
 * src/bench/model.ts, else the kernels' own rule.
 */
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'

import { type ComputeOptions, currentCompute, type FusionLevel, type Kernels } from '../tensor/compute.js'
import { fail, systemReason } from '../tensor/errors.js'
import { type KernelFamily, usesFamily } from '../tensor/families.js'
import { packageRoot } from '../tensor/addon.js'
import { type NamedNumbers, type NamedTensors, type OpNumbers, runNamed } from '../tensor/native.js'
import type { NativeOps } from '../tensor/nativeOps.js'
import type { DType, Tensor } from '../tensor/tensor.js'
import { deviceTraits } from '../tensor/traits.js'
import {
  accessChannels,
  ampereTiles,
  bulkStoredTile,
  hopperTiles,
  sliceChannels,
  sliceDepth,
  tileSize,
  unfoldsIntoSlices,
  widestTile,
  widestTilePays,
} from './kernels.js'

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

/** The channels of a product's result, the side along which Hopper's tiles differ: of a weight gradient those are its rows. */
export const channelsOf = ({ direction, rows, columns }: Product): number => (direction === 'backward weight' ? rows : columns)

/** The numbers that the calls of a convolution have in every direction. */
export type ConvolutionNumbers = OpNumbers<'conv2dBackwardInput'>

/** What the compute settings say of a convolution's kernels. */
export function computeNumbers(): Pick<ConvolutionNumbers, 'tile' | 'tf32'> {
  const { tile, precision } = currentCompute()
  return { tile, tf32: precision === 'tf32' }
}

/** The windows of a 1x1 kernel. */
export const pointwiseWindows = { strideH: 1, strideW: 1, paddingH: 0, paddingW: 0, dilationH: 1, dilationW: 1 } as const

/** A convolution in one direction with everything that its kernels depend on but their epilogue. */
export interface ConvolutionShape {
  direction: Direction
  /** Shapes of the input x (or dx), [N, H, W, C], and the weights, [O, KH, KW, C]. */
  input: readonly number[]
  weight: readonly number[]
  numbers: ConvolutionNumbers
  dtype: DType
}

export function productOf({ direction, input, weight, numbers }: ConvolutionShape): Product {
  const [n, h, w, c] = input as [number, number, number, number]
  const [o, kh, kw] = weight as [number, number, number]
  const { strideH, strideW, paddingH, paddingW, dilationH, dilationW } = numbers
  const windows = (size: number, kernel: number, stride: number, padding: number, dilation: number): number =>
    Math.floor((size + 2 * padding - dilation * (kernel - 1) - 1) / stride) + 1
  const pixels = n * windows(h, kh, strideH, paddingH, dilationH) * windows(w, kw, strideW, paddingW, dilationW)
  if (direction === 'forward') return { direction, rows: pixels, columns: o, depth: kh * kw * c }
  if (direction === 'backward input') return { direction, rows: n * h * w, columns: c, depth: (kh * kw * o) / (strideH * strideW) }
  return { direction, rows: o, columns: kh * kw * c, depth: pixels }
}

/** The convolution without its direction, in words that tell every two apart. */
export function convolutionKey({ input, weight, numbers, dtype }: Omit<ConvolutionShape, 'direction'>): string {
  const { strideH, strideW, paddingH, paddingW, dilationH, dilationW, tf32 } = numbers
  const windows = `stride ${strideH}x${strideW} padding ${paddingH}x${paddingW} dilation ${dilationH}x${dilationW}`
  return `${input.join('x')} by ${weight.slice(0, 3).join('x')} ${windows} ${dtype}${tf32 && dtype === 'f32' ? ' as tf32' : ''}`
}

export const shapeKey = (shape: ConvolutionShape): string => `${shape.direction} ${convolutionKey(shape)}`

/**
 * The native ops that are products of a convolution, and what their calls name the input (or its gradient), the weights (or theirs), an
 * operand in the dtype of all, and tensors that only a prologue takes.
 */
export const productOps = {
  conv2d: { direction: 'forward', input: 'x', weight: 'weight', operand: 'x', prologues: ['scale'] },
  conv2dBackwardInput: { direction: 'backward input', input: 'dx', weight: 'weight', operand: 'dy', prologues: ['gradientX'] },
  conv2dBackwardWeight: { direction: 'backward weight', input: 'x', weight: 'dweight', operand: 'dy', prologues: ['gradientX', 'scale'] },
} as const satisfies Record<string, { direction: Direction; input: string; weight: string; operand: string; prologues: readonly string[] }>
export type ProductOp = keyof typeof productOps

interface Described {
  readonly shape: readonly number[]
  readonly dtype: DType
}

export function shapeOfCall(op: ProductOp, tensors: NamedTensors<Described>, numbers: NamedNumbers): ConvolutionShape {
  const { direction, input, weight, operand } = productOps[op]
  const of = (name: string): Described => tensors[name] as Described
  return { direction, input: of(input).shape, weight: of(weight).shape, numbers: numbers as ConvolutionNumbers, dtype: of(operand).dtype }
}

export const takesPrologue = (op: ProductOp, tensors: NamedTensors<unknown>): boolean =>
  productOps[op].prologues.some((name) => tensors[name] !== undefined)

/** What a run computes its convolutions with: settings for withCompute(). */
export type TuningChoice = Required<Pick<ComputeOptions, 'fusion' | 'kernels'>>

/** A level of fusion with the kernels of the tables. */
export const untuned = (fusion: FusionLevel): TuningChoice => ({ fusion, kernels: () => undefined })

/** Whether the shape was chosen to take a prologue; undefined where nothing was chosen. */
export function chosenPrologue(shape: ConvolutionShape): boolean | undefined {
  const found = currentCompute().kernels?.(shapeKey(shape))
  return found === undefined ? undefined : found.prologue !== undefined
}

/** Runs a convolution's native op with the kernels that were chosen for it; numbers with a tile are left as they are. */
export function runProduct<O extends ProductOp>(op: O, tensors: NativeOps<Tensor>[O]['tensors'], numbers: OpNumbers<O>): void {
  const operands = tensors as NamedTensors<Tensor>
  const { device } = operands[productOps[op].operand] as Tensor
  if (!deviceTraits(device).tunable || numbers.tile !== 0) {
    runNamed(op, operands, numbers)
    return
  }
  const shape = shapeOfCall(op, operands, numbers)
  const chosen = currentCompute().kernels?.(shapeKey(shape))
  const kernels = (takesPrologue(op, operands) ? chosen?.prologue : chosen?.plain) ?? { tile: tableTile(device, shape), splits: 0 }
  runNamed(op, operands, withKernels(numbers, kernels))
}

/** Whether Hopper's kernels have the shape: bf16, and channels that are summed over in whole slices. */
export function hopperHas({ direction, input, weight, numbers, dtype }: ConvolutionShape): boolean {
  const [c, o] = [input[3]!, weight[0]!]
  if (dtype !== 'bf16') return false
  if (direction === 'backward input') return o % sliceChannels === 0 && c % accessChannels === 0
  return (
    (c % sliceChannels === 0 || unfoldsIntoSlices(c, weight[2]!, numbers.strideH, numbers.dilationH)) &&
    (direction === 'forward' || o % accessChannels === 0)
  )
}

/** Whether a tile is one for the product and may be faster than others there. */
export function tilePays(tile: number, product: Product): boolean {
  if (tile === bulkStoredTile) return product.direction === 'forward' && product.columns % accessChannels === 0
  return tile !== widestTile || widestTilePays(channelsOf(product))
}

/**
 * The tiles that differ for a shape: kernels of Ampere, and of Hopper where `hopper` says that the device runs them, with those of
 * `untimed` that it runs too. They have no prologue of an input gradient.
 */
export function candidateTiles(shape: ConvolutionShape, prologue: boolean, hopper: boolean, untimed: readonly number[]): number[] {
  // Exact f32 has one kernel.
  if (shape.dtype !== 'bf16' && !shape.numbers.tf32) return []
  const own = hopper && hopperHas(shape) && !(prologue && shape.direction === 'backward input')
  const product = productOf(shape)
  return [...ampereTiles, ...(own ? [...hopperTiles, ...untimed.filter((tile) => tilePays(tile, product))] : [])]
}

/** Splits of a weight gradient that give one to four tiles to each multiprocessor, at least 16 slices each; none of other directions. */
export function candidateSplits(shape: ConvolutionShape, tile: number, multiprocessors: number): number[] {
  if (shape.direction !== 'backward weight') return []
  const { rows, columns, depth } = productOf(shape)
  const [m, n] = tileSize(tile, true)
  const tiles = Math.ceil(rows / m) * Math.ceil(columns / n)
  const most = Math.max(1, Math.floor(depth / (16 * sliceDepth(tile, shape.dtype))))
  return [...new Set([1, 2, 3, 4].map((each) => Math.min(most, Math.max(1, Math.floor((each * multiprocessors) / tiles)))))]
}

/** The numbers of a product's call with a tile and, where it has them, splits; 0 leaves either to the kernels' own rule. */
export const withKernels = (numbers: NamedNumbers, { tile, splits }: Kernels): NamedNumbers => ({
  ...numbers,
  tile,
  ...('splits' in numbers ? { splits } : {}),
})

export const tuningFile = (architecture: string): string => join(packageRoot, 'src', 'ops', 'tuning', `${architecture}.json`)

/** sm_90 of a GPU of compute capability 9.0; undefined for other devices. */
function architectureOf(device: string): string | undefined {
  const { capability, simulated } = deviceTraits(device)
  return capability === 0 || simulated ? undefined : `sm_${capability}`
}

/** A table of tiles, undefined without a file. Throws TUNING for a file that holds none. */
export function readTable(path: string): TuningTable | undefined {
  if (!existsSync(path)) return undefined
  const bad = (problem: string): never => fail('TUNING', `${path}: expected the table of tiles that bench tune writes (${problem})`)
  let table: Partial<TuningTable> | null
  try {
    table = JSON.parse(readFileSync(path, 'utf8')) as Partial<TuningTable> | null
  } catch (error) {
    return bad(error instanceof SyntaxError ? 'it is no JSON' : systemReason(error))
  }
  const entries: unknown = table?.entries
  if (!Array.isArray(entries)) return bad('it has no list "entries"')
  const wrong = entries.findIndex((entry) => !isEntry(entry))
  return wrong < 0 ? (table as TuningTable) : bad(`entries[${wrong}] is ${JSON.stringify(entries[wrong])}`)
}

function isEntry(value: unknown): value is TuningTable['entries'][number] {
  const { direction, ...numbers } = (value ?? {}) as Partial<TuningTable['entries'][number]>
  return (
    (directions as readonly unknown[]).includes(direction) &&
    [numbers.rows, numbers.columns, numbers.depth, numbers.tile].every((number) => Number.isInteger(number) && number! > 0)
  )
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

/** The table's tile; only bf16 has one. */
export const tableTile = (device: string, shape: ConvolutionShape): number =>
  shape.dtype === 'bf16' ? tunedTile(device, productOf(shape)) : 0

export function tunedTile(device: string, product: Product): number {
  const own = architectureOf(device)
  if (own === undefined) return 0
  // Without Hopper's kernels the others have the tiles that suit them elsewhere.
  const architecture = own === 'sm_90' && !usesFamily(device, familyOf('wgmma', product.direction)) ? 'sm_80' : own
  if (!lookups.has(architecture)) {
    const table = readTable(tuningFile(architecture))
    lookups.set(architecture, table && indexed(table))
  }
  const index = lookups.get(architecture)
  return index === undefined ? 0 : nearestTile(index, product)
}
