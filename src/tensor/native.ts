import { buildCommand, loadAddon, type LoadedAddon, type RefusedAddon } from './addon.js'
import { DenseclError } from './errors.js'
import { formulas, type NativeOps, opSignatures } from './nativeOps.js'

/** Memory of a device as memory() tells it. */
export interface MemoryStats {
  /** Bytes of tensors and scratch in use. */
  live: number
  /** Largest value of `live` since the last reset. */
  peak: number
  /** Bytes freed by tensors and kept for reuse. */
  cached: number
  /** Largest `live` allowed, 0 for none. */
  limit: number
  /** Tensor handles of this thread. */
  handles: number
}

/** What a recorded step takes. */
export interface RecordedStep {
  launches: number
  /** Bytes of the arena that holds every tensor made in the step. */
  arena: number
  /** The most bytes that are in use at one time: no arena is smaller. */
  live: number
  /** Bytes of all tensors and scratch memory, as if none were used again. */
  total: number
}

/** The kind of a device: the CPU, an NVIDIA GPU, or its kernels run on the host. */
export type DeviceKind = 'cpu' | 'simt' | 'cuda'

/** The traits of a device, as its backend states them. */
export interface DeviceTraits {
  /** The backend: `cpu`, `cuda` (NVIDIA GPUs), or `simt` (its kernels on the host, for tests). For tables of one value per backend. */
  readonly kind: DeviceKind
  /** The GPU as its maker calls it; empty for other devices. */
  readonly model: string
  /** The compute capability times 10 that kernels are chosen for, at most DENSECL_CAPABILITY; 0 where there are no such kernels. */
  readonly capability: number
  /** Streaming multiprocessors, at most DENSECL_MULTIPROCESSORS; 0 where there are none. */
  readonly multiprocessors: number
  /**
   * Ops are done. A device `dry:NAME` does none: its tensors have shapes and are counted as on the device NAME, but have no values, and
   * read as zeros. It tells what work would take.
   */
  readonly computes: boolean
  /** Bytes of a GPU's memory; 0 where tensors lie in the host's. */
  readonly memory: number
  /** Tensors lie in the host's memory and hold their values when a call returns: reading them waits for nothing. */
  readonly hostMemory: boolean
  /** Work goes on after the call that gave it, so that the host can do something else meanwhile. */
  readonly asynchronous: boolean
  /** Kernels are simulated on the host: their times mean nothing, and everything about them is slow. */
  readonly simulated: boolean
  /** A step can be recorded and replayed (src/tensor/graph.ts). */
  readonly recordable: boolean
  /** Augmented views are made on the device, from pixels that are uploaded to it; elsewhere the workers of the loader make them. */
  readonly rendersViews: boolean
  /** Convolutions of f32 can be computed in tf32, on tensor cores. */
  readonly tf32: boolean
  /** Convolutions have kernels of several tiles to choose from (src/ops/tuning.ts). */
  readonly tunable: boolean
  /**
   * Convolutions give statistics of what they write, their input gradients add, mask and sum for the norm before them, and batch norm
   * gives scale and shift for whoever reads its result (docs/fusion.md).
   */
  readonly epilogues: boolean
  /** Convolutions and poolings normalise what they read, and convolutions combine the gradient of a norm as they load it. */
  readonly prologues: boolean
  /** Convolutions apply a batch norm by running statistics, a residual and ReLU to what they write, where no gradient is asked for. */
  readonly normsResults: boolean
  /** Convolutions take maps in E4M3 (src/ops/e4m3.ts): Hopper's tensor cores, and the CPU, which shows what the rounding does. */
  readonly e4m3: boolean
  /** Bytes of the accesses that prologues and epilogues are made of: channels must be whole ones. 0 without them. */
  readonly vectorBytes: number
  /** Rows of a tensor (pixels) that one row of the statistics or sums of an epilogue covers; 0 without epilogues. */
  readonly statisticsRows: number
  /** Floating dtypes that every op computes with. */
  readonly dtypes: readonly ('f32' | 'f64' | 'bf16')[]
  /** Of convolutions and activations where nobody says: bf16 on a GPU, f32 on the CPU, whose speed in bf16 depends on the processor. */
  readonly usualDType: 'f32' | 'bf16'
  /**
   * Families of kernels (src/tensor/families.ts) that the device would choose: what its capability and the build have, without those
   * that it avoids.
   */
  readonly families: readonly string[]
}

type AnyTypedArray = Float32Array | Float64Array | Int32Array | Uint8Array | Uint8ClampedArray | Uint16Array

