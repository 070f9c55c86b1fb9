/** The launches that native/cuda makes of the products of a convolution. */
import { sliceChannels, unfoldsIntoSlices } from '../../ops/kernels.js'
import type { ConvolutionNumbers, Product } from '../../ops/tuning.js'
import type { Around } from '../model.js'
import { bytesAt, type Call, type CallTensor, operandsOf } from './calls.js'
import type { Cost, Machine } from './machine.js'

interface Convolution {
  n: number
  h: number
  w: number
  c: number
  oh: number
  ow: number
  o: number
  kh: number
  kw: number
  stride: readonly [number, number]
  padding: readonly [number, number]
  dilation: readonly [number, number]
  pixels: number
}

function convolutionOf(x: CallTensor, weight: CallTensor, y: CallTensor, { numbers }: Call): Convolution {
  const [n, h, w, c] = x.shape as [number, number, number, number]
  const [o, kh, kw] = weight.shape as [number, number, number]
  const [oh, ow] = [y.shape[1]!, y.shape[2]!]
  const { strideH, strideW, paddingH, paddingW, dilationH, dilationW } = numbers as ConvolutionNumbers
  const [stride, padding, dilation] = [[strideH, strideW] as const, [paddingH, paddingW] as const, [dilationH, dilationW] as const]
  return { n, h, w, c, oh, ow, o, kh, kw, stride, padding, dilation, pixels: n * oh * ow }
}

const nameOf = ({ h, w, c, o, kh, kw, stride }: Convolution): string =>
  `${kh}x${kw}${stride[0] * stride[1] > 1 ? `/${stride[0]}` : ''} ${c}->${o} @${h}x${w}`
/** Whether channels are whole vectors of bf16. */
export const vectors = (channels: number): boolean => channels % 8 === 0
/** The share of an operand that a strided kernel reads: every pixel, or those under its taps. */
const touched = ({ kh, kw, stride }: Convolution): number => Math.min(1, (kh * kw) / (stride[0] * stride[1]))

/** Few channels, unfolded (Unfolding of conv2d.cuh): bytes of the images, rows of taps and their channels; undefined where they are not. */
function unfolding(machine: Machine, g: Convolution): { bytes: number; kh: number; channels: number; slices: boolean } | undefined {
  const { n, h, oh, ow, c, kh, kw, stride, dilation } = g
  if (machine.constants.unfolds === 0 || vectors(c) || kw * c > 64) return undefined
  const slices = machine.architecture.name === 'sm_90' && unfoldsIntoSlices(c, kw, stride[0], dilation[0])
  const rows = slices ? stride[0] : 1
  const channels = slices ? sliceChannels : Math.ceil((kw * c) / 8) * 8
  const taps = Math.ceil(kh / rows)
  return { bytes: n * (rows > 1 ? oh + taps - 1 : h) * ow * channels * 2, kh: taps, channels, slices }
}

/** What a product that takes deferred operands does on their way in. */
const prologueOf = (taken: boolean, { kh, kw }: Convolution): Around['prologue'] => (taken ? (kh * kw === 1 ? 'one tap' : 'taps') : 'none')

/**
 * The deferred operands that a product takes (src/ops/conv2d.ts), the others of which passes write: all by the kernels of Ampere, by
 * those of Hopper the norm of x where it has one tap.
 */
function prologuesOf({ architecture }: Machine, whole: boolean, { kh, kw }: Convolution): { norm: boolean; gradient: boolean } {
  const hopper = architecture.name === 'sm_90' && whole
  return { norm: !hopper || kh * kw === 1, gradient: !hopper }
}

export function forward(machine: Machine, call: Call): Cost[] {
  const { y, x, weight } = operandsOf(call) as Record<'y' | 'x' | 'weight', CallTensor>
  const g = convolutionOf(x, weight, y, call)
  const product: Product = { direction: 'forward', rows: g.pixels, columns: g.o, depth: g.kh * g.kw * g.c }
  const costs: Cost[] = []
  let bytes = bytesAt(call, 'y', 'weight', 'bias', 'statistics') + touched(g) * x.bytes
  const wide = unfolding(machine, g)
  const depth = wide === undefined ? product.depth : wide.kh * wide.channels
  if (wide !== undefined) {
    costs.push(machine.passes('unfold', nameOf(g), x.bytes + wide.bytes))
    bytes += wide.bytes - touched(g) * x.bytes
  }
  const whole = g.c % sliceChannels === 0 || wide?.slices === true
  const deferred = call.tensors.scale !== undefined
  const { norm } = prologuesOf(machine, whole, g)
  if (deferred && !norm) costs.push(machine.passes('normApply', nameOf(g), 2 * x.bytes))
  const around = {
    epilogue: call.tensors.statistics === undefined ? ('store' as const) : ('statistics' as const),
    gathered: wide === undefined && !vectors(g.c),
    prologue: prologueOf(deferred && norm, g),
  }
  costs.push(machine.product('conv2d', nameOf(g), { ...product, depth }, { ...around, tile: machine.tile(product), whole }, bytes))
  return costs
}

