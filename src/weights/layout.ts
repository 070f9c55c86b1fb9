/** Between the engine's layouts and those of files: the only place that knows OIHW. */
import { permute } from '../ops/permute.js'
import { fail } from '../tensor/errors.js'
import { describe, scope, Tensor } from '../tensor/tensor.js'
import { storedFromNumbers, type StoredTensor, storedValues } from './safetensors.js'

const isQueue = (name: string): boolean => name === 'queue' || name === 'queue2'
/** The weight [O, KH, KW, I] of a transposed convolution, which PyTorch has as [I, O, KH, KW]. */
const isTransposed = (name: string): boolean => name.endsWith('.upsample.weight')

/** A state tensor as PyTorch stores it: weights OIHW (IOHW of transposed convolutions), queues (D, K), counters i64. */
export function toStored(name: string, tensor: Tensor): StoredTensor {
  return scope(() => {
    if (tensor.dtype === 'i32') return storedFromNumbers(tensor.data(), tensor.shape, 'I64')
    const dtype = tensor.dtype === 'f64' ? 'F64' : 'F32'
    if (isQueue(name)) {
      const [k, d] = tensor.shape as [number, number]
      return storedFromNumbers(permute(tensor.alias([1, 1, k, d]), [0, 1, 3, 2]).data(), [d, k], dtype)
    }
    if (tensor.shape.length !== 4) return storedFromNumbers(tensor.data(), tensor.shape, dtype)
    const oihw = permute(tensor, isTransposed(name) ? [3, 0, 1, 2] : [0, 3, 1, 2])
    return storedFromNumbers(oihw.data(), oihw.shape, dtype)
  })
}

/** The shape that `toStored` gives. */
export function storedShape(name: string, tensor: Tensor): number[] {
  const [a, b, c, d] = tensor.shape as [number, number, number, number]
  if (isQueue(name)) return [b, a]
  if (isTransposed(name)) return [d, a, b, c]
  return tensor.shape.length === 4 ? [a, d, b, c] : [...tensor.shape]
}

/**
 * Overwrites `tensor` with a stored one of the file `path`. The shapes must agree, except that a 1x1 kernel may stand for a matrix; throws
 * SHAPE.
 */
export function loadStored(path: string, name: string, tensor: Tensor, stored: StoredTensor): void {
  const expected = storedShape(name, tensor)
  const squeezed = (shape: readonly number[]): string =>
    (shape.length === 4 && shape[2] === 1 && shape[3] === 1 ? shape.slice(0, 2) : shape).join()
  if (squeezed(stored.shape) !== squeezed(expected)) {
    fail(
      'SHAPE',
      `${path}: ${name}: the file has [${stored.shape.join(',')}] but the model ${describe(tensor)} needs [${expected.join(',')}]`,
    )
  }
  scope(() => {
    const values = Tensor.from(storedValues(stored), expected, tensor.dtype)
    if (isQueue(name)) tensor.write(permute(values.alias([1, 1, ...expected]), [0, 1, 3, 2]).data())
    else if (tensor.shape.length === 4) tensor.write(permute(values, isTransposed(name) ? [1, 2, 3, 0] : [0, 2, 3, 1]).data())
    else tensor.write(values.data())
  })
}
