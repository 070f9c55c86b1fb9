import { fromE4m3, toE4m3 } from './e4m3.js'
import { DenseclError, fail } from './errors.js'
import { type NamedNumbers, native, type OpName, runNamed, runNative, transfers } from './native.js'
import { deviceTraits } from './traits.js'

export const dtypes = ['f32', 'f64', 'i32', 'u8', 'bf16', 'e4m3'] as const
/** The type of the elements of a tensor. In e4m3 maps are kept between kernels that take it (src/ops/e4m3.ts); no other op does. */
export type DType = (typeof dtypes)[number]
/** The dtypes that gradients exist for. */
export type FloatDType = 'f32' | 'f64' | 'bf16'
/** The sizes of the axes of a tensor. */
export type Shape = readonly number[]

/** What sums, statistics, losses and weight gradients of a dtype are kept in: f32 for bf16, otherwise itself. */
export const accumulator = (dtype: DType): DType => (dtype === 'bf16' ? 'f32' : dtype)

// Values of bf16 and e4m3 cross as Float32Array: JavaScript has no arrays of them.
const arrays = { f32: Float32Array, f64: Float64Array, i32: Int32Array, u8: Uint8Array, bf16: Float32Array, e4m3: Float32Array } as const
/** What the values of a tensor are on the host; bf16 and e4m3 come as a Float32Array. */
export type TypedArray = Float32Array | Float64Array | Int32Array | Uint8Array
/** A number, or arrays of them nested as deep as a tensor has axes. */
export type NestedNumbers = number | ArrayLike<number> | readonly NestedNumbers[]

let ambient = 'cpu'

/** Runs `body` with `device` as the one where new tensors are made: `cpu`, `cuda:N` or, in tests, `simt`. */
export function withDevice<R>(device: string, body: () => R): R {
  const outer = ambient
  ambient = device
  try {
    return body()
  } finally {
    ambient = outer
  }
}

/** The device where new tensors are made. */
export const currentDevice = (): string => ambient

// Loops: from() of a typed array makes a list of all numbers first.

/** The upper halves of floats, rounded to the nearest, ties to even. */
function toBf16(values: Float32Array): Uint16Array {
  const words = new Uint32Array(values.buffer, values.byteOffset, values.length)
  const halves = new Uint16Array(words.length)
  words.forEach((word, i) => {
    halves[i] = (word & 0x7fffffff) > 0x7f800000 ? (word >>> 16) | 0x40 : (word + 0x7fff + ((word >>> 16) & 1)) >>> 16
  })
  return halves
}

function fromBf16(halves: Uint16Array): Float32Array {
  const words = new Uint32Array(halves.length)
  halves.forEach((half, i) => (words[i] = half << 16))
  return new Float32Array(words.buffer)
}

/** The dtypes whose values are not those of their arrays: what they lie in, and the way there and back. */
const packed: Partial<Record<DType, Packing>> = {
  bf16: { array: Uint16Array, pack: toBf16, unpack: fromBf16 as Packing['unpack'] },
  e4m3: { array: Uint8Array, pack: toE4m3, unpack: fromE4m3 as Packing['unpack'] },
}
interface Packing {
  array: Uint16ArrayConstructor | Uint8ArrayConstructor
  pack: (values: Float32Array) => Uint16Array | Uint8Array
  unpack: (raw: RawArray) => Float32Array
}
type RawArray = TypedArray | Uint16Array

const rawArray = (dtype: DType, size: number): RawArray => new (packed[dtype]?.array ?? arrays[dtype])(size)
const unpacked = (dtype: DType, raw: RawArray): TypedArray => packed[dtype]?.unpack(raw) ?? (raw as TypedArray)

/** Throws SHAPE unless `shape` is a list of sizes. */
export function expectSizes(op: string, shape: unknown): asserts shape is Shape {
  if (Array.isArray(shape) && shape.every((d) => Number.isSafeInteger(d) && d >= 0)) return
  fail(
    'SHAPE',
    `${op}: expected a shape of non-negative integers but received ${Array.isArray(shape) ? `[${shape.join(',')}]` : kindOf(shape)}`,
  )
}

const limits: Partial<Record<DType, readonly [number, number]>> = { u8: [0, 255], i32: [-(2 ** 31), 2 ** 31 - 1] }

