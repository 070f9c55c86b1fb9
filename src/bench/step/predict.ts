/**
 * What the calls of a step take on a GPU that is not here: each native call as the launches that native/cuda makes of it, each launch
 * by src/bench/model.ts, or, where it only passes over memory, by its bytes at the bandwidth that such passes reach, the instructions
 * it issues and the loads that wait for one another.
 */

import { type ConstantName, type Constants, constantsOf, type KernelState } from '../constants.js'
import { type Architecture, type Around, type Bound, predict, tiles } from '../model.js'
import { type ConvolutionNumbers, indexed, nearestTile, type Product, readTable, tuningFile } from '../../ops/tuning.js'
import { sliceChannels, unfoldsIntoSlices } from '../../ops/kernels.js'
import type { OpNumbers } from '../../tensor/native.js'
import { bytesAt, bytesOf, type Call, type CallTensor } from './calls.js'

/** A launch, or several of one kernel. */
export interface Cost {
  kernel: string
  /** Its operands, in words. */
  what: string
  launches: number
  microseconds: number
  bound: Bound
  bytes: number
  operations: number
  /** The larger of bytes and operations at what large copies and products reach, microseconds. */
  floor: number
}

/** The kernels of a state on an architecture. */
export class Machine {
  readonly constants: Constants
  readonly #table: ReturnType<typeof indexed> | undefined
  constructor(
    readonly architecture: Architecture,
    state: KernelState,
    overrides: Partial<Record<ConstantName, number>> = {},
  ) {
    this.constants = { ...constantsOf(state), ...overrides }
    const table = readTable(tuningFile(architecture.name))
    this.#table = table && indexed(table)
  }

  costs(call: Call): Cost[] {
    const known = kernels[call.op]
    return known === undefined ? [this.passes(call.op, call.op, bytesOf(call))] : known(this, call)
  }

  /** A kernel that passes over `bytes`, for which it issues instructions of warps, or waits for a chain of loads. */
  passes(kernel: string, what: string, bytes: number, { launches = 1, warpInstructions = 0, chainCycles = 0, operations = 0 } = {}): Cost {
    const { multiprocessors, gigahertz, gigabytesPerSecond } = this.architecture
    const times: Record<Exclude<Bound, 'launch'>, number> = {
      bytes: bytes / (gigabytesPerSecond * this.constants.streamed) / 1e3,
      instructions: warpInstructions / (4 * this.constants.issue * multiprocessors) / gigahertz / 1e3,
      chain: chainCycles / gigahertz / 1e3,
      'tensor cores': 0,
      'shared memory': 0,
      producer: 0,
      epilogue: 0,
    }
    const [bound, longest] = (Object.entries(times) as [Bound, number][]).reduce((a, b) => (b[1] > a[1] ? b : a))
    const ramps = launches * this.constants.launch
    return this.#cost(kernel, what, launches, longest + ramps, ramps > longest ? 'launch' : bound, bytes, operations)
  }

  /** A product of a convolution. */
  product(
    kernel: string,
    what: string,
    product: Product,
    { tile, whole, ...around }: Around & { tile: number; whole: boolean },
    bytes: number,
  ): Cost {
    const { name, multiprocessors } = this.architecture
    const hopper = name === 'sm_90' && whole && !around.gathered
    // The kernels' own rule, where neither the caller nor the table has a tile that fits.
    const large = (n: number): boolean => Math.ceil(product.rows / 128) * Math.ceil(product.columns / n) >= multiprocessors
    const narrow = (product.direction === 'backward weight' ? product.rows : product.columns) <= 64
    const own =
      hopper && tile === 0
        ? narrow
          ? 5
          : 4
        : tile > 0 && (tile <= 3 || hopper)
          ? tile
          : product.columns > 64 && large(128)
            ? 1
            : large(64)
              ? 2
              : 3
    const chosen = tiles.find(({ id }) => id === own)!
    const { microseconds, bound, splits } = predict(this.architecture, product, chosen, bytes, around, this.constants)
    const operations = 2 * product.rows * product.columns * product.depth
    return this.#cost(
      `${kernel}${chosen.hopper ? ', wgmma' : around.gathered ? ', gathered' : ''}`,
      `${what}, tile ${own}${splits > 1 ? `, ${splits} splits` : ''}`,
      splits > 1 ? 2 : 1,
      microseconds,
      bound,
      bytes,
      operations,
    )
  }

  tile(product: Product): number {
    return this.#table === undefined ? 0 : nearestTile(this.#table, product)
  }

  #cost(kernel: string, what: string, launches: number, microseconds: number, bound: Bound, bytes: number, operations: number): Cost {
    const floor = Math.max(bytes / this.architecture.gigabytesPerSecond / 1e3, operations / this.architecture.teraflops / 1e6)
    return { kernel, what, launches, microseconds, bound, bytes, operations, floor }
  }
}

