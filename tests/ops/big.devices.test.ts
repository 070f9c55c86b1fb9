/**
 * Hopper's kernels against those of Ampere at sizes that fill the machine: more tiles than multiprocessors, so that a block takes a second
 * one while its ring goes on, and more slices and keys than a ring has places. Sizes come from the device's multiprocessors
 * (DENSECL_MULTIPROCESSORS bounds them), so a GPU and `simt` meet the same situations.
 */
import * as assert from 'uvu/assert'

import { Random } from '../../src/tensor/random.js'
import { runNative } from '../../src/tensor/native.js'
import { type DType, scope, type Shape, Tensor, withDevice } from '../../src/tensor/tensor.js'
import { deviceTraits } from '../../src/tensor/traits.js'
import { simulated, withCapability } from '../support/capability.js'
import { device, thorough } from '../support/devices.js'
import { relativeDistance } from '../support/gradients.js'
import { suite, testWhere } from '../support/suite.js'

const test = suite(`Hopper's kernels at full size on ${device}`, device)
const available = simulated || deviceTraits(device).capability === 90
const reason = 'no GPU of compute capability 9.0'
const { multiprocessors } = deviceTraits(device)

/** Random values, drawn once and repeated in rows of random order: drawing every one would take longer than the kernels. */
function random(pool: Tensor, seed: number, shape: Shape): Tensor {
  const [size, generator] = [shape.reduce((a, b) => a * b, 1), new Random(seed)]
  const out = Tensor.empty(shape, pool.dtype)
  const [rows, width] = [pool.shape[1]!, pool.shape[2]!]
  const order = Tensor.from(
    Int32Array.from({ length: Math.ceil(size / width) }, () => generator.below(rows)),
    [1, Math.ceil(size / width)],
    'i32',
  )
  runNative('gatherRows', { y: out.alias([1, size / width, width]), x: pool, index: order })
  return out
}

function withPool<R>(body: (values: (seed: number, shape: Shape) => Tensor) => R): R {
  return withDevice(device, () =>
    scope(() => {
      const generator = new Random(1)
      const pool = Tensor.from(
        Float32Array.from({ length: 512 * 64 }, () => generator.normal()),
        [1, 512, 64],
        'bf16',
      )
      return body((seed, shape) => random(pool, seed, shape))
    }),
  )
}

interface Layer {
  name: string
  c: number
  o: number
  size: number
  kernel: number
  stride: number
}

/** Of `images` images each: over two tiles a block in every direction, rings of four stages that go around in or across tiles. */
const layers: Layer[] = [
  { name: '1x1, one slice a tile', c: 64, o: 128, size: 8, kernel: 1, stride: 1 },
  { name: '1x1, many slices', c: 512, o: 64, size: 8, kernel: 1, stride: 1 },
  { name: '3x3', c: 64, o: 64, size: 8, kernel: 3, stride: 1 },
  { name: '3x3, strided', c: 128, o: 128, size: 8, kernel: 3, stride: 2 },
  { name: '1x1, strided', c: 128, o: 72, size: 8, kernel: 1, stride: 2 },
]

// With shuffled threads and under the sanitizer the one with the most in it.
for (const { name, c, o, size, kernel, stride } of thorough ? layers : layers.filter(({ name }) => name === '3x3')) {
  testWhere(available, reason, test, `convolution ${name}: forward and both gradients, twice each`, () => {
    const out = Math.ceil(size / stride)
    const padding = (kernel - 1) / 2
    // Tiles of 128 pixels: at least two and a half for each multiprocessor, and a tail.
    const images = Math.ceil((2.5 * multiprocessors * 128) / (out * out)) + 1
    withPool((values) => {
      const [x, dy, w] = [values(1, [images, size, size, c]), values(2, [images, out, out, o]), values(3, [o, kernel, kernel, c])]
      const windows = { strideH: stride, strideW: stride, paddingH: padding, paddingW: padding, dilationH: 1, dilationW: 1, tf32: false }
      const calls: [string, Shape, DType, (result: Tensor, tile: number) => void, number][] = [
        [
          'conv2d',
          dy.shape,
          'bf16',
          (y, tile) => {
            runNative('conv2d', { y, x, weight: w }, { ...windows, tile, relu: false })
          },
          2e-3,
        ],
        [
          'conv2dBackwardInput',
          x.shape,
          'bf16',
          (dx, tile) => {
            runNative('conv2dBackwardInput', { dx, dy, weight: w }, { ...windows, tile })
          },
          2e-3,
        ],
        [
          'conv2dBackwardWeight',
          w.shape,
          'f32',
          (dweight, tile) => {
            runNative('conv2dBackwardWeight', { dweight, dy, x }, { ...windows, tile, relu: false, splits: 0 })
          },
          1e-4,
        ],
      ]
      for (const [op, shape, dtype, product, bound] of calls) {
        const run = (tile: number): Float32Array =>
          scope(() => {
            // What nobody wrote would be seen.
            const result = Tensor.full(shape, 7, dtype)
            return withCapability(tile > 3 ? 90 : 80, () => {
              product(result, tile)
              return result.data() as Float32Array
            })
          })
        const expected = run(2)
        // The widest has no input gradient of 72 channels.
        for (const tile of op === 'conv2dBackwardInput' && o % 64 !== 0 ? [4, 5] : [4, 5, 6]) {
          const [first, again] = [run(tile), run(tile)]
          assert.ok(relativeDistance(first, expected) < bound, `${op}, tile ${tile}: differs by ${relativeDistance(first, expected)}`)
          assert.equal(first, again, `${op}, tile ${tile}: two runs differ`)
        }
      }
    })
  })
}

testWhere(
  available,
  reason,
  test,
  'the contrastive loss: a ring of keys that goes around many times, against the kernel of exact FMAs',
  () => {
    // At most four shares of the queue a multiprocessor and block of 128 rows: nine tiles of 128 keys each, and a tail.
    const [rows, dim] = [130, 128]
    const keys = 9 * 128 * Math.ceil((4 * multiprocessors) / 2) + 40
    withPool((values) => {
      const unit = (seed: number, n: number): Tensor => {
        const [y, x] = [Tensor.empty([n, dim], 'bf16'), values(seed, [n, dim])]
        runNative('l2Normalize', { y, norm: Tensor.empty([n], 'f32'), x }, { eps: 1e-12 })
        return y
      }
      const [query, positive, queue] = [unit(1, rows), unit(2, rows), unit(3, keys)]
      const run = (dtype: DType, promised: boolean): Float32Array[] =>
        scope(() => {
          const as = (tensor: Tensor): Tensor => (dtype === 'bf16' ? tensor : tensor.to(dtype))
          const [loss, dquery, statistics] = [Tensor.full([], 7), Tensor.full([rows, dim], 7, dtype), Tensor.full([4], 7)]
          return withCapability(dtype === 'bf16' ? 90 : 80, () => {
            runNative(
              'infoNce',
              { loss, dquery, statistics, query: as(query), positive: as(positive), queue: as(queue) },
              { temperature: 0.2, unit: promised },
            )
            return [loss, dquery, statistics].map((tensor) => tensor.data() as Float32Array)
          })
        })
      const exact = run('f32', false)
      for (const promised of [false, true]) {
        const hopper = run('bf16', promised)
        for (const [i, bound] of [1e-4, 1e-2, 1e-2].entries())
          assert.ok(
            relativeDistance(hopper[i]!, exact[i]!) < bound,
            `${['loss', 'gradient', 'statistics'][i]} differs by ${relativeDistance(hopper[i]!, exact[i]!)}`,
          )
      }
    })
  },
)

test.run()
