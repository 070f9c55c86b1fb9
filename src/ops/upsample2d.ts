import { expectInteger, expectRank } from '../autograd/op.js'
import { fail } from '../tensor/errors.js'
import { scope, type Tensor } from '../tensor/tensor.js'
import { broadcastTo } from './broadcastTo.js'
import { reshape } from './elementwise.js'
import { perAxis, type PerAxis } from './windows.js'
import { resizeBilinear } from './resizeBilinear.js'

/**
 * x [N, H, W, C] to [N, factor H, factor W, C] by a whole `factor`, or one for each axis. `nearest` repeats each pixel, of any dtype;
 * `bilinear` is resizeBilinear to that size, where pixels are squares and not points (`alignCorners` false).
 */
export function upsample2d(x: Tensor, factor: PerAxis, mode: 'nearest' | 'bilinear' = 'nearest'): Tensor {
  expectRank('upsample2d', 'x', x, 4)
  const [vertical, horizontal] = perAxis(factor)
  for (const value of [vertical, horizontal]) expectInteger('upsample2d', 'factor', value, 1)
  const [n, h, w, c] = x.shape as [number, number, number, number]
  const size = [h * vertical, w * horizontal] as const
  switch (mode) {
    case 'bilinear':
      return resizeBilinear(x, size)
    case 'nearest':
      return scope(() => reshape(broadcastTo(reshape(x, [n, h, 1, w, 1, c]), [n, h, vertical, w, horizontal, c]), [n, ...size, c]))
    default:
      return fail('ARGUMENT', `upsample2d: expected a mode of nearest or bilinear but received ${String(mode)}`)
  }
}