interface Convolution {
  n: number
  h: number
  w: number
  c: number
  oh: number
  ow: number
  o: number
  kh: number
  kw: number
  stride: readonly [number, number]
  padding: readonly [number, number]
  dilation: readonly [number, number]
  pixels: number
}

function convolutionOf(x: CallTensor, weight: CallTensor, y: CallTensor, { numbers }: Call): Convolution {
  const [n, h, w, c] = x.shape as [number, number, number, number]
  const [o, kh, kw] = weight.shape as [number, number, number]
  const [oh, ow] = [y.shape[1]!, y.shape[2]!]
  const { strideH, strideW, paddingH, paddingW, dilationH, dilationW } = numbers as ConvolutionNumbers
  const [stride, padding, dilation] = [[strideH, strideW] as const, [paddingH, paddingW] as const, [dilationH, dilationW] as const]
  return { n, h, w, c, oh, ow, o, kh, kw, stride, padding, dilation, pixels: n * oh * ow }
}

/** The tensors of a call, of which those that are read are there. */
const operandsOf = ({ tensors }: Call): Record<string, CallTensor> => tensors as Record<string, CallTensor>

const nameOf = ({ h, w, c, o, kh, kw, stride }: Convolution): string =>
  `${kh}x${kw}${stride[0] * stride[1] > 1 ? `/${stride[0]}` : ''} ${c}->${o} @${h}x${w}`
const vectors = (channels: number): boolean => channels % 8 === 0
const size = (tensor: { shape: readonly number[] }): number => tensor.shape.reduce((a, b) => a * b, 1)
/** The share of an operand that a strided kernel reads: every pixel, or those under its taps. */
const touched = ({ kh, kw, stride }: Convolution): number => Math.min(1, (kh * kw) / (stride[0] * stride[1]))

/** Few channels, unfolded (Unfolding of conv2d.cuh): bytes of the images, rows of taps and their channels; undefined where they are not. */
function unfolding(machine: Machine, g: Convolution): { bytes: number; kh: number; channels: number; slices: boolean } | undefined {
  const { n, h, oh, ow, c, kh, kw, stride, dilation } = g
  if (machine.constants.unfolds === 0 || vectors(c) || kw * c > 64) return undefined
  const slices = machine.architecture.name === 'sm_90' && unfoldsIntoSlices(c, kw, stride[0], dilation[0])
  const rows = slices ? stride[0] : 1
  const channels = slices ? sliceChannels : Math.ceil((kw * c) / 8) * 8
  const taps = Math.ceil(kh / rows)
  return { bytes: n * (rows > 1 ? oh + taps - 1 : h) * ow * channels * 2, kh: taps, channels, slices }
}

/** What a product that takes deferred operands does on their way in. */
const prologueOf = (taken: boolean, { kh, kw }: Convolution): Around['prologue'] => (taken ? (kh * kw === 1 ? 'one tap' : 'taps') : 'none')

/**
 * The deferred operands that a product takes (src/ops/conv2d.ts), the others of which passes write: all by the kernels of Ampere, by
 * those of Hopper the norm of x where it has one tap.
 */
