import { existsSync, readFileSync, statSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

import { DenseclError } from './errors.js'

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

export interface RecordedStep {
  launches: number
  /** Bytes of the arena that holds every tensor made in the step. */
  arena: number
  /** The most bytes that are in use at one time: no arena is smaller. */
  live: number
  /** Bytes of all tensors and scratch memory, as if none were used again. */
  total: number
}

type AnyTypedArray = Float32Array | Float64Array | Int32Array | Uint8Array | Uint8ClampedArray | Uint16Array

/** The addon's surface (native/addon/addon.cpp). Handles are numbers; NaN stands for an absent optional tensor. */
interface Native {
  initialize(errorClass: typeof DenseclError): void
  create(dtype: number, shape: readonly number[], device: string): number
  view(handle: number, shape: readonly number[]): number
  dispose(handle: number): void
  write(handle: number, data: AnyTypedArray): void
  read(handle: number, data: AnyTypedArray): void
  run(op: number, handles: Float64Array, numbers: Float64Array): void
  opNames(): string[]
  memory(device?: string): MemoryStats
  resetPeakMemory(device?: string): void
  setMemoryLimit(bytes: number, device?: string): void
  trimMemory(device?: string): void
  setThreads(count: number): void
  threads(): number
  instructionSet(): string
  /** Every device that this build and machine offer; starts the CUDA driver where there is one. */
  deviceNames(): string[]
  describeDevice(device: string): string
  /** Toolkit and architectures of the CUDA backend; empty without one. */
  cudaBuild(): string
  /** The families of kernels (native/cuda/families.def) that the device would choose, and the only ones that it must not (src/tensor/families.ts). */
  kernelFamilies(device: string): string[]
  avoidFamilies(device: string, names: readonly string[]): void
  /** Streaming multiprocessors of a GPU, at most DENSECL_MULTIPROCESSORS; 0 for the CPU. */
  multiprocessors(device: string): number
  synchronize(device: string): void
  /** Uploads from pinned memory that overlap with compute (native/core/device.h has the rules); plain copies on the CPU. Offsets in bytes. */
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
  records(device: string): boolean
  startTrace(device: string): number
  endTrace(step: number): void
  startRecording(step: number): void
  endRecording(step: number): RecordedStep
  replay(step: number): void
  endGraph(step: number): void
  /** Marks in the device's work, and the milliseconds between two of them. */
  mark(device: string): number
  elapsed(device: string, from: number, to: number): number
  /** Of an addon built with `simt` only: the order of threads between barriers, and kernels with a mistake, for tests. */
  simtShuffle?(seed: number): void
  simtCapability?(value: number): void
  simtAlarm?(name: string, out: number, input: number, at: number): void
}

/** The package's own folder: the nearest one above this file with a package.json. */
export const packageRoot = (() => {
  let folder = dirname(fileURLToPath(import.meta.url))
  while (!existsSync(join(folder, 'package.json'))) folder = dirname(folder)
  return folder
})()

export const packageVersion = (JSON.parse(readFileSync(join(packageRoot, 'package.json'), 'utf8')) as { version: string }).version

/** DENSECL_ADDON, else the newer of the CPU addon of `npm install` and the CUDA one of `npm run build:cuda`. */
export const addonPath = (() => {
  const [plain, cuda] = ['build', 'build-cuda'].map((folder) => join(packageRoot, folder, 'Release', 'densecl.node')) as [string, string]
  const built = (path: string): number => (existsSync(path) ? statSync(path).mtimeMs : 0)
  return process.env.DENSECL_ADDON ?? (built(cuda) > built(plain) ? cuda : plain)
})()

function load(): Native {
  if (!existsSync(addonPath)) {
    throw new DenseclError('ADDON', `the native addon is not built (${addonPath} does not exist); run: npm run build:native`)
  }
  try {
    const addon = createRequire(import.meta.url)(addonPath) as Native
    addon.initialize(DenseclError)
    return addon
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error)
    throw new DenseclError(
      'ADDON',
      `the native addon does not load: ${why}\n  it may be of another Node or machine; run: npm run build:native`,
    )
  }
}

export const native: Native = load()
const indices = new Map(native.opNames().map((name, index) => [name, index]))

/** The device that a user means: `auto` is the first GPU of a CUDA build, else the CPU; `cuda` is `cuda:0`. Throws where it cannot be used. */
export function resolveDevice(wanted: string): string {
  const device =
    wanted === 'auto' ? (native.deviceNames().find((name) => name.startsWith('cuda:')) ?? 'cpu') : wanted === 'cuda' ? 'cuda:0' : wanted
  native.describeDevice(device)
  return device
}

/** What a native op is called with: an absent optional tensor is undefined. */
export type OpTensors = readonly ({ handle: number; bytes?: number; shape?: readonly number[]; dtype?: string } | undefined)[]

/** Set to run every native op inside of a function of one's own, for profiles; one that does not call `run` leaves the op out. */
export const observe: { op?: (name: string, run: () => void, tensors: OpTensors, numbers: readonly number[]) => void } = {}

/** Runs a native op: tensors as handles, outputs first (native/core/ops.def and the op's own file give the order). */
export function runNative(op: string, tensors: OpTensors, numbers: readonly number[] = []): void {
  const index = indices.get(op)
  if (index === undefined) throw new DenseclError('INTERNAL', `there is no native op ${op}; run: npm run build:native`)
  const handles = Float64Array.from(tensors, (tensor) => {
    if (tensor === undefined) return NaN
    if (typeof tensor.handle === 'number') return tensor.handle
    throw new DenseclError(
      'FOREIGN_HANDLE',
      `${op}: expected a tensor of this thread; tensors cannot be sent between workers, send their data`,
    )
  })
  const run = (): void => native.run(index, handles, Float64Array.from(numbers))
  if (observe.op === undefined) run()
  else observe.op(op, run, tensors, numbers)
}
