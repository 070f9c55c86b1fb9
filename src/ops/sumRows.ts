import { runNative } from '../tensor/native.js'
import { Tensor } from '../tensor/tensor.js'

/** x [..., C] to [C]: the sum over all leading axes, as the gradient of a bias needs it. */
export function sumRows(x: Tensor): Tensor {
  const sum = Tensor.empty([x.shape.at(-1)!], x.dtype)
  runNative('sumRows', [sum, x])
  return sum
}