function prologuesOf({ architecture }: Machine, whole: boolean, { kh, kw }: Convolution): { norm: boolean; gradient: boolean } {
  const hopper = architecture.name === 'sm_90' && whole
  return { norm: !hopper || kh * kw === 1, gradient: !hopper }
}

function forward(machine: Machine, call: Call): Cost[] {
  const { y, x, weight } = operandsOf(call) as Record<'y' | 'x' | 'weight', CallTensor>
  const g = convolutionOf(x, weight, y, call)
  const product: Product = { direction: 'forward', rows: g.pixels, columns: g.o, depth: g.kh * g.kw * g.c }
  const costs: Cost[] = []
  let bytes = bytesAt(call, 'y', 'weight', 'bias', 'statistics') + touched(g) * x.bytes
  const wide = unfolding(machine, g)
  const depth = wide === undefined ? product.depth : wide.kh * wide.channels
  if (wide !== undefined) {
    costs.push(machine.passes('unfold', nameOf(g), x.bytes + wide.bytes))
    bytes += wide.bytes - touched(g) * x.bytes
  }
  const whole = g.c % sliceChannels === 0 || wide?.slices === true
  const deferred = call.tensors.scale !== undefined
  const { norm } = prologuesOf(machine, whole, g)
  if (deferred && !norm) costs.push(machine.passes('normApply', nameOf(g), 2 * x.bytes))
  const around = {
    epilogue: call.tensors.statistics === undefined ? ('store' as const) : ('statistics' as const),
    gathered: wide === undefined && !vectors(g.c),
    prologue: prologueOf(deferred && norm, g),
  }
  costs.push(machine.product('conv2d', nameOf(g), { ...product, depth }, { ...around, tile: machine.tile(product), whole }, bytes))
  return costs
}

/** The taps of one axis that meet input positions a, a + stride, ... */
function tapsOf(a: number, stride: number, padding: number, dilation: number, kernel: number): number {
  let taps = 0
  for (let k = 0; k < kernel; ++k) if ((a + padding - k * dilation) % stride === 0) ++taps
  return taps
}

function backwardInput(machine: Machine, call: Call): Cost[] {
  const { dx, dy, weight } = operandsOf(call) as Record<'dx' | 'dy' | 'weight', CallTensor>
  const g = convolutionOf(dx, weight, dy, call)
  const whole: Product = {
    direction: 'backward input',
    rows: g.n * g.h * g.w,
    columns: g.c,
    depth: (g.kh * g.kw * g.o) / (g.stride[0] * g.stride[1]),
  }
  const finishes = call.tensors.add !== undefined || call.tensors.x !== undefined
  const slices = g.o % sliceChannels === 0 && vectors(g.c)
  const deferred = call.tensors.gradientX !== undefined && prologuesOf(machine, slices, g).gradient
  const around: Around = {
    epilogue: finishes ? 'finish' : 'store',
    gathered: !vectors(g.o) || !vectors(g.c),
    prologue: prologueOf(deferred, g),
  }
  const costs: Cost[] = []
  // Each residue class of the input pixels: its share of what is written and of what the epilogue reads.
  const own = bytesAt(call, 'dx', 'add', 'x', 'y', 'sums')
  for (let a = 0; a < Math.min(g.stride[0], g.h); ++a)
    for (let b = 0; b < Math.min(g.stride[1], g.w); ++b) {
      const taps = tapsOf(a, g.stride[0], g.padding[0], g.dilation[0], g.kh) * tapsOf(b, g.stride[1], g.padding[1], g.dilation[1], g.kw)
      const rows = g.n * Math.ceil((g.h - a) / g.stride[0]) * Math.ceil((g.w - b) / g.stride[1])
      const bytes =
        (own * rows) / whole.rows +
        (taps > 0 ? dy.bytes + (deferred ? bytesAt(call, 'gradientX') : 0) + (weight.bytes * taps) / (g.kh * g.kw) : 0)
      costs.push(
        machine.product(
          'conv2dBackwardInput',
          nameOf(g),
          { ...whole, rows, depth: taps * g.o },
          { ...around, tile: machine.tile(whole), whole: slices },
          bytes,
        ),
      )
    }
  return costs
}