/** Throws ARGUMENT for a number that no element of the dtype can be. */
export function expectValue(op: string, name: string, value: unknown, dtype: DType): asserts value is number {
  const [least, most] = limits[dtype] ?? [-Infinity, Infinity]
  const whole = dtype in limits
  const expected = whole ? `an integer from ${least} to ${most}, as ${dtype} holds,` : 'a number'
  if (typeof value !== 'number' || (whole && !(Number.isInteger(value) && value >= least && value <= most)))
    fail('ARGUMENT', `${op}: expected ${name} to be ${expected} but received ${String(value)}`)
}

/** Bytes of an element. */
export const itemBytes = (dtype: DType): number => packed[dtype]?.array.BYTES_PER_ELEMENT ?? arrays[dtype].BYTES_PER_ELEMENT

export const sizeOf = (shape: Shape): number => shape.reduce((product, d) => product * d, 1)

let nextId = 1
/** @internal The id of the tensor that was made last. */
export const lastTensor = (): number => nextId - 1
let leaks = 0
const registry = new FinalizationRegistry<number>((handle) => {
  leaks += 1
  native.dispose(handle)
})

// What other libraries call the dtypes.
const foreignNames: Readonly<Record<string, DType>> = {
  float: 'f32',
  float32: 'f32',
  double: 'f64',
  float64: 'f64',
  int: 'i32',
  int32: 'i32',
  long: 'i32',
  int64: 'i32',
  byte: 'u8',
  uint8: 'u8',
  bool: 'u8',
  half: 'bf16',
  float16: 'bf16',
  f16: 'bf16',
  bfloat16: 'bf16',
  fp8: 'e4m3',
  float8_e4m3fn: 'e4m3',
}

function expectDtype(name: unknown): DType {
  const known = dtypes.find((dtype) => dtype === name)
  if (known !== undefined) return known
  const meant = foreignNames[String(name).replace(/^.*\./, '').toLowerCase()]
  return fail(
    'DTYPE',
    `tensor: expected a dtype among ${dtypes.join(', ')} but ` +
      `received ${String(name)}${meant === undefined ? '' : `; did you mean ${meant}?`}`,
  )
}

/** More axes than any op takes: lists that are nested deeper hold themselves. */
const deepest = 64

/** The numbers of `data` row-major, and the shape that its nesting says. */
function flatten(data: NestedNumbers): { values: ArrayLike<number>; shape: Shape } {
  if (typeof data === 'number') return { values: [data], shape: [] }
  if (ArrayBuffer.isView(data) && typeof (data as ArrayLike<unknown>)[0] !== 'bigint' && !(data instanceof DataView))
    return { values: data as ArrayLike<number>, shape: [data.length] }
  const shape: number[] = []
  for (let at: unknown = data; typeof at === 'object' && at !== null && 'length' in at; at = (at as ArrayLike<unknown>)[0]) {
    shape.push((at as ArrayLike<unknown>).length)
    if (shape.length > deepest) fail('SHAPE', `tensor: expected lists nested at most ${deepest} deep: data holds itself, or is no tensor`)
  }
  const values: number[] = []
  const visit = (value: unknown, place: readonly number[]): void => {
    const expected = shape[place.length]
    const { length } = Object(value) as { length?: number }
    if (expected === undefined ? typeof value !== 'number' : typeof value !== 'object' || length !== expected) {
      const where = `data${place.map((i) => `[${i}]`).join('')}`
      const wanted = expected === undefined ? 'a number' : `a list of ${expected}, as the first one there`
      const received = length === undefined || typeof value === 'string' ? `${typeof value} ${String(value)}` : `a list of ${length}`
      fail('SHAPE', `tensor: expected ${where} to be ${wanted} but received ${received}`)
    }
    if (expected === undefined) values.push(value as number)
    else if (place.length + 1 === shape.length) for (let i = 0; i < expected; ++i) number(value as ArrayLike<unknown>, i, place)
    else for (let i = 0; i < expected; ++i) visit((value as ArrayLike<unknown>)[i], [...place, i])
  }
  // Numbers of the last axis have no list of places made for each of them, as there may be many.
  const number = (list: ArrayLike<unknown>, i: number, place: readonly number[]): void => {
    const value = list[i]
    if (typeof value === 'number') values.push(value)
    else visit(value, [...place, i])
  }
  visit(data, [])
  return { values, shape }
}

/** Tensors that were garbage-collected without dispose(); 0 in a program that frees what it makes. */
export const leakedTensors = (): number => leaks

/** How a deferred tensor is computed when somebody needs its values: by a native op that writes it. */
interface Deferral {
  readonly op: OpName
  /** What the op calls the tensor. */
  readonly output: string
  /** The op's other tensors by name, owned by the deferred one. */
  readonly parts: Readonly<Record<string, Tensor>>
  readonly numbers: NamedNumbers
}

