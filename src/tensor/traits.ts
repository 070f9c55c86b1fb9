/**
 * What a device is and what it can do. Nothing outside of native code asks for a device's name to find out: each backend says it
 * (native/core/device.h), and code asks for the one trait that it depends on.
 */
import { native } from './native.js'

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
  /** Max pooling keeps the tap of a window in a byte where it fits, and nothing for a pass without a gradient; elsewhere always an i32. */
  readonly byteIndices: boolean
  /** Bytes of the accesses that prologues and epilogues are made of: channels must be whole ones. 0 without them. */
  readonly vectorBytes: number
  /** Rows of a tensor (pixels) that one row of the statistics or sums of an epilogue covers; 0 without epilogues. */
  readonly statisticsRows: number
  /** Floating dtypes that every op computes with. */
  readonly dtypes: readonly ('f32' | 'f64' | 'bf16')[]
  /**
   * Families of kernels (src/tensor/families.ts) that the device would choose: what its capability and the build have, without those
   * that it avoids.
   */
  readonly families: readonly string[]
}

const known = new Map<string, DeviceTraits>()

/**
 * The traits of the device `name` (`cpu`, `cuda:0`, ...). They are asked for once; the first time starts the device. Throws DEVICE
 * where there is no such device or it cannot be used, and ARGUMENT for a DENSECL_CAPABILITY or DENSECL_MULTIPROCESSORS that is no
 * number.
 */
export function deviceTraits(name: string): DeviceTraits {
  let traits = known.get(name)
  if (traits === undefined) known.set(name, (traits = native.deviceTraits(name)))
  return traits
}

/** The dtype that a device computes convolutions fastest in: bf16 where it has that, else f32. */
export const fastestDType = (device: string): 'f32' | 'bf16' => (deviceTraits(device).dtypes.includes('bf16') ? 'bf16' : 'f32')

/** Asks for the traits of all devices again, after something that changes them: families to avoid, a variable of the environment. */
export function forgetTraits(): void {
  known.clear()
}
