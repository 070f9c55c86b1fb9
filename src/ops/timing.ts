/** What a native call takes on a device: operands of its own shapes, events in the device's work, medians. */
import { Random } from '../tensor/random.js'
import type { Kernels } from '../tensor/compute.js'
import { mapTensors, type NamedNumbers, type NamedTensors, native, runNamed, runNative } from '../tensor/native.js'
import { type DType, scope, sizeOf, type Shape, Tensor, withDevice } from '../tensor/tensor.js'
import { deviceTraits } from '../tensor/traits.js'
import { type ProductOp, productOps, withKernels } from './tuning.js'

/** A native call without its values. */
export interface NativeCall {
  op: string
  tensors: NamedTensors<{ shape: Shape; dtype: DType }>
  numbers: NamedNumbers
}

export const isProduct = (op: string): op is ProductOp => op in productOps

/** Milliseconds of a call with the kernels; of an op that has no choice of them they say nothing. Throws what the op throws. */
export type Time = (call: NativeCall, kernels: Kernels) => number

/** Values that random operands are made of, drawn once. */
const drawn = 2 ** 18
/** Work of a GPU in front of what is timed: meanwhile the host has launched that, and no operand stays in the cache. */
const ahead = { bytes: 2 ** 28, milliseconds: 0.3 }

/** Times calls on a device; keeps the operands of the last call until the next one, or dispose(). */
export class DeviceClock {
  readonly #pools = new Map<DType, Tensor>()
  #ahead: { tensor: Tensor; repeats: number } | undefined
  #operands: { call: NativeCall; tensors: NamedTensors<Tensor>; made: Tensor[] } | undefined

  /** Its kernels are done when a call returns, and no clock says what they would take: once is enough. */
  readonly #simulated: boolean

  constructor(readonly device: string) {
    this.#simulated = !deviceTraits(device).asynchronous
  }

  readonly time: Time = (call, kernels) => {
    const tensors = this.#operandsOf(call)
    const numbers = isProduct(call.op) ? withKernels(call.numbers, kernels) : call.numbers
    const run = (): void => runNamed(call.op, tensors, numbers)
    const [least, most] = this.#simulated ? [1, 1] : [3, 5]
    if (!this.#simulated) run()
    const times: number[] = []
    for (let spent = 0; times.length < least || (times.length < most && spent < 20); spent += times.at(-1)!) {
      this.#stayAhead()
      const start = native.recordEvent(this.device)
      run()
      times.push(native.elapsed(this.device, start, native.recordEvent(this.device)))
    }
    return times.sort((a, b) => a - b)[times.length >> 1]!
  }

  #stayAhead(): void {
    if (this.#simulated) return
    this.#ahead ??= this.#calibrated(Tensor.empty([ahead.bytes / 4], 'f32', this.device).keep())
    for (let i = 0; i < this.#ahead.repeats; ++i) runNative('fill', { y: this.#ahead.tensor }, { value: 0 })
  }

  #calibrated(tensor: Tensor): { tensor: Tensor; repeats: number } {
    for (let i = 0; i < 2; ++i) runNative('fill', { y: tensor }, { value: 0 })
    const start = native.recordEvent(this.device)
    for (let i = 0; i < 8; ++i) runNative('fill', { y: tensor }, { value: 0 })
    return { tensor, repeats: Math.ceil((8 * ahead.milliseconds) / native.elapsed(this.device, start, native.recordEvent(this.device))) }
  }

  #operandsOf(call: NativeCall): NamedTensors<Tensor> {
    if (this.#operands?.call !== call) {
      this.#free()
      const made: Tensor[] = []
      this.#operands = { call, tensors: {}, made }
      try {
        this.#operands.tensors = mapTensors(call.tensors, ({ shape, dtype }) => {
          made.push(this.#random(shape, dtype))
          return made.at(-1)!
        })
      } catch (error) {
        this.#free()
        throw error
      }
    }
    return this.#operands.tensors
  }

  /** Normal values in repeated rows of one pool; integers are 0, which is an index of anything. */
  #random(shape: Shape, dtype: DType): Tensor {
    return withDevice(this.device, () =>
      scope(() => {
        if (dtype === 'i32' || dtype === 'u8') return Tensor.zeros(shape, dtype).keep()
        const size = sizeOf(shape)
        const tensor = Tensor.empty(shape, dtype).keep()
        if (!this.#pools.has(dtype)) {
          const random = new Random(1)
          this.#pools.set(
            dtype,
            Tensor.from(
              Float32Array.from({ length: drawn }, () => random.normal()),
              [drawn],
              dtype,
            ).keep(),
          )
        }
        let width = 4096
        while (size % width !== 0) width /= 2
        const rows = drawn / width
        const order = Tensor.from(
          Int32Array.from({ length: size / width }, (_, i) => (i * 7) % rows),
          [1, size / width],
          'i32',
        )
        runNative('gatherRows', {
          y: tensor.alias([1, size / width, width]),
          x: this.#pools.get(dtype)!.alias([1, rows, width]),
          index: order,
        })
        return tensor
      }),
    )
  }

  #free(): void {
    for (const tensor of this.#operands?.made ?? []) tensor.dispose()
    this.#operands = undefined
  }

  /** Frees everything, also of the device's own cache. */
  dispose(): void {
    this.#free()
    for (const tensor of [...this.#pools.values(), ...(this.#ahead === undefined ? [] : [this.#ahead.tensor])]) tensor.dispose()
    this.#pools.clear()
    this.#ahead = undefined
    native.synchronize(this.device)
    native.trimMemory(this.device)
  }
}