/**
 * A contiguous array on a device, owned by the caller or by the enclosing scope(). Images are NHWC, weights [O, KH, KW, I].
 * Every use after dispose() throws USE_AFTER_DISPOSE.
 */
export class Tensor {
  /** Identity for the tape: two views of one storage are different tensors. */
  readonly id = nextId++
  /** NaN when disposed, undefined while the values are deferred. */
  #handle: number | undefined
  #owner: Set<Tensor> | undefined
  #deferral: Deferral | undefined

  private constructor(
    handle: number | undefined,
    readonly shape: Shape,
    readonly dtype: DType,
    /** `cpu`, `cuda:N` or `simt` */
    readonly device: string,
  ) {
    this.#handle = handle
    if (handle !== undefined) registry.register(this, handle, this)
    this.#owner = scopes.at(-1)
    this.#owner?.add(this)
  }

  /**
   * @internal
   * A tensor whose values are computed when they are first needed, which is never where every consumer takes the parts instead.
   * It takes over the parts, which nothing may change.
   */
  static deferred(shape: Shape, dtype: DType, device: string, deferral: Deferral): Tensor {
    const tensor = new Tensor(undefined, [...shape], dtype, device)
    for (const part of Object.values(deferral.parts)) part.keep()
    tensor.#deferral = deferral
    return tensor
  }

  /** @internal What the values would be computed from; undefined once they exist. */
  get deferral(): Deferral | undefined {
    return this.#deferral
  }

