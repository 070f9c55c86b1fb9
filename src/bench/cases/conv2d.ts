import type { NativeCall } from '../../ops/timing.js'
import { computeNumbers, type ConvolutionNumbers, type Direction, directions, type Product } from '../../ops/tuning.js'
import { unfoldsIntoSlices } from '../../ops/kernels.js'
import { runNative } from '../../tensor/native.js'
import { accumulator, type DType, type Shape } from '../../tensor/tensor.js'
import { resnet50Layers } from '../layers.js'
import type { BenchCase, FamilyCases } from './benchCase.js'

const windowsOf = (kernel: number, stride: number): Omit<ConvolutionNumbers, 'tile' | 'tf32'> => ({
  strideH: stride,
  strideW: stride,
  paddingH: (kernel - 1) / 2,
  paddingW: (kernel - 1) / 2,
  dilationH: 1,
  dilationW: 1,
})

const convolutions = resnet50Layers.flatMap(({ name, size, c, o, kernel, stride }): BenchCase[] => {
  const out = size / stride
  const windows = windowsOf(kernel, stride)
  const numbers = (): ConvolutionNumbers => ({ ...windows, ...computeNumbers() })
  const flops = (n: number): number => 2 * n * out * out * o * c * kernel * kernel
  const peerNumbers = (n: number): number[] => [n, size, c, o, kernel, stride]
  const x: (n: number) => Shape = (n) => [n, size, size, c]
  const y: (n: number) => Shape = (n) => [n, out, out, o]
  const w = [o, kernel, kernel, c]
  const forward: BenchCase = {
    name: `${name} forward`,
    flops,
    prepare(s) {
      const tensors = { y: s.output(y(s.batch)), x: s.values(x(s.batch)), weight: s.values(w) }
      return () => runNative('conv2d', tensors, { ...numbers(), relu: false })
    },
    peer: { op: 'conv2d', numbers: peerNumbers },
  }
  const input: BenchCase = {
    name: `${name} backward input`,
    flops,
    prepare(s) {
      const tensors = { dx: s.output(x(s.batch)), dy: s.values(y(s.batch)), weight: s.values(w) }
      return () => runNative('conv2dBackwardInput', tensors, numbers())
    },
    peer: { op: 'conv2dBackwardInput', numbers: peerNumbers },
  }
  const weight: BenchCase = {
    name: `${name} backward weight`,
    flops,
    prepare(s) {
      const tensors = { dweight: s.output(w, accumulator(s.dtype)), dy: s.values(y(s.batch)), x: s.values(x(s.batch)) }
      return () => runNative('conv2dBackwardWeight', tensors, { ...numbers(), relu: false, splits: 0 })
    },
    peer: { op: 'conv2dBackwardWeight', numbers: peerNumbers },
  }
  // The images need no gradient.
  return c === 3 ? [forward, weight] : [forward, input, weight]
})

/** The same by what their kernels compute, for tuning: the product, the bytes that pass memory, and the call that is timed. */
export function convolutionCases(
  batch: number,
): { name: string; call: NativeCall; product: Product; bytes: number; wholeSlices: boolean }[] {
  return resnet50Layers.flatMap(({ name, size, c, o, kernel, stride }) => {
    const out = size / stride
    const [pixels, taps] = [batch * out * out, kernel * kernel]
    // A strided 1x1 kernel reads a quarter of its input.
    const [input, output, weights] = [batch * c * (kernel === 1 ? out * out : size * size) * 2, pixels * o * 2, o * taps * c]
    const slices = c % 64 === 0 || unfoldsIntoSlices(c, kernel, stride, 1)
    const products: Record<Direction, [Product, number, boolean]> = {
      forward: [{ direction: 'forward', rows: pixels, columns: o, depth: taps * c }, input + output + 2 * weights, slices],
      'backward input': [
        { direction: 'backward input', rows: batch * size * size, columns: c, depth: (taps * o) / (stride * stride) },
        input + output + 2 * weights,
        o % 64 === 0,
      ],
      'backward weight': [
        { direction: 'backward weight', rows: o, columns: taps * c, depth: pixels },
        input + output + 4 * weights,
        slices,
      ],
    }
    const bf16 = (...shape: number[]): { shape: Shape; dtype: DType } => ({ shape, dtype: 'bf16' })
    const [x, y, w] = [bf16(batch, size, size, c), bf16(batch, out, out, o), bf16(o, kernel, kernel, c)]
    const numbers = { ...windowsOf(kernel, stride), tile: 0, tf32: false }
    const calls: Record<Direction, NativeCall> = {
      forward: { op: 'conv2d', tensors: { y, x, weight: w }, numbers: { ...numbers, relu: false } },
      'backward input': { op: 'conv2dBackwardInput', tensors: { dx: x, dy: y, weight: w }, numbers },
      'backward weight': {
        op: 'conv2dBackwardWeight',
        tensors: { dweight: { shape: w.shape, dtype: 'f32' }, dy: y, x },
        numbers: { ...numbers, relu: false, splits: 0 },
      },
    }
    return directions.flatMap((direction) => {
      const [product, bytes, wholeSlices] = products[direction]
      // The images need no gradient.
      return c === 3 && direction === 'backward input'
        ? []
        : [{ name: `${name} ${direction}`, call: calls[direction], product, bytes, wholeSlices }]
    })
  })
}

export const conv2dCases = { conv2d: convolutions } satisfies FamilyCases