/** The addon's surface (native/addon/addon.cpp). Handles are numbers; NaN stands for an absent optional tensor. */
interface Native {
  initialize(errorClass: typeof DenseclError): void
  /** The version of the package that it was built from. */
  version(): string
  create(dtype: number, shape: readonly number[], device: string): number
  view(handle: number, shape: readonly number[]): number
  dispose(handle: number): void
  write(handle: number, data: AnyTypedArray): void
  read(handle: number, data: AnyTypedArray): void
  run(op: number, handles: Float64Array, numbers: Float64Array): void
  /** Every op as name(tensors)(numbers), in the order of native/core/ops.def. */
  opSignatures(): string[]
  /** Every formula of native/core/maps.def, in its order, after the op that is called with its place. */
  formulas(): string[]
  memory(device?: string): MemoryStats
  resetPeakMemory(device?: string): void
  setMemoryLimit(bytes: number, device?: string): void
  trimMemory(device?: string): void
  setThreads(count: number): void
  threads(): number
  instructionSet(): string
  /** SIGINT and SIGTERM (native/core/signals.h): the first prints `message`, a second ends the process at once. */
  listenForSignals(message: string): void
  /** The number of the signal that was heard, 0 for none. */
  heardSignal(): number
  /** Every device that this build and machine offer; starts the CUDA driver where there is one. */
  deviceNames(): string[]
  /** One line for people; deviceTraits is for programs. */
  describeDevice(device: string): string
  deviceTraits(device: string): DeviceTraits
  /** Toolkit and architectures of the CUDA backend; empty without one. */
  cudaBuild(): string
  /** The only families of kernels (native/cuda/families.def) that the device must not choose (src/tensor/families.ts). */
  avoidFamilies(device: string, names: readonly string[]): void
  synchronize(device: string): void
  /** Uploads from pinned memory during compute (native/core/device.h has the rules); plain copies on the CPU. Offsets in bytes. */
  pin(data: AnyTypedArray, device: string): void
  unpin(data: AnyTypedArray, device: string): void
  startUpload(handle: number, data: AnyTypedArray, offset: number): void
  useUpload(handle: number, offset: number): void
  finishUpload(handle: number, offset: number): void
  release(handle: number, offset: number): void
  /** A copy to the host beside the work that follows. */
  startRead(handle: number): number
  finishRead(ticket: number, data: AnyTypedArray): void
  /** Steps that are recorded and replayed (src/tensor/graph.ts). */
  startTrace(device: string): number
  endTrace(step: number): void
  startRecording(step: number): void
  endRecording(step: number): RecordedStep
  replay(step: number): void
  endGraph(step: number): void
  /**
   * A JPEG of 1 or 3 components to RGB, of a size that its frame header must agree with: the part [x, y, width, height] of the image that
   * is reduced by 1, 2, 4 or 8. `out` holds 3 bytes a pixel of the part.
   */
  decodeJpeg(
    bytes: Uint8Array,
    size: readonly [width: number, height: number],
    denominator: number,
    part: readonly number[],
    out: Uint8Array,
  ): void
  /**
   * Writes a view of one image on the CPU, as the op augment does, where neither need be a tensor: f32 [height, width, 3] of the pixels, by
   * a row of that op's table. Throws RANGE for a crop outside of the image.
   */
  renderView(out: Float32Array, size: readonly [height: number, width: number], pixels: Uint8Array, row: Float64Array): void
  /**
   * nvJPEG, in an addon that has GPUs, or `simt`, only: its version; what it decodes with on a device, made ready; and startUpload of
   * images, of which some may be files that it decodes on the way. A row of `rows`, f64 [images, 4], is the place of an image in `data`,
   * and from `offset` on in the tensor, the bytes of the JPEG file that lies there or 0 for pixels, height and width. Returns what it says
   * where it refuses one of the files, no matter which; the pixels of all are then undefined. One batch at a time: the one before has been
   * waited for (finishUpload).
   */
  loadNvjpeg?(path: string): string
  openNvjpeg?(device: string): string
  startImages?(handle: number, data: Uint8Array, offset: number, rows: Float64Array): string
  /** Marks in the device's work, and the milliseconds between two of them. */
  recordEvent(device: string): number
  elapsed(device: string, from: number, to: number): number
  /** Collectives among processes (src/distributed): the library that is there, empty without one, and its calls. */
  commLibrary(): string
  openMpi(): { rank: number; size: number }
  /** Present in an addon that has GPUs, or `simt`, only. */
  loadNccl?(path: string): string
  ncclId?(): Buffer
  /** The PCI bus id of a GPU, by which two processes know that they have the same one; empty where there is none. */
  busId?(device: string): string
  openNccl?(id: Buffer, rank: number, size: number, device: string): void
  /** What went wrong in the library beside its calls, or nothing; from any thread. */
  commError(): string
  startCollective(kind: number, handles: Float64Array, numbers: Float64Array): number
  joinCollective(ticket: number): void
  closeComm(): void
  /** Ends the process at once, from any thread. */
  leave(code: number): never
  /** Present in an addon built with `simt` only: the order of threads between barriers, and kernels with a mistake, for tests. */
  simtShuffle?(seed: number): void
  simtCapability?(value: number): void
  simtAlarm?(name: string, out: number, input: number, at: number): void
}

