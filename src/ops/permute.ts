import { expectRank } from '../autograd/op.js'
import { runNative } from '../tensor/native.js'
import { Tensor } from '../tensor/tensor.js'

/** Axis order[i] of x (rank 4) becomes axis i. For data that enters or leaves in another layout; not recorded on a tape. */
export function permute(x: Tensor, order: readonly [number, number, number, number]): Tensor {
  expectRank('permute', 'x', x, 4)
  const y = Tensor.empty(
    order.map((axis) => x.shape[axis]!),
    x.dtype,
    x.device,
  )
  runNative('permute', { y, x }, { order })
  return y
}
