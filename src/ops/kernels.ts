/**
 * What is known of the convolution kernels of native/cuda apart from the traits of a device (src/tensor/traits.ts), for those who
 * choose among them.
 */
import type { DType } from '../tensor/tensor.js'

/** Rows and columns of the result that a block computes, by tile: 1 to 3 are those of Ampere, 4 and 5 of Hopper. */
const tileSizes: Record<number, readonly [number, number]> = { 1: [128, 128], 2: [128, 64], 3: [64, 64], 4: [128, 128], 5: [128, 64] }

/** Rows and columns of a block's part of the result; the narrow one of Hopper's lies on its side for a weight gradient. */
export const tileSize = (tile: number, weightGradient: boolean): readonly [number, number] =>
  tile === 5 && weightGradient ? [64, 128] : (tileSizes[tile] ?? tileSizes[2]!)

export const ampereTiles = [1, 2, 3] as const
export const isAmpereTile = (tile: number): boolean => (ampereTiles as readonly number[]).includes(tile)
/** Their operands have whole slices of channels (kLineElements of native/cuda), and whole accesses of the other channels. */
export const hopperTiles = [4, 5] as const
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