let taken: LoadedAddon<Native> | undefined

/** The addon in use; loads it where nothing has. */
function load(): LoadedAddon<Native> {
  if (taken === undefined) {
    taken = loadAddon<Native>(otherOps)
    native = taken.addon
  }
  return taken
}

/**
 * The addon. What first asks it something loads it, so that a program without one can be imported, and tell so. Throws ADDON where none
 * fits (src/tensor/addon.ts).
 */
export let native: Native = new Proxy({} as Native, {
  get: (_, name) => Reflect.get(load().addon, name) as unknown,
  has: (_, name) => Reflect.has(load().addon, name),
})

/** The file of the addon in use. */
export const addonPath = (): string => load().path

/** Addons that are there and were passed over. */
export const refusedAddons = (): readonly RefusedAddon[] => load().refused

/** What an addon of the same version lacks that was built from other sources. */
function otherOps(addon: Native): string | undefined {
  const expected = [...opSignatures, ...formulas]
  const built = [...addon.opSignatures(), ...addon.formulas()]
  const differs = expected.findIndex((each, i) => each !== built[i])
  if (differs < 0 && built.length === expected.length) return undefined
  return (
    `it was built from other sources: it has ${built[differs] ?? `${built.length} ops and formulas`} ` +
    `where this package has ${expected[differs] ?? `${expected.length} of them`}`
  )
}

interface Parameter {
  name: string
  optional: boolean
  list: boolean
}
interface Signature {
  index: number
  tensors: Parameter[]
  numbers: Parameter[]
}

/** The signatures of src/tensor/nativeOps.ts, which otherOps compares with the addon's. */
const opTable: ReadonlyMap<string, Signature> = (() => {
  const parameters = (list: string): Parameter[] =>
    list
      .split(',')
      .filter(Boolean)
      .map((name) => ({ name: name.replace(/[?*]/g, ''), optional: name.includes('?'), list: name.includes('*') }))
  return new Map(
    opSignatures.map((signature, index) => {
      const [, name, tensors, numbers] = /^(\w+)\((.*)\)\((.*)\)$/.exec(signature) as unknown as [string, string, string, string]
      return [name, { index, tensors: parameters(tensors), numbers: parameters(numbers) }]
    }),
  )
})()

/** The device that a user means: `auto` is the first GPU of a CUDA build, else the CPU; `cuda` is `cuda:0`. Throws DEVICE. */
export function resolveDevice(wanted: string): string {
  const device = wanted === 'auto' ? (gpuNames()[0] ?? 'cpu') : wanted === 'cuda' ? 'cuda:0' : wanted
  native.describeDevice(device)
  return device
}

/** The GPUs of this machine by the names of their devices, in a build that has CUDA; none of them is started. */
export function gpuNames(): string[] {
  return native.deviceNames().filter((name) => name.startsWith('cuda:'))
}

/** Whether `wanted`, which a user has typed, means the CPU. */
export function meansCpu(wanted: string): boolean {
  return wanted === 'cpu' || (wanted === 'auto' && gpuNames().length === 0)
}

/** A tensor as a native op takes it. */
interface OpTensor {
  handle: number
  disposed?: boolean
  bytes?: number
  shape?: readonly number[]
  dtype?: string
}

export type OpName = keyof NativeOps<OpTensor>
type OpTensors<O extends OpName = OpName> = NativeOps<OpTensor>[O]['tensors']
export type OpNumbers<O extends OpName = OpName> = NativeOps<OpTensor>[O]['numbers']

