import { runNative } from '../tensor/native.js'
import { accumulator, Tensor } from '../tensor/tensor.js'

/** x [..., C] to [C]: the sum over all leading axes, as the gradient of a bias needs it. */
export function sumRows(x: Tensor): Tensor {
  const sum = Tensor.empty([x.shape.at(-1)!], accumulator(x.dtype), x.device)
  runNative('sumRows', { sum, x })
  return sum
}
