/** The kernels of maps in E4M3 (src/ops/e4m3.ts), against f32 on the CPU of the numbers that they hold. */
import { batchNorm } from '../ops/batchNorm.js'
import { conv2d } from '../ops/conv2d.js'
import { conv2dE4m3 } from '../ops/e4m3.js'
import { widestTile } from '../ops/kernels.js'
import type { Conv2dOptions } from '../ops/windows.js'
import { withCompute } from '../tensor/compute.js'
import { scope, Tensor, withDevice } from '../tensor/tensor.js'
import { deviceTraits } from '../tensor/traits.js'
import { compareAll, type Finding, noise, resultOf } from './compare.js'

/**
 * `weight` [O, ..] as conv2dE4m3 takes it, as numbers in f32 on the CPU: rounded to E4M3 where a power of two has brought the
 * largest of each output to 448 or less, and scaled back.
 */
export function roundedWeights(weight: Tensor): Tensor {
  const [numbers, depth] = [weight.data() as Float32Array, weight.size / weight.shape[0]!]
  const scales = Array.from({ length: weight.shape[0]! }, (_, o) => {
    const most = numbers.subarray(o * depth, (o + 1) * depth).reduce((largest, value) => Math.max(largest, Math.abs(value)), 0)
    return 2 ** Math.floor(Math.log2(448 / most))
  })
  const scaleOf = (i: number): number => scales[Math.floor(i / depth)]!
  const eighths = Tensor.from(
    numbers.map((value, i) => value * scaleOf(i)),
    weight.shape,
    'e4m3',
    'cpu',
  )
  return Tensor.from(
    (eighths.data() as Float32Array).map((value, i) => value / scaleOf(i)),
    weight.shape,
    'f32',
    'cpu',
  )
}

/** Both ways through a join whose result is in E4M3 and the convolution that reads it. */
function checkShape(device: string, n: number, c: number, o: number, kernel: number, options: Omit<Conv2dOptions, 'groups'>): Finding {
  return scope(() => {
    const made = (shape: number[], dtype: 'e4m3' | 'bf16', seed: number): Tensor =>
      Tensor.from(
        noise(
          shape.reduce((a, b) => a * b),
          seed,
        ),
        shape,
        dtype,
        device,
      )
    const shape = [n, 9, 11, c]
    const [x, residual, weight] = [made(shape, 'bf16', 1), made(shape, 'e4m3', 2), made([o, kernel, kernel, c], 'bf16', 3)]
    const onCpu = (tensor: Tensor): Tensor => Tensor.from(tensor.data(), tensor.shape, 'f32', 'cpu')
    const join = (own: Tensor, other: Tensor): Tensor => {
      const vector = (value: number): Tensor => Tensor.full([c], value)
      const running = { train: true, relu: true, residual: other, maps: 'e4m3', convolved: true } as const
      return batchNorm(own, vector(1), vector(0), vector(0), vector(1), running)
    }
    const joined = withDevice(device, () => join(x, residual))
    const [y] = withDevice(device, () => conv2dE4m3(joined, weight, options, false))
    const expected = withDevice('cpu', () => [
      join(onCpu(x), onCpu(residual)),
      conv2d(onCpu(joined), roundedWeights(weight), undefined, options),
    ])
    return compareAll(
      `conv2dE4m3 of x [${shape}], weight [${weight.shape}], and the join before it`,
      'f32 on the CPU',
      [resultOf('join', joined), resultOf('y', y)],
      expected.map((tensor, i) => resultOf(['join', 'y'][i]!, tensor)),
      // The join is rounded to three bits of mantissa; tensor cores carry sums of E4M3 with fewer bits than f32 has.
      [0.1, 2 ** -6],
    )
  })
}

const images = (rows: number): number => Math.ceil(rows / 99)
/** Of tiles of 128 rows, two and a half for every multiprocessor. */
const rowsFor = (device: string): number => 128 * Math.ceil(2.5 * deviceTraits(device).multiprocessors)

/** Tiles of 128x256, more than the multiprocessors at a time take, with tails. */
export const checkWidestE4m3 = (device: string): Finding[] =>
  withCompute({ tile: widestTile }, () => [checkShape(device, images(rowsFor(device) / 2), 256, 264, 1, {})])

/** Tiles of both other widths, more than the multiprocessors at a time take, with tails on every side. */
export function checkE4m3(device: string): Finding[] {
  const rows = rowsFor(device)
  return [
    checkShape(device, images(rows / 2), 128, 136, 3, { padding: 1 }),
    checkShape(device, images(rows), 256, 64, 1, {}),
    checkShape(device, 2, 128, 72, 3, { stride: 2, padding: 2, dilation: 2 }),
  ]
}
