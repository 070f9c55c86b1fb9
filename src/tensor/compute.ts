/**
 * How ops compute, as a value: settings hold for the ops inside of withCompute() and for the gradients of these ops, and for nothing
 * else. They change no result but in its last bits, or in what tf32 rounds.
 */
import { fail } from './errors.js'
import { native } from './native.js'

export const precisions = ['f32', 'tf32'] as const
/** The precision in which f32 convolutions are computed where the device can choose. */
export type Precision = (typeof precisions)[number]

/**
 * How far convolutions and batch norms are fused on devices with epilogues (docs/fusion.md). Every level computes the same values
 * from the same roundings; sums differ in their order alone.
 *
 * `pointwise`: batch norm, residual and ReLU are one pass over memory, statistics and reductions passes of their own. The others are one
 * on the CPU: a normalised tensor that only convolutions read is not kept for backward, which computes it again.
 * `epilogue`: statistics come from the convolution's epilogue; the input gradient's adds, masks and reduces; a join applies the
 * shortcut's norm with its own.
 * `full`: a normalised tensor that only convolutions read is never written: they scale, shift and clip what they load, and
 * combine the gradient of the norm as they load that.
 */
export const fusionLevels = ['pointwise', 'epilogue', 'full'] as const
/** How far convolutions and batch norms are fused on a GPU (docs/fusion.md). */
export type FusionLevel = (typeof fusionLevels)[number]

/** What is chosen for the product of a convolution apart from its operands. */
export interface Kernels {
  /** The tile, by the numbers of ComputeSettings.tile. */
  tile: number
  /** Parts that the pixels of a weight gradient are split into; 0 leaves them to the kernels' own rule. */
  splits: number
}

/**
 * Kernels for operands as they lie in memory, and for operands that a prologue normalises. Without the second the shape takes no
 * prologue.
 */
export interface KernelChoice {
  plain?: Kernels | undefined
  prologue?: Kernels | undefined
}

/** What holds where an op runs. */
export interface ComputeSettings {
  /**
   * The precision of products of f32 tensors (conv2d, linear). `tf32` computes them on tensor cores where the device can
   * (`deviceTraits(device).tf32`): products then have 10 bits of mantissa instead of 23, relative errors near 3e-4. `f32` at first.
   */
  readonly precision: Precision
  /** How far convolutions and batch norms are fused; `epilogue` at first. */
  readonly fusion: FusionLevel
  /**
   * The tile of convolution kernels, for tests and tuning: 1 is 128x128, 2 is 128x64, 3 is 64x64; on Hopper 4 is 128x128, 5 is
   * 128x64, 6 is 128x256 and 7 is the one of 4 and 5 that suits a forward product, stored by bulk copies, of the warpgroup kernels, where
   * others stand in for 4 and 5 but not for 6 and 7; 0, as at first, is what `kernels`, the tuning table or the kernels' own rule says.
   */
  readonly tile: number
  /** Kernels by the key of a convolution's shape (src/ops/tuning.ts); undefined, also for one shape, leaves them to the tables. */
  readonly kernels: ((shapeKey: string) => KernelChoice | undefined) | undefined
  /** Threads that compute on the CPU; undefined where setThreads() holds. Results are the same bits with any number. */
  readonly threads: number | undefined
}

/** Settings to change; those that are absent or undefined stay as they are. */
export type ComputeOptions = { readonly [K in keyof ComputeSettings]?: ComputeSettings[K] | undefined }

let current: ComputeSettings = { precision: 'f32', fusion: 'epilogue', tile: 0, kernels: undefined, threads: undefined }

/** The settings that ops run with now. */
export const currentCompute = (): ComputeSettings => current

/**
 * Runs `body` with other settings, which are as they were when it returns or throws. Ops keep the settings they ran with for their
 * gradients, so backward may run outside. `body` is synchronous: settings that were held over an await would be those of whatever
 * runs meanwhile. Throws ARGUMENT for a value that a setting cannot have, and SCOPE for a body that returns a promise.
 */
export function withCompute<R>(options: ComputeOptions, body: () => R): R {
  check(options)
  const given = Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined)) as Partial<ComputeSettings>
  return withSettings({ ...current, ...given }, body)
}

/** @internal Runs `body` with exactly these settings. */
export function withSettings<R>(settings: ComputeSettings, body: () => R): R {
  const [outer, threads] = [current, native.threads()]
  current = settings
  try {
    if (settings.threads !== undefined && settings.threads !== threads) native.setThreads(settings.threads)
    const result = body()
    if (result instanceof Promise) fail('SCOPE', 'withCompute: expected a synchronous function but it returned a promise')
    return result
  } finally {
    current = outer
    if (native.threads() !== threads) native.setThreads(threads)
  }
}

function check({ precision, fusion, tile, threads }: ComputeOptions): void {
  const oneOf = (name: string, value: string | undefined, values: readonly string[]): void => {
    if (value !== undefined && !values.includes(value))
      fail('ARGUMENT', `withCompute: expected ${name} to be one of ${values.join(', ')} but received ${value}`)
  }
  const integer = (name: string, value: number | undefined, least: number): void => {
    if (value !== undefined && (!Number.isSafeInteger(value) || value < least))
      fail('ARGUMENT', `withCompute: expected ${name} to be an integer of at least ${least} but received ${value}`)
  }
  oneOf('precision', precision, precisions)
  oneOf('fusion', fusion, fusionLevels)
  integer('tile', tile, 0)
  integer('threads', threads, 1)
}
