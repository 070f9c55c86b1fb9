import { runNative } from '../tensor/native.js'
import type { Shape, Tensor } from '../tensor/tensor.js'

/** Where a copy finds the elements of a tensor: element [i, j, ..] lies at offset + i * strides[0] + j * strides[1] + .. */
export interface Layout {
  offset: number
  strides: readonly number[]
}

/** The strides of a contiguous tensor, in elements. */
export function stridesOf(shape: Shape): number[] {
  const strides = new Array<number>(shape.length)
  for (let i = shape.length - 1, stride = 1; i >= 0; --i) {
    strides[i] = stride
    stride *= shape[i]!
  }
  return strides
}

export const contiguous = (shape: Shape): Layout => ({ offset: 0, strides: stridesOf(shape) })

/**
 * y[yLayout of i] = x[xLayout of i] for every index i of `shape`, of any dtype; what else is in y stays. Permutations, slices, joins,
 * padding and their gradients are this one native op. Layouts are those of contiguous tensors of `shape` unless given.
 */
export function copyStrided(
  shape: Shape,
  y: Tensor,
  x: Tensor,
  { yLayout = contiguous(shape), xLayout = contiguous(shape) }: { yLayout?: Layout; xLayout?: Layout },
): void {
  runNative(
    'copyStrided',
    { y, x },
    { shape, yOffset: yLayout.offset, yStrides: yLayout.strides, xOffset: xLayout.offset, xStrides: xLayout.strides },
  )
}