/** Weights rounded to E4M3, then a product of two values where one of bf16 was: as many slices as half the channels have. */
export function forwardE4m3(machine: Machine, call: Call): Cost[] {
  const { y, x, weight } = operandsOf(call) as Record<'y' | 'x' | 'weight', CallTensor>
  const g = convolutionOf(x, weight, y, call)
  const product: Product = { direction: 'forward', rows: g.pixels, columns: g.o, depth: (g.kh * g.kw * g.c) / 2 }
  const bytes = bytesAt(call, 'y', 'statistics') + weight.bytes / 2 + touched(g) * x.bytes
  const around = { epilogue: call.tensors.statistics === undefined ? 'store' : 'statistics', gathered: false, prologue: 'none' } as const
  return [
    machine.passes('conv2dE4m3: weights', nameOf(g), 1.5 * weight.bytes),
    machine.product('conv2dE4m3', nameOf(g), product, { ...around, tile: 0, whole: true }, bytes),
  ]
}

/** The taps of one axis that meet input positions a, a + stride, ... */
function tapsOf(a: number, stride: number, padding: number, dilation: number, kernel: number): number {
  let taps = 0
  for (let k = 0; k < kernel; ++k) if ((a + padding - k * dilation) % stride === 0) ++taps
  return taps
}

export function backwardInput(machine: Machine, call: Call): Cost[] {
  const { dx, dy, weight } = operandsOf(call) as Record<'dx' | 'dy' | 'weight', CallTensor>
  const g = convolutionOf(dx, weight, dy, call)
  const whole: Product = {
    direction: 'backward input',
    rows: g.n * g.h * g.w,
    columns: g.c,
    depth: (g.kh * g.kw * g.o) / (g.stride[0] * g.stride[1]),
  }
  const finishes = call.tensors.add !== undefined || call.tensors.x !== undefined
  const slices = g.o % sliceChannels === 0 && vectors(g.c)
  const deferred = call.tensors.gradientX !== undefined && prologuesOf(machine, slices, g).gradient
  const around: Around = {
    epilogue: finishes ? 'finish' : 'store',
    gathered: !vectors(g.o) || !vectors(g.c),
    prologue: prologueOf(deferred, g),
  }
  const costs: Cost[] = []
  // Each residue class of the input pixels: its share of what is written and of what the epilogue reads.
  const own = bytesAt(call, 'dx', 'add', 'x', 'y', 'sums')
  for (let a = 0; a < Math.min(g.stride[0], g.h); ++a)
    for (let b = 0; b < Math.min(g.stride[1], g.w); ++b) {
      const taps = tapsOf(a, g.stride[0], g.padding[0], g.dilation[0], g.kh) * tapsOf(b, g.stride[1], g.padding[1], g.dilation[1], g.kw)
      const rows = g.n * Math.ceil((g.h - a) / g.stride[0]) * Math.ceil((g.w - b) / g.stride[1])
      const bytes =
        (own * rows) / whole.rows +
        (taps > 0 ? dy.bytes + (deferred ? bytesAt(call, 'gradientX') : 0) + (weight.bytes * taps) / (g.kh * g.kw) : 0)
      costs.push(
        machine.product(
          'conv2dBackwardInput',
          nameOf(g),
          { ...whole, rows, depth: taps * g.o },
          { ...around, tile: machine.tile(whole), whole: slices },
          bytes,
        ),
      )
    }
  return costs
}

export function backwardWeight(machine: Machine, call: Call): Cost[] {
  const { dweight, dy, x } = operandsOf(call) as Record<'dweight' | 'dy' | 'x', CallTensor>
  const g = convolutionOf(x, dweight, dy, call)
  const product: Product = { direction: 'backward weight', rows: g.o, columns: g.kh * g.kw * g.c, depth: g.pixels }
  const costs: Cost[] = []
  const wide = unfolding(machine, g)
  const slices = (g.c % sliceChannels === 0 || wide?.slices === true) && vectors(g.o)
  const takes = prologuesOf(machine, slices, g)
  const [norm, gradient] = [call.tensors.scale !== undefined, call.tensors.gradientX !== undefined]
  // A norm that it does not take was written for the forward product.
  if (gradient && !takes.gradient) costs.push(machine.passes('normGradient', nameOf(g), 3 * dy.bytes))
  let bytes = dweight.bytes + dy.bytes + touched(g) * x.bytes + (gradient && takes.gradient ? bytesAt(call, 'gradientX') : 0)
  if (wide !== undefined) {
    costs.push(machine.passes('unfold', nameOf(g), x.bytes + wide.bytes))
    bytes += wide.bytes - touched(g) * x.bytes
  }
  const around: Around = {
    epilogue: 'store',
    gathered: !vectors(g.o) || (wide === undefined && !vectors(g.c)),
    prologue: prologueOf((norm && takes.norm) || (gradient && takes.gradient), g),
  }
  costs.push(
    machine.product(
      'conv2dBackwardWeight',
      nameOf(g),
      { ...product, columns: wide === undefined ? product.columns : wide.kh * wide.channels },
      { ...around, tile: machine.tile(product), whole: slices },
      bytes,
    ),
  )
  return costs
}
