import { expectFactors, expectRank, expectShape } from '../autograd/op.js'
import { fail } from '../tensor/errors.js'
import { describe, scope, type Tensor } from '../tensor/tensor.js'
import { broadcastTo } from './broadcastTo.js'
import { conv2d } from './conv2d.js'
import { reshape } from './elementwise.js'
import { permute } from './permute.js'

/**
 * The transposed convolution of x [N, H, W, C] by a weight [O, KH, KW, C] and bias [O] whose stride is the kernel, so that no two of its
 * windows meet: each pixel becomes KH x KW pixels, [N, KH H, KW W, O]. y[KH i + a, KW j + b] = weight[:, a, b] x[i, j] + bias. PyTorch's
 * ConvTranspose2d with the weight [C, O, KH, KW].
 */
export function convTranspose2d(x: Tensor, weight: Tensor, bias?: Tensor): Tensor {
  expectFactors('convTranspose2d', x, weight, bias)
  expectRank('convTranspose2d', 'x', x, 4)
  expectRank('convTranspose2d', 'weight', weight, 4)
  const [n, h, w, c] = x.shape as [number, number, number, number]
  const [o, kh, kw, inputs] = weight.shape as [number, number, number, number]
  if (inputs !== c)
    fail('SHAPE', `convTranspose2d: expected weight of ${c} channels, as x ${describe(x)}, but received ${describe(weight)}`)
  if (bias !== undefined) expectShape('convTranspose2d', 'bias', bias, [o], 'the outputs')
  return scope(() => {
    // One product gives the window of every pixel; then the windows are laid side by side.
    const rows = reshape(permute(weight, [1, 2, 0, 3]), [kh * kw * o, 1, 1, c])
    const shifts = bias === undefined ? undefined : reshape(broadcastTo(bias, [kh * kw, o]), [kh * kw * o])
    const windows = reshape(conv2d(x, rows, shifts), [n, h, w, kh, kw, o])
    return reshape(permute(windows, [0, 1, 3, 2, 4, 5]), [n, h * kh, w * kw, o])
  })
}
