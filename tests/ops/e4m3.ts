/** What maps in E4M3 are on any device that takes them: the same values in f32 on the CPU, rounded where they are written. */
import fc from 'fast-check'
import * as assert from 'uvu/assert'

import { noGrad, Tape } from '../../src/autograd/tape.js'
import type { NormMode } from '../../src/nn/layers.js'
import { ResNet } from '../../src/nn/resnet.js'
import { batchNorm } from '../../src/ops/batchNorm.js'
import { conv2d, conv2dForNorm } from '../../src/ops/conv2d.js'
import { deferNorm } from '../../src/ops/fusion.js'
import { roundedWeights } from '../../src/selftest/e4m3.js'
import { observe } from '../../src/tensor/native.js'
import { Random } from '../../src/tensor/random.js'
import { type DType, scope, Tensor, withDevice } from '../../src/tensor/tensor.js'
import { relativeDistance } from '../support/gradients.js'

const runs = Math.ceil(Number(process.env.DENSECL_TEST_RUNS ?? 25) / 2)

/** A tensor of normal numbers on the current device. */
export const draw = (random: Random, shape: number[], dtype: DType): Tensor =>
  Tensor.from(
    Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, () => random.normal()),
    shape,
    dtype,
  )
const onCpu = (tensor: Tensor): Tensor => Tensor.from(tensor.data(), tensor.shape, 'f32', 'cpu')

const convolution = fc
  .record({
    n: fc.integer({ min: 1, max: 3 }),
    h: fc.integer({ min: 1, max: 9 }),
    w: fc.integer({ min: 1, max: 9 }),
    c: fc.constantFrom(128, 256),
    o: fc.constantFrom(64, 128, 192, 72, 40),
    kernel: fc.constantFrom(1, 3),
    stride: fc.integer({ min: 1, max: 2 }),
    padding: fc.integer({ min: 0, max: 2 }),
    dilation: fc.integer({ min: 1, max: 2 }),
    seed: fc.nat(),
  })
  .filter(({ h, w, kernel, padding, dilation }) => Math.min(h, w) + 2 * padding >= dilation * (kernel - 1) + 1)

/** Convolutions are those of the rounded operands in f32, and so are the statistics of their result. */
export function checkConvolutions(where: string): void {
  fc.assert(
    fc.property(convolution, ({ n, h, w, c, o, kernel, stride, padding, dilation, seed }) =>
      scope(() =>
        withDevice(where, () => {
          const random = new Random(seed)
          const x = draw(random, [n, h, w, c], 'e4m3')
          const weight = draw(random, [o, kernel, kernel, c], 'bf16')
          const options = { stride, padding, dilation }
          // Wherever new tensors are made.
          const { y, statistics } = withDevice('cpu', () => conv2dForNorm(x, weight, options, 1))
          const expected = withDevice('cpu', () => conv2d(onCpu(x), roundedWeights(weight), undefined, options))
          // A bf16 is off by 2^-9 at most; tensor cores carry sums with fewer bits than f32 has.
          const distance = relativeDistance(y.data(), expected.data())
          assert.ok(distance < 2 ** -7, `y differs by ${distance}`)
          const [norm, pass] = [statistics, undefined].map((given) => means(y, given))
          norm!.forEach((each, i) => assert.ok(relativeDistance(each, pass![i]!) < 1e-4, 'statistics'))
        }),
      ),
    ),
    { numRuns: runs },
  )
}

/** Mean and variance that a batch norm of x, of one group, takes from statistics, or by a pass over it. */
function means(x: Tensor, statistics: Tensor | undefined): Float32Array[] {
  const vector = (value: number): Tensor => Tensor.full([x.shape[3]!], value)
  if (x.size === x.shape[3]) return []
  const [mean, variance] = [vector(0), vector(0)]
  batchNorm(x, vector(1), vector(0), mean, variance, { train: true, momentum: 1, statistics })
  return [mean, variance].map((tensor) => tensor.data() as Float32Array)
}

