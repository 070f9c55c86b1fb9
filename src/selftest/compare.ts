/** What the check of a device compares, and how. */
import { Tape } from '../autograd/tape.js'
import { type DType, type FloatDType, sizeOf, Tensor, type TypedArray, withDevice } from '../tensor/tensor.js'
import { deviceTraits } from '../tensor/traits.js'

/** One comparison: a kernel at a shape, against another path to the same values. */
export interface Finding {
  /** The kernel's op, and the shape. */
  shape: string
  against: string
  /** The largest difference of two values, over the size of the expected one and the root mean square of all; NaN counts as infinite. */
  error: number
  bound: number
}

export const agrees = ({ error, bound }: Finding): boolean => error <= bound

/** Infinity where a value is not finite or the lengths differ. */
export function largestError(values: TypedArray, expected: TypedArray): number {
  if (values.length !== expected.length) return Infinity
  let squares = 0
  for (const value of expected) squares += value * value
  const typical = Math.sqrt(squares / Math.max(1, expected.length))
  let worst = 0
  for (let i = 0; i < expected.length; ++i) {
    const difference = Math.abs(values[i]! - expected[i]!)
    const error = difference === 0 ? 0 : difference / (Math.abs(expected[i]!) + typical)
    if (!(error <= worst)) worst = Number.isNaN(error) ? Infinity : error
  }
  return worst
}

/** A value of bf16 may round to either neighbour, 2^-7 away at most; what is not rounded differs in the order of its sums. */
const roundingOf = (dtype: DType): number => (dtype === 'bf16' ? 0.01 : 1e-3)

/** The findings of several results of one call, as the worst of them by its own bound. */
export function compareAll(
  shape: string,
  against: string,
  results: readonly Result[],
  expected: readonly Result[],
  bounds?: readonly number[],
): Finding {
  const findings = expected.map(({ name, values }, i) => ({
    shape: `${shape}, ${name}`,
    against,
    error: largestError(results[i]!.values, values),
    bound: bounds?.[i] ?? roundingOf(results[i]!.dtype),
  }))
  return findings.reduce((worst, each) => (each.error / each.bound > worst.error / worst.bound ? each : worst))
}

export interface Result {
  name: string
  values: TypedArray
  dtype: DType
}

export const resultOf = (name: string, tensor: Tensor): Result => ({ name, values: tensor.data(), dtype: tensor.dtype })

/** Numbers of -1..1 that look random, from a seed: the same on every device and cheap to make by the million. */
export function noise(count: number, seed: number): Float32Array {
  const values = new Float32Array(count)
  let state = (seed * 2654435761 + 12345) >>> 0
  for (let i = 0; i < count; ++i) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    values[i] = (state >>> 8) / 2 ** 23 - 1
  }
  return values
}

/** A tensor of noise on `device`; the CPU, which does not compute in bf16, gets the rounded values as f32. */
export const noiseTensor = (device: string, shape: readonly number[], dtype: FloatDType, seed: number): Tensor =>
  withDevice(device, () => rounded(Tensor.from(noise(sizeOf(shape), seed), shape), dtype))

export const rounded = (tensor: Tensor, dtype: FloatDType): Tensor =>
  dtype === tensor.dtype
    ? tensor
    : deviceTraits(tensor.device).dtypes.some((one) => one === dtype)
      ? tensor.to(dtype)
      : tensor.to(dtype).to(tensor.dtype)

/** y and the gradients of the inputs of `f`. */
export function withGradients(f: (...inputs: Tensor[]) => Tensor, device: string, dtype: FloatDType, ...inputs: Tensor[]): Result[] {
  const tape = new Tape().watch(inputs)
  const y = tape.record(() => f(...inputs))
  const gradients = tape.backward(y, inputs, noiseTensor(device, y.shape, y.dtype === 'f32' ? 'f32' : dtype, 99))
  return [resultOf('y', y), ...gradients.map((gradient, i) => resultOf(`gradient ${i}`, gradient))]
}

/** A program whose results on the device are compared with the CPU's. */
export interface Other {
  shape: string
  run: (device: string) => Result[]
  bounds?: readonly number[]
}