function backwardWeight(machine: Machine, call: Call): Cost[] {
  const { dweight, dy, x } = operandsOf(call) as Record<'dweight' | 'dy' | 'x', CallTensor>
  const g = convolutionOf(x, dweight, dy, call)
  const product: Product = { direction: 'backward weight', rows: g.o, columns: g.kh * g.kw * g.c, depth: g.pixels }
  const costs: Cost[] = []
  const wide = unfolding(machine, g)
  const slices = (g.c % sliceChannels === 0 || wide?.slices === true) && vectors(g.o)
  const takes = prologuesOf(machine, slices, g)
  const [norm, gradient] = [call.tensors.scale !== undefined, call.tensors.gradientX !== undefined]
  // A norm that it does not take was written for the forward product.
  if (gradient && !takes.gradient) costs.push(machine.passes('normGradient', nameOf(g), 3 * dy.bytes))
  let bytes = dweight.bytes + dy.bytes + touched(g) * x.bytes + (gradient && takes.gradient ? bytesAt(call, 'gradientX') : 0)
  if (wide !== undefined) {
    costs.push(machine.passes('unfold', nameOf(g), x.bytes + wide.bytes))
    bytes += wide.bytes - touched(g) * x.bytes
  }
  const around: Around = {
    epilogue: 'store',
    gathered: !vectors(g.o) || (wide === undefined && !vectors(g.c)),
    prologue: prologueOf((norm && takes.norm) || (gradient && takes.gradient), g),
  }
  costs.push(
    machine.product(
      'conv2dBackwardWeight',
      nameOf(g),
      { ...product, columns: wide === undefined ? product.columns : wide.kh * wide.channels },
      { ...around, tile: machine.tile(product), whole: slices },
      bytes,
    ),
  )
  return costs
}

/**
 * Lines of partial results of each group, added by blocks of 32 channels, of which the last finishes (FinishPlan of lines.cuh). What counts
 * are the loads that wait for one another.
 */
function finish(
  machine: Machine,
  kernel: string,
  what: string,
  lines: number,
  groups: number,
  channels: number,
  planes: number,
  together: number,
): Cost {
  const { mergeCycles, mergeLines, mergeParts, mergeSerial, mergeDown } = machine.constants
  const perGroup = Math.ceil(lines / groups)
  const bytes = lines * planes * channels * 4
  const steps = (count: number, sharers: number): number => Math.ceil(Math.ceil(count / sharers) / together)
  if (mergeParts === 0)
    return machine.passes(kernel, what, bytes, { chainCycles: groups * (steps(perGroup, mergeLines) * mergeCycles + mergeDown) })
  const share = Math.max(1, Math.floor((perGroup * groups > 64 ? mergeLines : 8) / groups))
  const blocks = Math.ceil(channels / 32) * groups
  const { multiprocessors } = machine.architecture
  const parts = Math.min(mergeParts, Math.ceil(multiprocessors / blocks), Math.floor(perGroup / (2 * mergeLines)))
  if (perGroup <= mergeSerial * share || parts < 2)
    return machine.passes(kernel, what, bytes, { chainCycles: steps(perGroup, share) * mergeCycles + mergeDown })
  // Blocks of 1,024 threads are two to a multiprocessor.
  const waves = Math.ceil((blocks * parts) / (2 * multiprocessors))
  const first = waves * (steps(perGroup, parts * mergeLines) * mergeCycles + mergeDown)
  return machine.passes(kernel, what, bytes, { chainCycles: first + (1 + steps(parts, share)) * mergeCycles + mergeDown })
}

const rowsOf = (shape: readonly number[]): number => shape.slice(0, -1).reduce((a, b) => a * b, 1)
/** Blocks of a pass over rows leave a line of partial results each: at most 8 a multiprocessor and tile of channels (batchNorm.cuh). */
const blockLines = ({ architecture }: Machine, rows: number, channels: number): number =>
  Math.min(Math.ceil(rows / 32), Math.ceil((8 * architecture.multiprocessors) / Math.ceil(channels / 256)))