  #materialise(): number {
    const { op, output, parts, numbers } = this.#deferral!
    const handle = native.create(dtypes.indexOf(this.dtype), this.shape, this.device)
    this.#handle = handle
    registry.register(this, handle, this)
    runNamed(op, { [output]: this, ...parts }, numbers)
    this.#dropParts()
    return handle
  }

  #dropParts(): void {
    for (const part of Object.values(this.#deferral?.parts ?? {})) part.dispose()
    this.#deferral = undefined
  }

  /** Memory of unspecified content on the current device. Throws OUT_OF_MEMORY with the sizes. */
  static empty(shape: Shape, dtype: DType = 'f32', device = ambient): Tensor {
    expectSizes('tensor', shape)
    return new Tensor(native.create(dtypes.indexOf(expectDtype(dtype)), shape, device), [...shape], dtype, device)
  }

  /** A tensor of one value on the current device. Throws ARGUMENT for a value that the dtype does not hold. */
  static full(shape: Shape, value: number, dtype: DType = 'f32', device = ambient): Tensor {
    expectValue('tensor', 'value', value, dtype)
    const tensor = Tensor.empty(shape, dtype, device)
    runNative('fill', { y: tensor }, { value })
    return tensor
  }

  /** A tensor of zeros on the current device. */
  static zeros(shape: Shape, dtype: DType = 'f32', device = ambient): Tensor {
    return Tensor.full(shape, 0, dtype, device)
  }

  /** What from() makes of the numbers that `draw` gives, which are not drawn for a device that does not compute. */
  static drawn(draw: () => ArrayLike<number>, shape: Shape, dtype: DType): Tensor {
    return deviceTraits(ambient).computes ? Tensor.from(draw(), shape, dtype) : Tensor.empty(shape, dtype)
  }

  /**
   * Copies numbers into a tensor of `dtype`, f32 unless told otherwise. They are given row-major with the shape, or nested as deep as the
   * tensor has axes, or as one number; without a shape a flat list is of rank 1. Throws SHAPE for another count or for ragged lists.
   */
  static from(data: NestedNumbers, dtype: DType, device?: string): Tensor
  static from(data: NestedNumbers, shape?: Shape, dtype?: DType, device?: string): Tensor
  static from(data: NestedNumbers, shapeOrType?: Shape | DType, typeOrDevice?: string, deviceOrNothing?: string): Tensor {
    const typed = typeof shapeOrType === 'string'
    const dtype = expectDtype((typed ? shapeOrType : typeOrDevice) ?? 'f32')
    const device = (typed ? typeOrDevice : deviceOrNothing) ?? ambient
    const { values, shape } = flatten(data)
    const wanted = typed ? shape : (shapeOrType ?? shape)
    expectSizes('tensor', wanted)
    if (values.length !== sizeOf(wanted)) {
      fail('SHAPE', `tensor: expected ${sizeOf(wanted)} values for shape [${wanted.join(',')}] but received ${values.length}`)
    }
    const tensor = Tensor.empty(wanted, dtype, device)
    tensor.write(values instanceof arrays[dtype] ? values : arrays[dtype].from(values))
    return tensor
  }

  /** @internal The native handle; throws when disposed or when this is no tensor of this thread. */
  get handle(): number {
    if (!(#handle in this))
      fail('FOREIGN_HANDLE', 'expected a tensor of this thread; tensors cannot be sent between workers, send their data')
    if (Number.isNaN(this.#handle)) fail('USE_AFTER_DISPOSE', `the tensor ${describe(this)} has been disposed`)
    return this.#handle ?? this.#materialise()
  }

  get disposed(): boolean {
    return Number.isNaN(this.#handle)
  }

  get size(): number {
    return sizeOf(this.shape)
  }

  get bytes(): number {
    return this.size * itemBytes(this.dtype)
  }

  /** A copy of the values, row-major; waits for the device. */
  data(): TypedArray {
    const raw = rawArray(this.dtype, this.size)
    transfers.count += 1
    native.read(this.handle, raw)
    return unpacked(this.dtype, raw)
  }

  /** data() in two halves: starts the copy beside the work that follows, and gives the function that waits for it. */
  startRead(): () => TypedArray {
    transfers.count += 1
    const ticket = native.startRead(this.handle)
    let values: TypedArray | undefined
    return () => {
      if (values !== undefined) return values
      const raw = rawArray(this.dtype, this.size)
      native.finishRead(ticket, raw)
      return (values = unpacked(this.dtype, raw))
    }
  }

  /** The only value of a one-element tensor. */
  item(): number {
    if (this.size !== 1) fail('SHAPE', `item: expected one element but received ${describe(this)}`)
    return this.data()[0]!
  }

  /**
   * Overwrites the values; `data` must be of this tensor's size and type, a Float32Array for bf16 and e4m3. Throws SHAPE or DTYPE
   * otherwise.
   */
  write(data: TypedArray): void {
    const type = arrays[this.dtype]
    if (!(data instanceof type)) fail('DTYPE', `write: expected ${type.name} for ${describe(this)} but received ${kindOf(data)}`)
    if (data.length !== this.size) fail('SHAPE', `write: expected ${this.size} values for ${describe(this)} but received ${data.length}`)
    transfers.count += 1
    native.write(this.handle, packed[this.dtype]?.pack(data as Float32Array) ?? data)
  }

  /** A second tensor on the same storage, outside of every tape. */
  alias(shape: Shape = this.shape): Tensor {
    if (this.#deferral !== undefined && shape === this.shape) {
      const parts = Object.fromEntries(Object.entries(this.#deferral.parts).map(([name, part]) => [name, part.alias()]))
      return Tensor.deferred(shape, this.dtype, this.device, { ...this.#deferral, parts })
    }
    expectSizes('alias', shape)
    return new Tensor(native.view(this.handle, shape), [...shape], this.dtype, this.device)
  }

  /** A copy in another dtype, on another device, or both. */
  to(dtype: DType, device = this.device): Tensor {
    if (device !== this.device) {
      const moved = Tensor.from(this.data(), this.shape, this.dtype, device)
      if (dtype === this.dtype) return moved
      const converted = moved.to(dtype)
      moved.dispose()
      return converted
    }
    const copy = Tensor.empty(this.shape, dtype, device)
    runNative('convert', { y: copy, x: this })
    return copy
  }

  /** Frees the tensor now; its storage goes when the last tensor on it does. Throws when done twice. */
  dispose(): void {
    if (this.#handle === undefined) this.#dropParts()
    else {
      native.dispose(this.handle)
      registry.unregister(this)
    }
    this.#handle = NaN
    this.#owner?.delete(this)
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

/** The class of a value, for messages. */
export function kindOf(value: unknown): string {
  if (Object(value) !== value) return String(value)
  const { constructor } = value as { constructor?: { name: string } }
  return constructor?.name === Tensor.name && constructor !== Tensor ? 'one of another copy of densecl' : (constructor?.name ?? 'an object')
}

export function describe(tensor: Tensor): string {
  return `${tensor.dtype}[${tensor.shape.join(',')}]${deviceTraits(tensor.device).hostMemory ? '' : ` on ${tensor.device}`}`
}

const scopes: Set<Tensor>[] = []

/** The tensors in arrays, maps and plain objects. */
export function* tensorsIn(value: unknown): Generator<Tensor> {
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
