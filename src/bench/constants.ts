/**
 * What the model of src/bench/model.ts knows of the kernels, in one table: whoever changes a kernel changes its row. `before` is what
 * the kernels needed that no GPU had seen yet (commit f633a60), for comparisons; absent where nothing changed since.
 */

/** The loop of a kernel that a value was read off: its name, the kind of instruction that tells the loop, and what was counted. */
interface CodeSource {
  kernel: string
  /** The innermost loop with such instructions. */
  loop: string
  of: 'instructions' | 'stalls'
}

export interface Constant {
  now: number
  before?: number
  unit: string
  /** From the machine-code table (`densecl bench code`, sm_90a), counted on the source and that table, or assumed. */
  how: CodeSource | 'counted' | 'assumed'
  what: string
}

const code = (kernel: string, loop: string, of: CodeSource['of']): CodeSource => ({ kernel, loop, of })

export const constants = {
  launch: { now: 2.5, unit: 'us', how: 'assumed', what: 'ramp and drain of a launch in a recorded step' },
  streamed: {
    now: 0.9,
    before: 0.86,
    unit: 'share',
    how: 'assumed',
    what: 'of the bandwidth of a large copy that passes over memory reach: two rows of a thread on their way; before, one',
  },
  multiplied: { now: 0.9, unit: 'share', how: 'assumed', what: 'the same of products, whose copies run ahead' },
  issue: { now: 0.6, unit: 'instructions a cycle and scheduler', how: 'assumed', what: 'where enough warps hide latencies' },
  latency: {
    now: 1.17,
    unit: 'factor',
    how: 'assumed',
    what:
      'on stall cycles of a lone thread: half of the third that latencies behind its scoreboards (MUFU, I2F, F2I, ' +
      'R2UR) add, as the ring runs ahead',
  },

  producerForward: {
    now: 172,
    before: 690,
    unit: 'stall cycles a slice',
    how: code('productKernel<ForwardJob<WarpgroupShape<128, 128, 1, 1>', 'UTMALDG', 'stalls'),
    what: 'the thread that copies, Hopper',
  },
  producerInput: {
    now: 185,
    before: 782,
    unit: 'stall cycles a slice',
    how: code('productKernel<BackwardInputJob<WarpgroupShape<128, 128, 1, 1>', 'UTMALDG', 'stalls'),
    what: 'the same, input gradient',
  },
  producerWeight: {
    now: 163,
    before: 1347,
    unit: 'stall cycles a slice',
    how: code('productKernel<BackwardWeightJob<WarpgroupShape<128, 128, 2, 1>', 'UTMALDG', 'stalls'),
    what: 'the same, weight gradient',
  },

  slice128x128: {
    now: 177,
    unit: 'instructions a warp and slice',
    how: code('forwardKernel<bf16, MathBf16, TileShape<128, 128, 2, 4>, true, Plain', 'HMMA', 'instructions'),
    what: 'the products of Ampere, 128x128',
  },
  slice128x64: {
    now: 137,
    unit: 'instructions a warp and slice',
    how: code('forwardKernel<bf16, MathBf16, TileShape<128, 64, 4, 2>, true, Plain', 'HMMA', 'instructions'),
    what: 'the same, 128x64',
  },
  slice64x64: {
    now: 152,
    unit: 'instructions a warp and slice',
    how: code('forwardKernel<bf16, MathBf16, TileShape<64, 64, 2, 2>, true, Plain', 'HMMA', 'instructions'),
    what: 'the same, 64x64',
  },
  sliceInput: { now: 1.35, unit: 'factor', how: 'counted', what: 'on those for input gradients: the walk over taps' },
  sliceWeight: { now: 1.45, unit: 'factor', how: 'counted', what: 'on those for weight gradients: pixels that are gathered' },
  prologue: { now: 510, unit: 'instructions a warp and slice', how: 'counted', what: 'what a prologue adds, Ampere' },
  normForward: {
    now: 549,
    unit: 'stall cycles a slice',
    how: code('productKernel<NormedForwardJob<WarpgroupShape<128, 128, 1, 1>, false', 'HGMMA', 'stalls'),
    what: 'a warp that normalises fragments beside its products, Hopper, one tap',
  },
  normForwardTaps: {
    now: 685,
    unit: 'stall cycles a slice',
    how: code('productKernel<NormedForwardJob<WarpgroupShape<128, 128, 1, 1>, true', 'HGMMA', 'stalls'),
    what: 'the same with padding masked',
  },
  normWidest: {
    now: 176,
    unit: 'instructions a warp and slice',
    how: code('productKernel<NormedForwardJob<WarpgroupShape<128, 256, 2, 1>, false', 'HGMMA', 'instructions'),
    what: 'the same of tiles of 128x256, whose two warpgroups share the rows, one tap',
  },
  normWidestTaps: {
    now: 206,
    unit: 'instructions a warp and slice',
    how: code('productKernel<NormedForwardJob<WarpgroupShape<128, 256, 2, 1>, true', 'HGMMA', 'instructions'),
    what: 'the same with padding masked',
  },
  normWeight: {
    now: 167,
    unit: 'instructions a warp and slice',
    how: code('productKernel<NormedBackwardWeightJob<WarpgroupShape<128, 128, 2, 1>, false', 'HGMMA', 'instructions'),
    what: 'the same for weight gradients, whose two warpgroups share the rows, one tap',
  },
  normWeightTaps: {
    now: 262,
    unit: 'instructions a warp and slice',
    how: code('productKernel<NormedBackwardWeightJob<WarpgroupShape<128, 128, 2, 1>, true', 'HGMMA', 'instructions'),
    what: 'the same with padding masked',
  },
  gatherForward: {
    now: 770,
    unit: 'instructions a warp and slice',
    how: 'counted',
    what: 'elements one by one, where channels are no whole vectors: 841 in the loop, less branches not taken',
  },
  gatherInput: { now: 790, unit: 'instructions a warp and slice', how: 'counted', what: 'the same, input gradient: 864 in the loop' },
  gatherWeight: { now: 480, unit: 'instructions a warp and slice', how: 'counted', what: 'the same, weight gradient: 619 in the loop' },
  fill: { now: 2500, unit: 'cycles', how: 'assumed', what: "until a tile's first slice has arrived and its result has left" },
  hidden: { now: 0.5, unit: 'share', how: 'assumed', what: 'of an epilogue that another block of the multiprocessor hides, Ampere' },

  splitsFilled: {
    now: 1,
    before: 0,
    unit: 'rule',
    how: 'counted',
    what: 'weight gradients are split to fill the machine; before, to the next count above one wave',
  },
  splitsTogether: { now: 8, before: 4, unit: 'loads', how: 'counted', what: 'of partial sums that a thread has on their way' },
  splitsAlone: {
    now: 16,
    before: 1e6,
    unit: 'splits',
    how: 'counted',
    what: 'at most, that one thread adds; the lines of a block share more',
  },
  unfolds: {
    now: 1,
    before: 0,
    unit: 'rule',
    how: 'counted',
    what: 'kernel rows of few channels become channels in a pass of their own; before, elements were gathered',
  },

  stage: {
    now: 20,
    before: 45,
    unit: 'cycles for 1,024 results',
    how: 'counted',
    what: 'accumulators to shared memory: a store for two; before, for one',
  },
  store: { now: 30, unit: 'cycles for 1,024 results', how: 'counted', what: 'from there to memory, 16 bytes a thread; f32 twice that' },
  bulkStore: {
    now: 13,
    unit: 'cycles for 1,024 results',
    how: 'counted',
    what: 'the same by bulk copies: 206 stall cycles of the warp that asks for them, a tile of 128x128',
  },
  statistics: {
    now: 62,
    before: 110,
    unit: 'cycles for 1,024 results',
    how: 'counted',
    what:
      'about 740 instructions a warp and tile of 128x128 with the store, two warps a scheduler; before, two passes of ' +
      '2-byte loads: 1,500 to 2,000 a tile',
  },
  finishRow: {
    now: 190,
    before: 340,
    unit: 'instructions a warp and 256 results',
    how: 'counted',
    what:
      "masks, sums and joins of an input gradient, for a warp's 32 vectors of 8 channels: 768 for 4 rows and 200 for " +
      'sums in the code, less branches not taken; before, 399',
  },
  finishIssue: { now: 1, unit: 'instructions a cycle and scheduler', how: 'assumed', what: 'at which they run: two warps a scheduler' },
  together: {
    now: 2,
    unit: 'factor',
    how: 'assumed',
    what:
      'on epilogues of tiles that both warpgroups finish, except of weight gradients: with it tiles of 128x128 take the 2.0 ms of a ' +
      'step longer on an H100 that they took (51.6 instead of 49.6) before warpgroups took them in turn',
  },
  finishConflicts: {
    now: 0,
    before: 125,
    unit: 'cycles for 1,024 results',
    how: 'counted',
    what: 'sums in shared memory, 8 lanes to a bank before: 2,000 a tile of 128x128',
  },

  mergeCycles: {
    now: 530,
    unit: 'cycles',
    how: 'assumed',
    what: 'a load of statistics that the next step waits for: 360 from the second cache to 700 from memory',
  },
  mergeTogether: {
    now: 8,
    before: 1,
    unit: 'loads',
    how: 'counted',
    what: 'of statistics that a thread has on their way; before, a division and a branch stood between them',
  },
  mergeLines: { now: 32, before: 8, unit: 'rows', how: 'counted', what: 'that a block of 32 channels adds side by side' },
  mergeSerial: { now: 4, unit: 'rows', how: 'counted', what: 'that a thread adds at most where one block takes all of 32 channels' },
  mergeParts: {
    now: 64,
    before: 0,
    unit: 'blocks',
    how: 'counted',
    what: 'at most, that share the rows of 32 channels, of which the last to arrive finishes; 0 for none',
  },
  mergeDown: { now: 700, unit: 'cycles', how: 'counted', what: 'sums of the lines of a block, 31 one behind another' },
  sumTogether: { now: 8, before: 16, unit: 'loads', how: 'counted', what: 'the same as mergeTogether for the sums of the backward pass' },

  roiSide: {
    now: 21,
    unit: 'cells',
    how: 'assumed',
    what: 'mean side of the regions of RoIAlign on their map: 225 to 448 px at stride 16, two by two samples in each of 14x14 bins',
  },
  roiStep: {
    now: 63,
    unit: 'instructions a warp and step',
    how: code('roiAlignProductKernel', 'HMMA', 'instructions'),
    what: 'of 16 rows of cells that become 16 rows of bins, 64 channels of a column, bf16',
  },
  roiColumn: { now: 26, unit: 'instructions a warp and column', how: 'counted', what: 'of cells, beside its steps' },
  roiTap: {
    now: 50,
    unit: 'instructions a warp and weight',
    how: 'counted',
    what: 'of such a column in a column of bins: 267 in the loop of two columns, less steps and columns, halved',
  },
  roiBin: { now: 97, unit: 'instructions a warp and column of bins', how: 'counted', what: '396 in the loop, less 267 and the NaN' },
  roiRow: {
    now: 20,
    unit: 'instructions a warp and cell',
    how: 'counted',
    what: 'of a line of cells where there are no products: 16 bytes loaded, unpacked, weighed; loops of 2 to 5 rows differ by it',
  },
  roiLineTap: { now: 26, unit: 'instructions a warp and weight', how: 'counted', what: 'of such a line in a bin' },
  roiLineBin: { now: 46, unit: 'instructions a warp and bin', how: 'counted', what: 'the same: zeros, bounds, the store' },
  roiSpans: { now: 600, unit: 'instructions a block', how: 'counted', what: "the cells of a region's bins, found by one warp" },
  roiGather: {
    now: 151,
    unit: 'instructions a warp and step',
    how: code('roiAlignBackwardKernel<bf16, GatherProducts>', 'HMMA', 'instructions'),
    what: 'of 4x4 bins that become 4x4 cells, 128 channels, bf16',
  },
  roiGatherRow: { now: 26, unit: 'instructions a warp and row of steps', how: 'counted', what: '177 in the loop, less the step' },
  roiGatherBox: { now: 40, unit: 'instructions a warp and region', how: 'counted', what: 'that reaches its 4x4 cells' },
  roiGatherCell: {
    now: 95,
    unit: 'instructions a warp and cell',
    how: 'counted',
    what: 'the gradient where there are no products: two rows of four cells, 241 in the loop of a column of bins, less branches not taken',
  },
  roiWeigh: {
    now: 470,
    unit: 'instructions a block and region',
    how: 'counted',
    what: 'what the 8x8 cells of a block have of its bins: 370 by one warp, and all look at it',
  },
  roiScan: { now: 33, unit: 'instructions a warp and 32 regions', how: 'counted', what: 'that are of other images' },
  nmsPair: { now: 18, unit: 'instructions a lane and pair', how: 'assumed', what: 'the overlap of two boxes' },
  nmsWord: { now: 1500, unit: 'cycles', how: 'assumed', what: '32 boxes in turn, then what the kept ones do to the rest: two round trips' },

  poolTap: {
    now: 90,
    before: 110,
    unit: 'instructions a warp and tap',
    how: 'counted',
    what: 'maximum of 8 channels with its tap: 194 in the loop, less what a deferred norm needs; before, 254',
  },
  poolNormed: {
    now: 45,
    before: 190,
    unit: 'instructions a warp and tap',
    how: 'counted',
    what:
      'the same of a deferred norm: 89 in the loop of two taps, value and tap in one integer; before, scale, shift, ' +
      'ReLU and rounding on top',
  },
  poolUnit: {
    now: 370,
    unit: 'instructions a warp',
    how: 'counted',
    what: 'the same beside the taps: places by division, rows of the window',
  },
  poolBackward: {
    now: 142,
    before: 450,
    unit: 'instructions a warp',
    how: 'counted',
    what: 'its gradient, 8 channels of a pixel: 569 for four that share their windows; before, 2.25 windows of 60 and places for each',
  },

  contrastHopper: {
    now: 640,
    before: 1426,
    unit: 'instructions a warp and tile',
    how: 'counted',
    what:
      'InfoNCE of unit vectors, 128 keys for 64 queries of 4 warps, 128 dimensions: 1,020 in the loop, less those of ' +
      'a tile that is not whole',
  },
  contrastHopperAny: {
    now: 1426,
    unit: 'instructions a warp and tile',
    how: code('contrastKernel<128, false>', 'HGMMA', 'instructions'),
    what: 'the same with a running maximum',
  },
  contrastAmpere: {
    now: 910,
    before: 1350,
    unit: 'instructions a warp and tile',
    how: 'counted',
    what: 'InfoNCE of unit vectors, 64 keys for 16 queries: 949 in the loop and the copies, less those of a tile that is not whole',
  },
  contrastAmpereAny: {
    now: 1350,
    unit: 'instructions a warp and tile',
    how: 'counted',
    what: 'the same with a running maximum: 1,195 in the loop and the copies',
  },
  contrastOverlap: { now: 0.7, unit: 'share', how: 'assumed', what: 'of the shorter of products and exponentials that the longer hides' },
  meanThreads: {
    now: 1024,
    before: 51,
    unit: 'rows',
    how: 'counted',
    what: 'whose terms are added at a time by the one block that means them; before, 256 in five passes',
  },
  chainCycles: { now: 450, unit: 'cycles', how: 'assumed', what: 'a load that the next step waits for, where a single block sums' },
} as const satisfies Record<string, Constant>

export type ConstantName = keyof typeof constants
export type KernelState = 'now' | 'before'
export type Constants = Readonly<Record<ConstantName, number>>

export function constantsOf(state: KernelState): Constants {
  return Object.fromEntries(
    Object.entries(constants as Record<string, Constant>).map(([name, row]) => [
      name,
      state === 'before' ? (row.before ?? row.now) : row.now,
    ]),
  ) as Constants
}
