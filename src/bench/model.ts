/**
 * A model of what kernels take on a GPU that is not here. A convolution's product takes the longest of its operations, its bytes, its
 * reads of shared memory, the instructions it issues and the thread that copies for it, as often as tiles fill the multiprocessors,
 * and the epilogues that nothing hides. It chooses tiles, src/bench/step/predict.ts makes a step of it, and its times stand beside
 * measured ones. What it knows of the kernels is the table of src/bench/constants.ts; it knows nothing of clocks that sink under load.
 */
import { bulkStoredTile, tileSize, untimedTiles, widestTile } from '../ops/kernels.js'
import type { Product } from '../ops/tuning.js'
import { type Constants, constantsOf } from './constants.js'

export interface Architecture {
  name: string
  gpu: string
  multiprocessors: number
  /** What large products and copies reach, TFLOP/s of bf16 with f32 sums and GB/s read and written; assumed except on the H200. */
  teraflops: number
  gigabytesPerSecond: number
  /** KiB of a multiprocessor. */
  shared: number
  gigahertz: number
  /** Share of the tensor rate that mma.sync reaches. */
  mmaSync: number
}

export const architectures: Record<string, Architecture> = {
  sm_80: {
    name: 'sm_80',
    gpu: 'A100 80 GB',
    multiprocessors: 108,
    teraflops: 265,
    gigabytesPerSecond: 1750,
    shared: 164,
    gigahertz: 1.41,
    mmaSync: 1,
  },
  sm_86: {
    name: 'sm_86',
    gpu: 'RTX 3090',
    multiprocessors: 82,
    teraflops: 64,
    gigabytesPerSecond: 840,
    shared: 100,
    gigahertz: 1.7,
    mmaSync: 1,
  },
  sm_89: {
    name: 'sm_89',
    gpu: 'RTX 4090',
    multiprocessors: 128,
    teraflops: 150,
    gigabytesPerSecond: 900,
    shared: 100,
    gigahertz: 2.5,
    mmaSync: 1,
  },
  sm_90: {
    name: 'sm_90',
    gpu: 'H200',
    multiprocessors: 132,
    teraflops: 790,
    gigabytesPerSecond: 4300,
    shared: 227,
    gigahertz: 1.75,
    mmaSync: 0.5,
  },
}

/** GPUs that a step is predicted for. */
export const gpus: Record<string, Architecture> = {
  A100: architectures.sm_80!,
  H100: { ...architectures.sm_90!, gpu: 'H100 SXM', gigabytesPerSecond: 3000 },
  H200: architectures.sm_90!,
}

interface Tile {
  id: number
  m: number
  n: number
  /**
   * Warps along m and n, each of which reads its part of both operands from shared memory; of Hopper's tiles the products of 64 rows, each
   * of which does, whichever warpgroup they are of.
   */
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
  { id: 6, m: 128, n: 256, warps: [2, 1], shared: 213, registers: 64, hopper: true },
  { id: 7, m: 128, n: 128, warps: [2, 1], shared: 217, registers: 64, hopper: true },
]

/** Hopper's tiles of a weight gradient lie on their side; those stored by bulk copies are as wide as the channels ask for. */
function tileOf(tile: Tile, { direction, columns }: Product): Tile {
  if (tile.id === bulkStoredTile && columns <= 64) return { ...tile, n: 64 }
  if (!tile.hopper || direction !== 'backward weight') return tile
  const [[m, n], [down, across]] = [tileSize(tile.id, true), tile.warps]
  return { ...tile, m, n, warps: [across, down] }
}

/** Which tiles the kernels have for a product: Hopper's want whole slices of 64 channels. */
export const tilesFor = (architecture: Architecture, wholeSlices: boolean): Tile[] =>
  tiles.filter(({ hopper }) => !hopper || (architecture.name === 'sm_90' && wholeSlices))

/** Those of them that a GPU has timed: what a table by the model may name. The others are candidates of the tuner until then. */
export const timedTiles = (architecture: Architecture, wholeSlices: boolean): Tile[] =>
  tilesFor(architecture, wholeSlices).filter(({ id }) => !untimedTiles.has(id))

/** What a product does beside multiplying. */
export interface Around {
  /** Results are stored, with statistics of their columns, or as an input gradient's consumer wants them. */
  epilogue: 'store' | 'statistics' | 'finish'
  /** An operand whose channels are no whole vectors: its elements are gathered one by one. */
  gathered: boolean
  /** Operands are normalised as they are loaded; `taps` of them lie in the padding, whose zeros stay zero. */
  prologue: 'none' | 'one tap' | 'taps'
}

