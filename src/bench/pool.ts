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

/** Memory that goes back when it is emptied, where the garbage collector would come late; of ES2024, which Node.js has. */
interface Resizable extends ArrayBuffer {
  resize(bytes: number): void
}
const buffer = Reflect.construct(ArrayBuffer, [0, { maxByteLength: 4 * 2 ** 22 }]) as Resizable
const drawn = new Float32Array(buffer)
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
    buffer.resize(4 * size)
    for (let i = 0; i < size; ++i) drawn[i] = random.normal()
  }
  const tensor = scope(() => {
    const exact = Tensor.from(drawn.subarray(0, size), [size])
    return dtype === 'f32' ? exact : exact.to(dtype)
  }).keep()
  pools.set(key, tensor)
  return tensor
}

/** Frees the pools, for who measures memory: those that are asked for later are drawn again, to the same values. */
export function emptyPools(): void {
  for (const tensor of pools.values()) tensor.dispose()
  pools.clear()
  buffer.resize(0)
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
