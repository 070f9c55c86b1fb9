import { apply } from '../autograd/tape.js'
import { defineOp, expectElements, expectFloats, expectInteger, expectRank, type Inputs } from '../autograd/op.js'
import { runNative } from '../tensor/native.js'
import { Tensor } from '../tensor/tensor.js'

interface ResizeInputs extends Inputs {
  x: Tensor
}

export const resizeBilinearOp = defineOp<
  ResizeInputs,
  { size: readonly [number, number]; alignCorners: boolean; inputShape: readonly number[] }
>({
  name: 'resizeBilinear',
  forward({ x }, { size, alignCorners }) {
    const y = Tensor.empty([x.shape[0]!, ...size, x.shape[3]!], x.dtype)
    runNative('resizeBilinear', { y, x }, { alignCorners })
    return { outputs: [y] }
  },
  // dx[corner] += weight of the corner * dy
  backward({ grad, attrs }) {
    const dx = Tensor.empty(attrs.inputShape, grad.dtype)
    runNative('resizeBilinearBackward', { dx, dy: grad }, { alignCorners: attrs.alignCorners })
    return { x: dx }
  },
})

/** x [N, H, W, C] resized to `size` [height, width] bilinearly, without antialiasing (PyTorch's interpolate). */
export function resizeBilinear(x: Tensor, size: readonly [number, number], { alignCorners = false } = {}): Tensor {
  expectFloats('resizeBilinear', { x })
  expectRank('resizeBilinear', 'x', x, 4)
  expectElements('resizeBilinear', 'x', x, 1)
  for (const value of size) expectInteger('resizeBilinear', 'size', value, 1)
  return apply(resizeBilinearOp, { x }, { size, alignCorners, inputShape: x.shape })[0]!
}