/** What surrounds the convolutions of a step. Few odd channels (a depth of at most 7 rows of 64) are unfolded into whole vectors. */
const usual = ({ direction, columns, depth }: Product): Around => {
  const odd = direction === 'backward weight' ? columns : depth
  return {
    epilogue: direction === 'forward' ? 'statistics' : direction === 'backward input' ? 'finish' : 'store',
    gathered: odd % 8 !== 0 && odd > 7 * 64,
    prologue: 'none',
  }
}

export type Bound = 'bytes' | 'tensor cores' | 'shared memory' | 'producer' | 'instructions' | 'epilogue' | 'chain' | 'launch'

export interface Predicted {
  microseconds: number
  /** What the time is made of: of the multiprocessors, and of memory; the larger counts. */
  math: number
  memory: number
  /** The part of `math` that epilogues take and nothing hides. */
  epilogue: number
  bound: Bound
  /** Blocks on a multiprocessor. */
  resident: number
  splits: number
}

/** Parts and pixels of each, as the kernels split the pixels of a weight gradient (Splits of native/cuda/conv2d.cuh). */
export function splitsOf(
  pixels: number,
  tileCount: number,
  blocks: number,
  slice: number,
  results: number,
  filled = true,
): { share: number; count: number } {
  const most = Math.max(1, Math.floor(pixels / (16 * slice)))
  const split = (n: number): { share: number; count: number } => {
    const share = Math.ceil(Math.ceil(pixels / n) / slice) * slice
    return { share, count: Math.max(1, Math.ceil(pixels / Math.max(1, share))) }
  }
  if (!filled) return split(Math.min(most, Math.ceil(blocks / tileCount)))
  let best = { share: 0, count: 0, cost: 0, fills: false }
  for (let n = 1; n <= most && n <= 4 * blocks; ++n) {
    const { share, count } = split(n)
    if (count !== n) continue
    const waves = Math.ceil((tileCount * n) / blocks)
    const fills = 10 * tileCount * pixels >= 9 * waves * blocks * share
    if (best.count > 0 && best.fills && !fills) continue
    const cost = waves * (share / slice + 4) + (count > 1 ? (2 * count * results * 4) / 2 ** 20 : 0)
    if (best.count > 0 && best.fills === fills && cost >= best.cost) continue
    best = { share, count, cost, fills }
  }
  return { share: best.share, count: best.count }
}

/** Microseconds of a product on one architecture with one tile; `bytes` is what passes device memory, partial sums aside. */
export function predict(
  architecture: Architecture,
  product: Product,
  wanted: Tile,
  bytes: number,
  around: Around = usual(product),
  constants: Constants = constantsOf('now'),
): Predicted {
  const { multiprocessors, gigabytesPerSecond, gigahertz } = architecture
  const { direction, rows, columns, depth } = product
  const tile = tileOf(around.gathered ? tiles[1]! : wanted, product)
  const [slice, weight] = [tile.hopper ? 64 : 32, direction === 'backward weight']
  const tileCount = Math.ceil(rows / tile.m) * Math.ceil(columns / tile.n)
  const { share, count } = weight
    ? splitsOf(depth, tileCount, (tile.hopper ? 1 : 2) * multiprocessors, slice, rows * columns, constants.splitsFilled !== 0)
    : { share: depth, count: 1 }
  const slices = Math.ceil(share / slice)
  const each = Math.ceil((tileCount * count) / multiprocessors)
  const parts = sliceCycles(architecture, product, tile, around, constants)
  const [bound, cycles] = (Object.entries(parts) as [Bound, number][]).reduce((a, b) => (b[1] > a[1] ? b : a))
  // Where both warpgroups finish one tile nobody multiplies meanwhile; what taking tiles in turn gained, they lose.
  const together = tile.id === widestTile && !weight ? constants.together : 1
  const own = together * epilogueCycles(direction, tile, around.epilogue, constants)
  const resident = residentBlocks(architecture, tile, around)
  // Hopper's blocks are one to a multiprocessor: its tensor cores wait for the epilogue, while the next tile's slices arrive.
  const shown = own * (resident > 1 ? 1 - constants.hidden : 1)
  const microseconds = (n: number): number => n / gigahertz / 1e3
  const epilogue = microseconds(each * shown)
  // Blocks beside each other hide the first slice and the last stores of one another, unless they are too few for that.
  const alone = slices * cycles + own + constants.fill
  const math = microseconds(
    tile.hopper
      ? each * (slices * cycles + shown) + constants.fill
      : Math.max(each * (slices * cycles + shown) + constants.fill, Math.ceil(each / resident) * alone),
  )
  const partial = count > 1 ? count * rows * columns * 4 : 0
  const memory = (bytes + partial) / (gigabytesPerSecond * constants.multiplied) / 1e3
  const sum =
    partial === 0
      ? 0
      : constants.launch + Math.max(partial / (gigabytesPerSecond * constants.streamed) / 1e3, microseconds(sumCycles(count, constants)))
  const longest: Bound = memory >= math ? 'bytes' : 2 * epilogue > math ? 'epilogue' : bound
  return { microseconds: Math.max(math, memory) + constants.launch + sum, math, memory, epilogue, bound: longest, resident, splits: count }
}

