/** Timing on any device: events in its work after other work, buffers that rotate past its cache, medians, the floor. */
import { Random } from '../tensor/random.js'
import { stopIfInterrupted } from '../tensor/interruption.js'
import { native, runNative } from '../tensor/native.js'
import { accumulator, type FloatDType, scope, Tensor, withDevice } from '../tensor/tensor.js'
import { type DeviceKind, deviceTraits } from '../tensor/traits.js'
import { median, noiseOf } from './result.js'
import { type BenchCase, Setting } from './cases/benchCase.js'
import { pool } from './pool.js'
import { largest, smallest } from '../tensor/numbers.js'

interface Measured {
  milliseconds: number
  /** Fastest and slowest of the repeats. */
  spread: [number, number]
  /** noiseOf() the repeats. */
  noise: number
  bytes: number
  flops: number
  peakBytes: number
}

/** Least bytes of the rotating buffers of a case, where memory allows: more than twice any cache, and one buffer of a simulation. */
const rotationBytes: Record<DeviceKind, number> = { cpu: 128 * 2 ** 20, simt: 0, cuda: 256 * 2 ** 20 }

/** Milliseconds of a GPU's work in front of the first mark: what the host needs to launch an op passes meanwhile, and is not measured. */
const aheadMilliseconds = 0.3

/**
 * Device work of at least `aheadMilliseconds`, to be put in front of an op that is timed; it also takes the op's inputs out of the
 * caches. Nothing where an op is done when its call returns.
 */
function workAhead(device: string): () => void {
  if (!deviceTraits(device).asynchronous) return () => undefined
  const filled = Tensor.empty([2 ** 27])
  const fill = (): void => runNative('fill', { y: filled }, { value: 0 })
  fill()
  const start = native.recordEvent(device)
  for (let i = 0; i < 4; ++i) fill()
  const once = native.elapsed(device, start, native.recordEvent(device)) / 4
  const repeats = Math.ceil(aheadMilliseconds / once)
  return () => {
    for (let i = 0; i < repeats; ++i) fill()
  }
}

/** Repeats of `body` until both counts are reached; milliseconds of each. Where kernels are simulated one says enough: it is no clock. */
export function time(device: string, body: (repeat: number) => void, { least = 5, most = 50, budget = 300 } = {}): number[] {
  return scope(() => {
    const ahead = workAhead(device)
    const { simulated } = deviceTraits(device)
    const enough = simulated ? 1 : least
    for (let i = 0; i < Math.min(2, enough); ++i) body(i)
    native.synchronize(device)
    const times: number[] = []
    for (let spent = 0; times.length < enough || (!simulated && times.length < most && spent < budget); spent += times.at(-1)!) {
      ahead()
      const start = native.recordEvent(device)
      body(times.length)
      times.push(native.elapsed(device, start, native.recordEvent(device)))
    }
    return times
  })
}

/** What a case takes. */
export function measure(benchCase: BenchCase, device: string, dtype: FloatDType, batch: number): Measured {
  stopIfInterrupted()
  return withDevice(device, () =>
    scope(() => {
      for (const kind of [dtype, accumulator(dtype) as FloatDType]) pool(kind)
      native.resetPeakMemory(device)
      const before = native.memory(device).live
      const first = new Setting(new Random(1), dtype, batch)
      const runs = [benchCase.prepare(first)]
      const wanted = rotationBytes[deviceTraits(device).kind]
      runs[0]!()
      const peakBytes = native.memory(device).peak - before
      while (runs.length < 8 && runs.length * first.bytes < wanted)
        runs.push(benchCase.prepare(new Setting(new Random(1 + runs.length), dtype, batch)))
      const times = time(device, (i) => runs[i % runs.length]!())
      return {
        milliseconds: median(times),
        spread: [smallest(times), largest(times)],
        noise: noiseOf(times),
        bytes: first.bytes,
        flops: benchCase.flops(batch),
        peakBytes,
      }
    }),
  )
}

/** What the device reaches at best: bytes read and written by a large copy, operations of a large product. */
interface Ceilings {
  gigabytesPerSecond: number
  teraflops: number
  how: string
}

/** Measured before on large copies and library products of random data: our own product is no ceiling of a GPU. */
const known: readonly { pattern: RegExp; bf16: number; gigabytesPerSecond: number }[] = [
  { pattern: /H200/, bf16: 790, gigabytesPerSecond: 4300 },
  { pattern: /H100/, bf16: 790, gigabytesPerSecond: 3000 },
]

/** Images and channels of the product that the ceiling of operations is measured with, and elements of the copy. */
const ceilingSizes: Record<DeviceKind, readonly [images: number, channels: number, copied: number]> = {
  cpu: [8, 256, 2 ** 25],
  simt: [1, 16, 2 ** 14],
  cuda: [256, 1024, 2 ** 29],
}

export function ceilingsOf(device: string, dtype: FloatDType): Ceilings {
  const { kind, model } = deviceTraits(device)
  const entry = known.find(({ pattern }) => pattern.test(model))
  if (entry !== undefined && dtype === 'bf16')
    return { gigabytesPerSecond: entry.gigabytesPerSecond, teraflops: entry.bf16, how: 'measured earlier on this kind of GPU' }
  return withDevice(device, () =>
    scope(() => {
      // A 3x3 convolution of many channels is a product whose operands are read from caches nine times.
      const [images, channels, copied] = ceilingSizes[kind]
      const setting = new Setting(new Random(1), dtype, 1)
      const map = [images, 14, 14, channels]
      const product = { y: setting.output(map), x: setting.values(map), weight: setting.values([channels, 3, 3, channels]) }
      const windows = { strideH: 1, strideW: 1, paddingH: 1, paddingW: 1, dilationH: 1, dilationW: 1 }
      const numbers = { ...windows, tile: 0, tf32: false, relu: false }
      const copy = { y: setting.output([copied]), x: setting.output([copied]) }
      const fastest = (run: () => void): number => smallest(time(device, run, { least: 10 }))
      const width = dtype === 'bf16' ? 2 : 4
      return {
        gigabytesPerSecond: (2 * copied * width) / fastest(() => runNative('scale', copy, { number: 1 })) / 1e6,
        teraflops: (2 * images * 196 * channels * channels * 9) / fastest(() => runNative('conv2d', product, numbers)) / 1e9,
        how: 'the fastest of a large copy and of a 3x3 convolution, measured now',
      }
    }),
  )
}

export const floorMilliseconds = ({ bytes, flops }: Measured, { gigabytesPerSecond, teraflops }: Ceilings): number =>
  Math.max(bytes / gigabytesPerSecond / 1e6, flops / teraflops / 1e9)