function normForward(machine: Machine, call: Call): Cost[] {
  const { x, mean } = operandsOf(call) as Record<'x' | 'mean', CallTensor>
  const [channels, rows, groups] = [x.shape.at(-1)!, rowsOf(x.shape), mean.shape[0]!]
  const what = `${x.shape[1]}x${x.shape[2]}x${channels}`
  const given = call.tensors.statistics !== undefined
  const costs = given ? [] : [machine.passes('batchNormTrain: statistics', what, x.bytes)]
  costs.push(
    finish(
      machine,
      'batchNormTrain: finish',
      what,
      given ? Math.ceil(rows / 64) : blockLines(machine, rows, channels),
      groups,
      channels,
      2,
      machine.constants.mergeTogether,
    ),
  )
  if (call.tensors.y !== undefined) costs.push(machine.passes('batchNormTrain: apply', what, bytesAt(call, 'y', 'x', 'residual')))
  return costs
}

function normBackward(machine: Machine, call: Call): Cost[] {
  const { x, mean } = operandsOf(call) as Record<'x' | 'mean', CallTensor>
  const [channels, rows, groups] = [x.shape.at(-1)!, rowsOf(x.shape), mean.shape[0]!]
  const what = `${x.shape[1]}x${x.shape[2]}x${channels}`
  const { sums } = call.tensors
  const costs = sums !== undefined ? [] : [machine.passes('batchNormBackward: reduce', what, bytesAt(call, 'dz', 'dy', 'x', 'y'))]
  const lines = sums === undefined ? blockLines(machine, rows, channels) : sums.shape[0]!
  costs.push(finish(machine, 'batchNormBackward: finish', what, lines, groups, channels, 2, machine.constants.sumTogether))
  // Where the reduction wrote dz, the pass reads that.
  const mask = sums === undefined && call.tensors.dz === undefined ? bytesAt(call, 'y') : 0
  if (call.tensors.dx !== undefined) costs.push(machine.passes('batchNormBackward: combine', what, bytesAt(call, 'dx', 'dy', 'x') + mask))
  return costs
}

function infoNce(machine: Machine, call: Call): Cost[] {
  const { query, queue } = operandsOf(call) as Record<'query' | 'queue', CallTensor>
  const { temperature, unit } = call.numbers as OpNumbers<'infoNce'>
  const [rows, dim, keys] = [query.shape[0]!, query.shape[1]!, queue.shape[0]!]
  const { architecture, constants } = machine
  const what = `${rows} x ${keys} x ${dim}`
  const hopper = architecture.name === 'sm_90' && dim <= 128 && vectors(dim)
  const [tileRows, tileKeys] = hopper ? [128, 128] : [64, 64]
  const [rowBlocks, tileCount] = [Math.ceil(rows / tileRows), Math.ceil(keys / tileKeys)]
  const perSplit = Math.ceil(tileCount / Math.min(tileCount, Math.max(1, Math.floor((4 * architecture.multiprocessors) / rowBlocks))))
  const splits = Math.ceil(tileCount / perSplit)
  const perCycle =
    (architecture.teraflops * 1e3 * (hopper ? 1 : architecture.mmaSync)) / architecture.gigahertz / architecture.multiprocessors
  const products = (4 * tileRows * tileKeys * dim) / perCycle
  // Unit vectors need no running maximum where the temperature allows (fixedReference of contrast.cuh).
  const fixed = unit && Math.LOG2E / temperature <= 50
  const each = hopper
    ? fixed
      ? constants.contrastHopper
      : constants.contrastHopperAny
    : fixed
      ? constants.contrastAmpere
      : constants.contrastAmpereAny
  const exponentials = ((hopper ? 8 : 4) * each) / 4
  const cycles = Math.max(products, exponentials) + (1 - constants.contrastOverlap) * Math.min(products, exponentials)
  const items = Math.ceil((rowBlocks * splits) / architecture.multiprocessors) * perSplit
  const partial = splits * rows * (dim * 4 + 12)
  const operations = 4 * rows * keys * dim
  const pass = machine.passes('infoNce', what, bytesAt(call, 'query', 'queue') + partial, { chainCycles: items * cycles, operations })
  const bound: Bound = pass.bound === 'chain' ? (products > exponentials ? 'tensor cores' : 'instructions') : pass.bound
  return [
    { ...pass, bound },
    machine.passes('infoNce: merge', what, partial + bytesAt(call, 'dquery', 'query', 'positive')),
    // One block for all rows.
    machine.passes('infoNce: means', what, rows * 20, {
      chainCycles: (Math.ceil(rows / constants.meanThreads) * constants.chainCycles) / 4,
    }),
  ]
}