/** Norms, and joins of each kind, are the rounding of those in f32. */
export function checkJoins(where: string, kinds: readonly ('none' | 'bf16' | 'e4m3' | 'norm')[]): void {
  const join = fc.record({
    groups: fc.constantFrom(1, 2),
    side: fc.integer({ min: 1, max: 7 }),
    residual: fc.constantFrom(...kinds),
    last: fc.boolean(),
    seed: fc.nat(),
  })
  fc.assert(
    fc.property(join, ({ groups, side, residual: kind, last, seed }) =>
      scope(() =>
        withDevice(where, () => {
          const random = new Random(seed)
          const shape = [2 * groups, side, side, 128]
          const x = draw(random, shape, 'bf16')
          const [weight, bias] = [draw(random, [128], 'f32'), draw(random, [128], 'f32')]
          const [scale, shift] = [draw(random, [groups, 128], 'f32'), draw(random, [groups, 128], 'f32')]
          const other = kind === 'none' ? undefined : draw(random, shape, kind === 'e4m3' ? 'e4m3' : 'bf16')
          const residual = kind === 'norm' ? deferNorm({ x: other!, scale, shift, relu: false }) : other
          const norm = (of: Tensor, added: Tensor | undefined, options: object): Tensor => {
            const vectors = [weight, bias, weight, bias].map((each) => each.to('f32', of.device)) as [Tensor, Tensor, Tensor, Tensor]
            return batchNorm(of, ...vectors, { train: true, groups, relu: true, residual: added, ...options })
          }
          const y = norm(x, residual, { maps: 'e4m3', convolved: !last })
          assert.is(y.dtype, last ? 'bf16' : 'e4m3')
          const exact = withDevice('cpu', () => norm(onCpu(x), residual && onCpu(residual), {}))
          const expected = exact.to(y.dtype).data()
          // Where the last bits of f32 decide between two neighbours.
          const step = last ? 2 ** -7 : 2 ** -3
          let moved = 0
          y.data().forEach((value, i) => {
            if (value === expected[i]) return
            moved += 1
            assert.ok(Math.abs(value - expected[i]!) <= step * Math.max(2 ** -6, Math.abs(expected[i]!)), `${value} for ${expected[i]}`)
          })
          assert.ok(moved <= y.size / 100 + 2, `${moved} of ${y.size} values are not the nearest`)
        }),
      ),
    ),
    { numRuns: runs },
  )
}

/** The maps of a network of three stages, and the ops that made them; recorded for gradients or not. */
export function stages(where: string, mode: NormMode, recorded = false): { maps: { dtype: DType; values: Float32Array }[]; ops: string[] } {
  return scope(() =>
    withDevice(where, () => {
      const random = new Random(5)
      const network = new ResNet({ random, dtype: 'f32', compute: 'bf16' }, { depth: 18, baseChannels: 64, blocks: [1, 2, 2] })
      const x = draw(random, [4, 32, 32, 3], 'bf16')
      const ops: string[] = []
      observe.op = (name, run) => {
        ops.push(name)
        run()
      }
      try {
        const through = (): Tensor[] => network.stages(x, mode)
        const tape = new Tape().watch([...network.state().parameters.values()])
        const tensors = recorded ? tape.record(through) : noGrad(through)
        tape.dispose()
        return { maps: tensors.map((tensor) => ({ dtype: tensor.dtype, values: tensor.data() as Float32Array })), ops }
      } finally {
        delete observe.op
        network.dispose()
      }
    }),
  )
}

/** What convolutions of 128 channels read is kept in E4M3, and the last map, in bf16, is near that of bf16 throughout. */
export function checkNetwork(where: string): void {
  const mode = { train: true, groups: 2 } as const
  const [plain, eighth] = ([mode, { ...mode, maps: 'e4m3' }] as const).map((each) => stages(where, each))
  assert.equal(
    eighth!.maps.map(({ dtype }) => dtype),
    ['bf16', 'bf16', 'e4m3', 'bf16'],
  )
  assert.equal(new Set(plain!.maps.map(({ dtype }) => dtype)), new Set(['bf16']))
  // Of the stage of 128 channels three convolutions read such, of that of 256 all, the shortcut's among them.
  assert.is(eighth!.ops.filter((name) => name === 'conv2dE4m3').length, 3 + 5)
  const distance = relativeDistance(eighth!.maps.at(-1)!.values, plain!.maps.at(-1)!.values)
  assert.ok(distance > 1e-3 && distance < 0.15, `the last map differs by ${distance}`)
}