/** The loads of partial sums that wait for one another: of few splits a thread adds all, of many the lines of a block share them. */
function sumCycles(splits: number, { mergeCycles, mergeLines, mergeDown, splitsTogether, splitsAlone }: Constants): number {
  if (splits <= splitsAlone) return Math.ceil(splits / splitsTogether) * mergeCycles
  return Math.ceil(splits / mergeLines / splitsTogether) * mergeCycles + mergeDown
}

/** Cycles of a multiprocessor for a slice of one tile, by what bounds them. */
function sliceCycles(
  { teraflops, gigahertz, multiprocessors, mmaSync }: Architecture,
  { direction }: Product,
  tile: Tile,
  { gathered, prologue }: Around,
  constants: Constants,
): Partial<Record<Bound, number>> {
  const { m, n, hopper } = tile
  const [warpsM, warpsN] = tile.warps
  const slice = hopper ? 64 : 32
  const perCycle = (teraflops * 1e3 * (hopper ? 1 : mmaSync)) / gigahertz / multiprocessors
  const products = (2 * m * n * slice) / perCycle
  // 128 bytes a cycle pass: what is multiplied, and, by bulk copies, what arrives.
  const read = (m * warpsN + n * warpsM) * slice * 2
  if (hopper) {
    const stalls = {
      forward: constants.producerForward,
      'backward input': constants.producerInput,
      'backward weight': constants.producerWeight,
    }[direction]
    return {
      'tensor cores': products,
      'shared memory': (read + (m + n) * slice * 2) / 128,
      producer: stalls * constants.latency,
      instructions: prologue === 'none' ? 0 : fragmentCycles(direction, prologue === 'taps', tile.id === widestTile, constants),
    }
  }
  const own = tile.id === 1 ? constants.slice128x128 : tile.id === 2 ? constants.slice128x64 : constants.slice64x64
  const walk = { forward: 1, 'backward input': constants.sliceInput, 'backward weight': constants.sliceWeight }[direction]
  const odd = { forward: constants.gatherForward, 'backward input': constants.gatherInput, 'backward weight': constants.gatherWeight }[
    direction
  ]
  const instructions = gathered ? odd : own * walk + (prologue === 'none' ? 0 : constants.prologue)
  return { 'tensor cores': products, 'shared memory': read / 128, instructions: (warpsM * warpsN * instructions) / (4 * constants.issue) }
}

/**
 * Cycles of a slice whose left operand is normalised in registers beside the products: by a warp of each scheduler, as warpgroups take
 * tiles in turn, or for a weight gradient and the widest tile by two.
 */
function fragmentCycles(direction: Product['direction'], taps: boolean, widest: boolean, constants: Constants): number {
  if (direction === 'forward' && widest) return (2 * (taps ? constants.normWidestTaps : constants.normWidest)) / constants.issue
  if (direction === 'forward') return constants.latency * (taps ? constants.normForwardTaps : constants.normForward)
  return (2 * (taps ? constants.normWeightTaps : constants.normWeight)) / constants.issue
}

/** Cycles of a multiprocessor from the last product of a tile until its results are on their way. */
function epilogueCycles(direction: Product['direction'], { id, m, n }: Tile, epilogue: Around['epilogue'], constants: Constants): number {
  const [results, thousands] = [m * n, (m * n) / 1024]
  if (epilogue === 'finish')
    return thousands * (constants.stage + constants.finishConflicts) + ((results / 256) * constants.finishRow) / (4 * constants.finishIssue)
  const bytes = direction === 'backward weight' ? 2 : 1 // f32
  const store = id === bulkStoredTile ? constants.bulkStore : constants.store
  return thousands * (bytes * (constants.stage + store) + (epilogue === 'statistics' ? constants.statistics : 0))
}

function residentBlocks({ shared }: Architecture, tile: Tile, { prologue }: Around): number {
  if (tile.hopper) return 1
  const registers = prologue === 'none' ? tile.registers : 1.6 * tile.registers
  return Math.max(1, Math.min(Math.floor(shared / (tile.shared + 1)), Math.floor(64 / registers)))
}
