/**
 * What the calls of a step take on a GPU that is not here: each native call as the launches that native/cuda makes of it, each launch as
 * src/bench/step/machine.ts says.
 */
import type { OpNumbers } from '../../tensor/native.js'
import type { Bound } from '../model.js'
import { bytesAt, bytesOf, type Call, type CallTensor, operandsOf } from './calls.js'
import { backwardInput, backwardWeight, forward, forwardE4m3, vectors } from './convolutions.js'
import type { Cost, Machine } from './machine.js'
import { regionCounts } from './regions.js'

const size = (tensor: { shape: readonly number[] }): number => tensor.shape.reduce((a, b) => a * b, 1)
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

/** RoIAlign of bf16 by products where they are filled, else by vectors of 16 bytes (native/cuda/roiAlign.cu). */
function roiAlign(machine: Machine, call: Call): Cost[] {
  const { roiSide, roiStep, roiColumn, roiTap, roiBin, roiRow, roiLineTap, roiLineBin, roiSpans } = machine.constants
  const { x, y } = operandsOf(call) as Record<'x' | 'y', CallTensor>
  const [regions, p, q, channels] = y.shape as [number, number, number, number]
  const [down, across] = [regionCounts(roiSide, p), regionCounts(roiSide, q)]
  const byProducts = y.dtype === 'bf16' && channels % 64 === 0 && (p - 1) % 16 >= 8
  const blocks = Math.ceil(p / 16)
  const each = byProducts
    ? (channels / 64) * (across.cells * (blocks * roiColumn + down.depth * roiStep) + blocks * (across.taps * roiTap + q * roiBin)) +
      Math.ceil(channels / 256) * roiSpans
    : Math.ceil((channels * y.bytes) / size(y) / 512) *
        (down.taps * across.cells * roiRow + p * (across.taps * roiLineTap + q * roiLineBin)) +
      roiSpans
  const what = `${y.shape.join('x')} of ${x.shape.slice(0, 3).join('x')}`
  return [machine.passes('roiAlign', what, x.bytes + y.bytes, { warpInstructions: regions * each })]
}

/** Its gradient, of which a block takes 8x8 cells and a warp's share of the channels. */
function roiAlignBackward(machine: Machine, call: Call): Cost[] {
  const { roiSide, roiGather, roiGatherRow, roiGatherBox, roiGatherCell, roiWeigh, roiScan } = machine.constants
  const { dx, dy } = operandsOf(call) as Record<'dx' | 'dy', CallTensor>
  const [regions, p, q, channels] = dy.shape as [number, number, number, number]
  const [images, rows, columns] = dx.shape as [number, number, number]
  const [down, across] = [regionCounts(roiSide, p), regionCounts(roiSide, q)]
  const byProducts = dx.dtype === 'bf16' && channels % 128 === 0
  const chunks = byProducts ? Math.ceil(channels / 256) : Math.ceil((channels * dx.bytes) / size(dx) / 512)
  const gathered = byProducts
    ? (channels / 128) *
      (down.blocks * across.blocks * roiGather + down.blocks * across.groups * roiGatherRow + down.groups * across.groups * roiGatherBox)
    : chunks * down.cells * across.cells * roiGatherCell
  const looks = images * Math.ceil(rows / 8) * Math.ceil(columns / 8) * chunks * Math.ceil(regions / 32)
  const what = `${dy.shape.join('x')} of ${dx.shape.slice(0, 3).join('x')}`
  return [
    machine.passes('roiAlignBackward', what, dx.bytes + dy.bytes, {
      warpInstructions: regions * (gathered + down.tiles * across.tiles * chunks * roiWeigh) + looks * roiScan,
    }),
  ]
}

/** Rows sorted by a radix sort of four digits, each counted, scanned and moved. */
const sorted = (machine: Machine, kernel: string, scores: CallTensor, launches: number): Cost =>
  machine.passes(kernel, scores.shape.join('x'), size(scores) * (scores.bytes / size(scores) + 8 + 4 * (8 + 12)), {
    launches: 13 + launches,
  })

/** The kernels of each op that are more than one pass over its tensors. */
const kernels: Record<string, (machine: Machine, call: Call) => Cost[]> = {
  conv2d: forward,
  conv2dE4m3: forwardE4m3,
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
  roiAlign,
  roiAlignBackward,
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

/** The launches of a call on a machine. */
export function costsOf(machine: Machine, call: Call): Cost[] {
  const known = kernels[call.op]
  return known === undefined ? [machine.passes(call.op, call.op, bytesOf(call))] : known(machine, call)
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
