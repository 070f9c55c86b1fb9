/**
 * Tensors of random values without drawing each: a few million normal values are drawn once a process and uploaded once for each
 * device and dtype, and a tensor is rows of them in random order.
 */
import { Random } from '../tensor/random.js'
import { runNative } from '../tensor/native.js'
import { currentDevice, type FloatDType, scope, type Shape, sizeOf, Tensor } from '../tensor/tensor.js'
import { deviceTraits } from '../tensor/traits.js'

/** Values of a pool; fewer where threads are simulated. */
const poolSize = (device: string): number => (deviceTraits(device).simulated ? 2 ** 16 : 2 ** 22)
const widest = 4096

let drawn = new Float32Array(0)
const pools = new Map<string, Tensor>()

/** The pool of the current device; made where it is not there yet, and kept for the process. */
export function pool(dtype: FloatDType): Tensor {
  const device = currentDevice()
  const key = `${device} ${dtype}`
  const made = pools.get(key)
  if (made !== undefined) return made
  const size = poolSize(device)
  if (drawn.length < size) {
    const random = new Random(1)
    drawn = Float32Array.from({ length: size }, () => random.normal())
  }
  const tensor = Tensor.from(drawn.subarray(0, size), [size], dtype).keep()
  pools.set(key, tensor)
  return tensor
}

/** Frees the pools, for who measures memory: those that are asked for later are drawn again, to the same values. */
export function emptyPools(): void {
  for (const tensor of pools.values()) tensor.dispose()
  pools.clear()
  drawn = new Float32Array(0)
}

/** A tensor of normal values on the current device. Its rows of up to 4,096 values repeat, in random order. */
export function normal(random: Random, shape: Shape, dtype: FloatDType): Tensor {
  const source = pool(dtype)
  const size = sizeOf(shape)
  let width = widest
  while (size % width !== 0) width /= 2
  const [rows, count] = [source.size / width, size / width]
  const tensor = Tensor.empty(shape, dtype)
  scope(() => {
    const order = Tensor.from(
      Int32Array.from({ length: count }, () => random.below(rows)),
      [1, count],
      'i32',
    )
    runNative('gatherRows', { y: tensor.alias([1, count, width]), x: source.alias([1, rows, width]), index: order })
  })
  return tensor
}