function maxPool(machine: Machine, call: Call): Cost[] {
  const { poolTap, poolUnit, poolNormed } = machine.constants
  const { y } = operandsOf(call) as Record<'y', CallTensor>
  const { kernelH, kernelW } = call.numbers as OpNumbers<'maxPool2d'>
  const taps = kernelH * kernelW * (call.tensors.scale === undefined ? poolTap : poolNormed)
  return [machine.passes('maxPool2d', y.shape.join('x'), bytesOf(call), { warpInstructions: (size(y) / 256) * (poolUnit + taps) })]
}

/** The samples of a RoIAlign, of which a warp takes 256 channels at a time; for the gradient each of their cells asks for its share. */
function roiAlign(machine: Machine, kernel: string, map: CallTensor, bins: CallTensor, instructions: number, launches: number): Cost[] {
  const warps = Math.ceil(bins.shape.at(-1)! / 256) * rowsOf(bins.shape) * machine.constants.roiSamples
  const what = `${bins.shape.join('x')} of ${map.shape.slice(0, 3).join('x')}`
  return [machine.passes(kernel, what, map.bytes + bins.bytes, { warpInstructions: warps * instructions, launches })]
}

/** Rows sorted by a radix sort of four digits, each counted, scanned and moved. */
const sorted = (machine: Machine, kernel: string, scores: CallTensor, launches: number): Cost =>
  machine.passes(kernel, scores.shape.join('x'), size(scores) * (scores.bytes / size(scores) + 8 + 4 * (8 + 12)), {
    launches: 13 + launches,
  })