/** The tensors of a call by name; T is a tensor, or what is known of one. */
export type NamedTensors<T> = Readonly<Record<string, T | undefined | readonly (T | undefined)[]>>
/** The same of every tensor, also of those in lists. */
export const mapTensors = <T, U>(tensors: NamedTensors<T>, of: (tensor: T) => U): NamedTensors<U> => {
  const each = (tensor: T | undefined): U | undefined => (tensor === undefined ? undefined : of(tensor))
  return Object.fromEntries(
    Object.entries(tensors).map(([name, value]) => [
      name,
      Array.isArray(value) ? (value as readonly (T | undefined)[]).map(each) : each(value as T | undefined),
    ]),
  )
}

/** All tensors of a call. */
export const tensorsOf = <T>(tensors: NamedTensors<T>): T[] =>
  (Object.values(tensors).flat() as (T | undefined)[]).filter((tensor) => tensor !== undefined)

/** The names of all native ops, which their errors begin with. */
export const nativeOpNames: { has(name: string): boolean } = opTable

/** The numbers of a call by name. */
export type NamedNumbers = Readonly<Record<string, number | boolean | readonly number[]>>

/** Set to run every native op inside of a function of one's own, for profiles; one that does not call `run` leaves the op out. */
export const observe: { op?: (name: string, run: () => void, tensors: NamedTensors<OpTensor>, numbers: NamedNumbers) => void } = {}

/** How often values have passed between JavaScript and a tensor of this thread. */
export const transfers = { count: 0 }

/**
 * Runs a native op. The names and types of its tensors, outputs among them, and of its numbers are those of native/core/ops.def; an
 * optional tensor may be left out. Throws ARGUMENT for a name that is missing or that the op does not have, and what the native side
 * says of dtypes and shapes.
 */
export function runNative<O extends OpName>(
  op: O,
  tensors: OpTensors<O>,
  ...[numbers]: keyof OpNumbers<O> extends never ? [] : [OpNumbers<O>]
): void {
  runNamed(op, tensors, numbers)
}

/** Does what runNative does for an op that is known only when it runs: a deferred tensor's, or one that is timed. */
export function runNamed(op: string, tensors: NamedTensors<OpTensor>, numbers: NamedNumbers = {}): void {
  const signature = opTable.get(op)
  if (signature === undefined) throw new DenseclError('INTERNAL', `there is no native op ${op}; run: ${buildCommand()}`)
  const handle = (tensor: OpTensor | undefined, name: string): number => (tensor === undefined ? NaN : handleOf(op, name, tensor))
  const number = (value: number | boolean | undefined): number => Number(value)
  const handles = flattened(op, 'tensor', signature.tensors, tensors, handle)
  const values = flattened(op, 'number', signature.numbers, numbers, number)
  const run = (): void => native.run(signature.index, handles, values)
  if (observe.op === undefined) run()
  else observe.op(op, run, tensors, numbers)
}

/** The values of an op's parameters in their order, those of a list after their count. */
function flattened<V>(
  op: string,
  kind: string,
  parameters: readonly Parameter[],
  given: Readonly<Record<string, V | undefined | readonly (V | undefined)[]>>,
  toNumber: (value: V | undefined, name: string) => number,
): Float64Array {
  const flat: number[] = []
  let known = 0
  for (const { name, optional, list } of parameters) {
    const value = given[name]
    if (name in given) known += 1
    if (list) {
      if (!Array.isArray(value))
        throw new DenseclError('ARGUMENT', `${op}: expected a list for the ${kind} ${name} but received ${String(value)}`)
      flat.push(value.length)
      for (const each of value as readonly (V | undefined)[]) flat.push(toNumber(each, name))
    } else if (value === undefined && !optional) throw new DenseclError('ARGUMENT', `${op}: the ${kind} ${name} is missing`)
    else flat.push(toNumber(value as V | undefined, name))
  }
  const names = Object.keys(given)
  if (names.length > known) {
    const unknown = names.find((name) => parameters.every((parameter) => parameter.name !== name))
    throw new DenseclError(
      'ARGUMENT',
      `${op}: has no ${kind} ${unknown}; it has ${parameters.map(({ name }) => name).join(', ') || 'none'}`,
    )
  }
  return Float64Array.from(flat)
}

function handleOf(op: string, name: string, tensor: OpTensor): number {
  if (tensor.disposed === true) {
    const { dtype, shape } = tensor
    throw new DenseclError('USE_AFTER_DISPOSE', `${op}: the tensor ${name}, ${dtype}[${shape?.join(',')}], has been disposed`)
  }
  const { handle } = tensor
  if (typeof handle === 'number') return handle
  throw new DenseclError(
    'FOREIGN_HANDLE',
    `${op}: expected a tensor of this thread; tensors cannot be sent between workers, send their data`,
  )
}
