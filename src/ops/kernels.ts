/**
 * What is known of the convolution kernels of native/cuda apart from the traits of a device (src/tensor/traits.ts), for those who
 * choose among them.
 */
import type { KernelFamily } from '../tensor/families.js'
import type { DType } from '../tensor/tensor.js'

/** Rows and columns of the result that a block computes, by tile: 1 to 3 are those of Ampere, 4 to 7 of Hopper. */
const tileSizes: Record<number, readonly [number, number]> = {
  1: [128, 128],
  2: [128, 64],
  3: [64, 64],
  4: [128, 128],
  5: [128, 64],
  6: [128, 256],
  7: [128, 128],
}

/** Rows and columns of a block's part of the result; those of Hopper lie on their side for a weight gradient. */
export function tileSize(tile: number, weightGradient: boolean): readonly [number, number] {
  const [rows, columns] = tileSizes[tile] ?? tileSizes[2]!
  return tile > 3 && weightGradient ? [columns, rows] : [rows, columns]
}

export const ampereTiles = [1, 2, 3] as const
export const isAmpereTile = (tile: number): boolean => (ampereTiles as readonly number[]).includes(tile)
/** Their operands have whole slices of channels (kLineElements of native/cuda), and whole accesses of the other channels. */
export const hopperTiles = [4, 5] as const
/** Hopper's tile of 128x256. */
export const widestTile = 6
/**
 * Whether the widest tile has a chance beside 128x128 for `channels` of the result: it spares reads of shared memory, a twentieth of a
 * product's time, and loses more where the half of a tile lies behind the last channel.
 */
export const widestTilePays = (channels: number): boolean => Math.ceil(channels / 128) % 2 === 0
/**
 * Hopper's tile of a forward product that is stored by bulk copies, in lines of whole accesses: 128x128, or 128x64 of at most 64 channels.
 */
export const bulkStoredTile = 7
/** Tiles that no GPU has timed, candidates of the tuner alone, and the families that they are of beside the op's. */
export const untimedTiles: ReadonlyMap<number, KernelFamily> = new Map([
  [widestTile, 'wgmma.widest'],
  [bulkStoredTile, 'wgmma.bulkStores'],
])
/** Rows of pixels that one of Hopper's tiles has at most. */
export const hopperTileRows = 128
export const sliceChannels = 64
export const accessChannels = 8

/**
 * Whether a convolution of few channels is unfolded into whole slices, with the taps of as many rows of the kernel side by side as the
 * stride has (Unfolding of native/cuda/conv2d.cuh). Stride and dilation are those along the height.
 */
export function unfoldsIntoSlices(channels: number, kernelWidth: number, stride: number, dilation: number): boolean {
  const taps = stride * kernelWidth * channels
  return (
    channels % accessChannels !== 0 &&
    (stride === 1 || dilation === 1) &&
    sliceChannels % (stride * accessChannels) === 0 &&
    taps <= sliceChannels &&
    2 * taps > sliceChannels
  )
}

/** How much of the depth of a product is loaded at a time. */
export const sliceDepth = (tile: number, dtype: DType): number => (tile > 3 ? 64 : dtype === 'bf16' ? 32 : 16)