/** The kernels of each op that are more than one pass over its tensors. */
const kernels: Record<string, (machine: Machine, call: Call) => Cost[]> = {
  conv2d: forward,
  conv2dBackwardInput: backwardInput,
  conv2dBackwardWeight: backwardWeight,
  batchNormTrain: normForward,
  batchNormBackward: normBackward,
  infoNce,
  maxPool2d: maxPool,
  maxPool2dBackward: (machine, call) => [
    machine.passes('maxPool2dBackward', call.tensors.dx!.shape.join('x'), bytesOf(call), {
      warpInstructions: (size(call.tensors.dx!) / 256) * machine.constants.poolBackward,
    }),
  ],
  denseMatch(machine, call) {
    // Norms of both maps, and a tile of 64x64 for each image, whose slices follow one another.
    const { query, key } = operandsOf(call) as Record<'query' | 'key', CallTensor>
    const operations = 2 * size(query) * key.shape[1]!
    const waves = Math.ceil(query.shape[0]! / (4 * machine.architecture.multiprocessors))
    return [
      machine.passes('denseMatch', query.shape.join('x'), 2 * bytesAt(call, 'query', 'key'), {
        launches: 3,
        operations,
        chainCycles: (waves * (query.shape[2]! / 32) * machine.constants.chainCycles) / 2,
      }),
    ]
  },
  roiAlign: (machine, call) => {
    const { x, y } = operandsOf(call) as Record<'x' | 'y', CallTensor>
    return roiAlign(machine, 'roiAlign', x, y, machine.constants.roiSample, 1)
  },
  roiAlignBackward: (machine, call) => {
    const { dx, dy } = operandsOf(call) as Record<'dx' | 'dy', CallTensor>
    return roiAlign(machine, 'roiAlignBackward', dx, dy, machine.constants.roiSampleBack, 2)
  },
  topK: (machine, call) => [sorted(machine, 'topK', call.tensors.x!, 1)],
  sort: (machine, call) => [sorted(machine, 'sort', call.tensors.x!, 1)],
  nms(machine, call) {
    const { boxes, scores } = operandsOf(call) as Record<'boxes' | 'scores', CallTensor>
    const [images, n] = [boxes.shape[0]!, boxes.shape[1]!]
    const words = Math.ceil(n / 32)
    const bits = images * n * words * 4
    return [
      sorted(machine, 'nms: sort', scores, 1),
      machine.passes('nms: suppression', boxes.shape.join('x'), bits / 2, {
        warpInstructions: (images * n * n * machine.constants.nmsPair) / 2 / 32,
      }),
      // A block takes an image, all images run at once.
      machine.passes('nms: keep', boxes.shape.join('x'), bits / 2, { chainCycles: words * machine.constants.nmsWord }),
    ]
  },
  sumRows(machine, call) {
    const { sum, x } = operandsOf(call) as Record<'sum' | 'x', CallTensor>
    const what = x.shape.join('x')
    return [
      machine.passes('sumRows', what, bytesOf(call)),
      finish(
        machine,
        'sumRows: finish',
        what,
        blockLines(machine, rowsOf(x.shape), size(sum)),
        1,
        size(sum),
        1,
        machine.constants.sumTogether,
      ),
    ]
  },
  enqueue: (machine, call) => [machine.passes('enqueue', '', 2 * bytesAt(call, 'keys'), { launches: 2 })],
  sgd: (machine, call) => [
    machine.passes('sgd', `${call.lists.parameters!.length} tensors`, bytesOf(call), {
      launches: Math.ceil(call.lists.parameters!.length / 48),
    }),
  ],
  ema: (machine, call) => [
    machine.passes('ema', `${call.lists.averages!.length} tensors`, bytesOf(call) + bytesAt(call, 'averages'), {
      launches: Math.ceil(call.lists.averages!.length / 64),
    }),
  ],
  checkFinite: (machine, call) => [
    machine.passes('checkFinite', `${call.lists.tensors!.length} tensors`, bytesOf(call), {
      launches: Math.ceil(call.lists.tensors!.length / 96),
    }),
  ],
}

export interface StepTimes {
  milliseconds: number
  /** The step by kernel, the longest first. */
  kernels: { kernel: string; launches: number; milliseconds: number; floor: number; gigabytes: number; bound: Bound }[]
}

/** All calls of a step, added up by kernel. */
export function stepTimes(costs: readonly Cost[]): StepTimes {
  const rows = new Map<string, StepTimes['kernels'][number] & { bounds: Map<Bound, number> }>()
  for (const { kernel, launches, microseconds, floor, bytes, bound } of costs) {
    const row = rows.get(kernel) ?? {
      kernel,
      launches: 0,
      milliseconds: 0,
      floor: 0,
      gigabytes: 0,
      bound,
      bounds: new Map<Bound, number>(),
    }
    row.launches += launches
    row.milliseconds += microseconds / 1e3
    row.floor += floor / 1e3
    row.gigabytes += bytes / 1e9
    row.bounds.set(bound, (row.bounds.get(bound) ?? 0) + microseconds)
    rows.set(kernel, row)
  }
  const kernelRows = [...rows.values()].map(({ bounds, ...row }) => ({
    ...row,
    bound: [...bounds].reduce((a, b) => (b[1] > a[1] ? b : a))[0],
  }))
  return {
    milliseconds: kernelRows.reduce((sum, { milliseconds }) => sum + milliseconds, 0),
    kernels: kernelRows.sort((a, b) => b.milliseconds - a.milliseconds),
  }
}
