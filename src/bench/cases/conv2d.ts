import type { NativeCall } from '../../ops/timing.js'
import { type Direction, directions, type Product } from '../../ops/tuning.js'
import { currentCompute } from '../../tensor/compute.js'
import { runPositional } from '../../tensor/native.js'
import { accumulator, type DType, type Shape } from '../../tensor/tensor.js'
import { resnet50Layers } from '../layers.js'
import type { BenchCase, FamilyCases } from './benchCase.js'

const convolutions = resnet50Layers.flatMap(({ name, size, c, o, kernel, stride }): BenchCase[] => {
  const out = size / stride
  const numbers = [stride, stride, (kernel - 1) / 2, (kernel - 1) / 2, 1, 1]
  const flops = (n: number): number => 2 * n * out * out * o * c * kernel * kernel
  const peerNumbers = (n: number): number[] => [n, size, c, o, kernel, stride]
  const x: (n: number) => Shape = (n) => [n, size, size, c]
  const y: (n: number) => Shape = (n) => [n, out, out, o]
  const w = [o, kernel, kernel, c]
  const forward: BenchCase = {
    name: `${name} forward`,
    flops,
    prepare(s) {
      const tensors = [s.output(y(s.batch)), s.values(x(s.batch)), s.values(w)]
      return () => runPositional('conv2d', tensors, [...numbers, currentCompute().tile])
    },
    peer: { op: 'conv2d', numbers: peerNumbers },
  }
  const input: BenchCase = {
    name: `${name} backward input`,
    flops,
    prepare(s) {
      const tensors = [s.output(x(s.batch)), s.values(y(s.batch)), s.values(w)]
      return () => runPositional('conv2dBackwardInput', tensors, [...numbers, currentCompute().tile])
    },
    peer: { op: 'conv2dBackwardInput', numbers: peerNumbers },
  }
  const weight: BenchCase = {
    name: `${name} backward weight`,
    flops,
    prepare(s) {
      const tensors = [s.output(w, accumulator(s.dtype)), s.values(y(s.batch)), s.values(x(s.batch))]
      return () => runPositional('conv2dBackwardWeight', tensors, [...numbers, currentCompute().tile])
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
    const products: Record<Direction, [Product, number, boolean]> = {
      forward: [{ direction: 'forward', rows: pixels, columns: o, depth: taps * c }, input + output + 2 * weights, c % 64 === 0],
      'backward input': [
        { direction: 'backward input', rows: batch * size * size, columns: c, depth: (taps * o) / (stride * stride) },
        input + output + 2 * weights,
        o % 64 === 0,
      ],
      'backward weight': [
        { direction: 'backward weight', rows: o, columns: taps * c, depth: pixels },
        input + output + 4 * weights,
        c % 64 === 0,
      ],
    }
    const bf16 = (...shape: number[]): { shape: Shape; dtype: DType } => ({ shape, dtype: 'bf16' })
    const [x, y, w] = [bf16(batch, size, size, c), bf16(batch, out, out, o), bf16(o, kernel, kernel, c)]
    const numbers = [stride, stride, (kernel - 1) / 2, (kernel - 1) / 2, 1, 1, 0, 0]
    const calls: Record<Direction, NativeCall> = {
      forward: { op: 'conv2d', tensors: [y, x, w], numbers },
      'backward input': { op: 'conv2dBackwardInput', tensors: [x, y, w], numbers },
      'backward weight': { op: 'conv2dBackwardWeight', tensors: [{ shape: w.shape, dtype: 'f32' }, y, x], numbers },
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
