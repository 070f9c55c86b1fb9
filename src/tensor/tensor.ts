import { DenseclError, fail } from './errors.js'
import { native, runNative } from './native.js'

export const dtypes = ['f32', 'f64', 'i32', 'u8'] as const
export type DType = (typeof dtypes)[number]
export type FloatDType = 'f32' | 'f64'
export type Shape = readonly number[]

const arrays = { f32: Float32Array, f64: Float64Array, i32: Int32Array, u8: Uint8Array } as const
export type TypedArray = Float32Array | Float64Array | Int32Array | Uint8Array

export const sizeOf = (shape: Shape): number => shape.reduce((product, d) => product * d, 1)

let nextId = 1
let leaks = 0
const registry = new FinalizationRegistry<number>((handle) => {
  leaks += 1
  native.dispose(handle)
})

/** Tensors that were garbage-collected without dispose(); 0 in a program that frees what it makes. */
export const leakedTensors = (): number => leaks

/**
 * A contiguous array on a device, owned by the caller or by the enclosing scope(). Images are NHWC, weights [O, KH, KW, I].
 * Every use after dispose() throws USE_AFTER_DISPOSE.
 */
export class Tensor {
  /** Identity for the tape: two views of one storage are different tensors. */
  readonly id = nextId++
  #handle: number
  #owner: Set<Tensor> | undefined

  private constructor(
    handle: number,
    readonly shape: Shape,
    readonly dtype: DType,
  ) {
    this.#handle = handle
    registry.register(this, handle, this)
    this.#owner = scopes.at(-1)
    this.#owner?.add(this)
  }

  /** Memory of unspecified content. Throws OUT_OF_MEMORY with the sizes. */
  static empty(shape: Shape, dtype: DType = 'f32'): Tensor {
    if (!shape.every((d) => Number.isSafeInteger(d) && d >= 0)) {
      fail('SHAPE', `tensor: expected a shape of non-negative integers but received [${shape.join(',')}]`)
    }
    return new Tensor(native.create(dtypes.indexOf(dtype), shape), [...shape], dtype)
  }

  static full(shape: Shape, value: number, dtype: DType = 'f32'): Tensor {
    const tensor = Tensor.empty(shape, dtype)
    runNative('fill', [tensor], [value])
    return tensor
  }

  static zeros(shape: Shape, dtype: DType = 'f32'): Tensor {
    return Tensor.full(shape, 0, dtype)
  }

  /** Copies `data`, row-major, converted to `dtype`. */
  static from(data: ArrayLike<number>, shape: Shape, dtype: DType = 'f32'): Tensor {
    if (data.length !== sizeOf(shape)) {
      fail('SHAPE', `tensor: expected ${sizeOf(shape)} values for shape [${shape.join(',')}] but received ${data.length}`)
    }
    const tensor = Tensor.empty(shape, dtype)
    native.write(tensor.handle, data instanceof arrays[dtype] ? data : arrays[dtype].from(data))
    return tensor
  }

  /** The native handle; throws when disposed or when this is no tensor of this thread. */
  get handle(): number {
    if (!(#handle in this)) fail('FOREIGN_HANDLE', 'expected a tensor of this thread; tensors cannot be sent between workers, send their data')
    if (Number.isNaN(this.#handle)) fail('USE_AFTER_DISPOSE', `the tensor ${describe(this)} has been disposed`)
    return this.#handle
  }

  get disposed(): boolean {
    return Number.isNaN(this.#handle)
  }

  get size(): number {
    return sizeOf(this.shape)
  }

  /** A copy of the values, row-major. */
  data(): TypedArray {
    const values = new arrays[this.dtype](this.size)
    native.read(this.handle, values)
    return values
  }

  /** The only value of a one-element tensor. */
  item(): number {
    if (this.size !== 1) fail('SHAPE', `item: expected one element but received ${describe(this)}`)
    return this.data()[0]!
  }

  /** Overwrites the values; `data` must be of this tensor's size and type. */
  write(data: TypedArray): void {
    native.write(this.handle, data)
  }

  /** A second tensor on the same storage, outside of every tape. */
  alias(shape: Shape = this.shape): Tensor {
    return new Tensor(native.view(this.handle, shape), [...shape], this.dtype)
  }

  /** A copy in another dtype. */
  to(dtype: DType): Tensor {
    const copy = Tensor.empty(this.shape, dtype)
    runNative('convert', [copy, this])
    return copy
  }

  /** Frees the tensor now; its storage goes when the last tensor on it does. Throws when done twice. */
  dispose(): void {
    const handle = this.handle
    this.#handle = NaN
    registry.unregister(this)
    this.#owner?.delete(this)
    native.dispose(handle)
  }

  /** Takes the tensor out of its scope: the caller frees it. */
  keep(): this {
    this.#owner?.delete(this)
    this.#owner = undefined
    return this
  }

  /** Gives the tensor to the scope that is open now; the inverse of keep(). */
  adopt(): this {
    this.moveTo(scopes.at(-1))
    return this
  }

  /** @internal moves the tensor to another scope */
  moveTo(owner: Set<Tensor> | undefined): void {
    this.keep()
    this.#owner = owner
    owner?.add(this)
  }
}

export function describe(tensor: Tensor): string {
  return `${tensor.dtype}[${tensor.shape.join(',')}]`
}

const scopes: Set<Tensor>[] = []

function* tensorsIn(value: unknown): Generator<Tensor> {
  if (value instanceof Tensor) yield value
  else if (value instanceof Map) for (const item of value.values()) yield* tensorsIn(item)
  else if (Array.isArray(value)) for (const item of value) yield* tensorsIn(item)
  else if (value !== null && typeof value === 'object' && Object.getPrototypeOf(value) === Object.prototype) {
    for (const item of Object.values(value)) yield* tensorsIn(item)
  }
}

/** Runs `body` and frees every tensor made inside that is not part of its result, also when it throws. */
export function scope<R>(body: () => R): R {
  const made = new Set<Tensor>()
  scopes.push(made)
  try {
    const result = body()
    if (result instanceof Promise) throw new DenseclError('SCOPE', 'scope: expected a synchronous function but it returned a promise')
    const parent = scopes.at(-2)
    for (const tensor of tensorsIn(result)) if (made.has(tensor)) tensor.moveTo(parent)
    return result
  } finally {
    scopes.pop()
    for (const tensor of made) tensor.dispose()
  }
}
