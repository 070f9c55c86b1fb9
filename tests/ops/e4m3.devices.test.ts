/**
 * Maps in E4M3 on Hopper's kernels, against the same values in f32 on the CPU: its numbers are numbers of f32, so that products differ by
 * the order of their sums, and by the rounding of the result.
 */
import fc from 'fast-check'
import * as assert from 'uvu/assert'

import { noGrad, Tape } from '../../src/autograd/tape.js'
import { evaluation, type NormMode } from '../../src/nn/layers.js'
import { ResNet } from '../../src/nn/resnet.js'
import { batchNorm } from '../../src/ops/batchNorm.js'
import { conv2d, conv2dForNorm } from '../../src/ops/conv2d.js'
import { multipliesE4m3 } from '../../src/ops/e4m3.js'
import { deferNorm } from '../../src/ops/fusion.js'
import { roundedWeights } from '../../src/selftest/e4m3.js'
import { withCompute } from '../../src/tensor/compute.js'
import { observe } from '../../src/tensor/native.js'
import { Random } from '../../src/tensor/random.js'
import { type DType, scope, Tensor, withDevice } from '../../src/tensor/tensor.js'
import { deviceTraits } from '../../src/tensor/traits.js'
import { simulated, withCapability } from '../support/capability.js'
import { device } from '../support/devices.js'
import { relativeDistance } from '../support/gradients.js'
import { suite, testWhere, throwsError } from '../support/suite.js'

const test = suite(`maps in E4M3 on ${device}`, device)
const available = simulated || deviceTraits(device).capability === 90
const reason = 'no GPU of compute capability 9.0'
const runs = Math.ceil(Number(process.env.DENSECL_TEST_RUNS ?? 25) / 2)

const onHopper = <R>(body: () => R): R => scope(() => withDevice(device, () => withCapability(90, body)))
const values = (random: Random, count: number): Float32Array => Float32Array.from({ length: count }, () => random.normal())
const draw = (random: Random, shape: number[], dtype: DType): Tensor =>
  Tensor.from(
    values(
      random,
      shape.reduce((a, b) => a * b, 1),
    ),
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

testWhere(
  available,
  reason,
  test,
  'convolutions are those of the rounded operands in f32, and so are the statistics of their result',
  () => {
    fc.assert(
      fc.property(convolution, ({ n, h, w, c, o, kernel, stride, padding, dilation, seed }) =>
        onHopper(() => {
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
      { numRuns: runs },
    )
  },
)

/** Mean and variance that a batch norm of x, of one group, takes from statistics, or by a pass over it. */
function means(x: Tensor, statistics: Tensor | undefined): Float32Array[] {
  const vector = (value: number): Tensor => Tensor.full([x.shape[3]!], value)
  if (x.size === x.shape[3]) return []
  const [mean, variance] = [vector(0), vector(0)]
  batchNorm(x, vector(1), vector(0), mean, variance, { train: true, momentum: 1, statistics })
  return [mean, variance].map((tensor) => tensor.data() as Float32Array)
}

const join = fc.record({
  groups: fc.constantFrom(1, 2),
  side: fc.integer({ min: 1, max: 7 }),
  residual: fc.constantFrom('none', 'bf16', 'e4m3', 'norm'),
  last: fc.boolean(),
  seed: fc.nat(),
})

testWhere(available, reason, test, 'norms, and joins of each kind, are the rounding of those in f32', () => {
  fc.assert(
    fc.property(join, ({ groups, side, residual: kind, last, seed }) =>
      onHopper(() => {
        const random = new Random(seed)
        const shape = [2 * groups, side, side, 128]
        const x = draw(random, shape, 'bf16')
        const vector = (): Tensor => draw(random, [128], 'f32')
        const [weight, bias] = [vector(), vector()]
        const [scale, shift] = [draw(random, [groups, 128], 'f32'), draw(random, [groups, 128], 'f32')]
        const other = kind === 'none' ? undefined : draw(random, shape, kind === 'e4m3' ? 'e4m3' : 'bf16')
        const residual = kind === 'norm' ? deferNorm({ x: other!, scale, shift, relu: false }) : other
        const norm = (of: Tensor, added: Tensor | undefined, options: object): Tensor => {
          const running = (): Tensor => Tensor.zeros([128])
          return batchNorm(of, ...([weight, bias].map((each) => each.to('f32', of.device)) as [Tensor, Tensor]), running(), running(), {
            train: true,
            groups,
            relu: true,
            residual: added,
            ...options,
          })
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
    { numRuns: runs },
  )
})

/** The maps of a network of two stages, and the ops that made them. */
function stages(mode: NormMode, recorded = false): { maps: { dtype: DType; values: Float32Array }[]; ops: string[] } {
  return scope(() =>
    withDevice(device, () => {
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

testWhere(
  available,
  reason,
  test,
  "a network keeps in E4M3 what its convolutions of 128 channels read, and its last map is near bf16's",
  () => {
    const mode = { train: true, groups: 2 } as const
    const [plain, eighth] = ([mode, { ...mode, maps: 'e4m3' }] as const).map((each) => withCapability(90, () => stages(each)))
    assert.equal(
      eighth!.maps.map(({ dtype }) => dtype),
      ['bf16', 'bf16', 'e4m3', 'bf16'],
    )
    assert.equal(new Set(plain!.maps.map(({ dtype }) => dtype)), new Set(['bf16']))
    // Of the stage of 128 channels three convolutions read such, of that of 256 all, the shortcut's among them.
    assert.is(eighth!.ops.filter((name) => name === 'conv2dE4m3').length, 3 + 5)
    const distance = relativeDistance(eighth!.maps.at(-1)!.values, plain!.maps.at(-1)!.values)
    assert.ok(distance > 1e-3 && distance < 0.15, `the last map differs by ${distance}`)
  },
)

testWhere(
  available,
  reason,
  test,
  'maps stay as they are where gradients are wanted, where a norm takes running statistics, and without the kernels',
  () => {
    const mode = { train: true, groups: 2 } as const
    const eighth = { ...mode, maps: 'e4m3' } as const
    withCapability(90, () => {
      assert.equal(stages(eighth, true), stages(mode, true))
      assert.equal(stages({ ...evaluation, ...{ maps: 'e4m3' } }), stages(evaluation))
    })
    if (simulated) assert.equal(stages(eighth), stages(mode))
  },
)

testWhere(available, reason, test, 'a map in E4M3 has no gradient, and its convolution takes whole slices of channels', () => {
  onHopper(() => {
    assert.ok(multipliesE4m3(device))
    const random = new Random(1)
    const [x, vector] = [draw(random, [2, 3, 3, 128], 'bf16'), (): Tensor => draw(random, [128], 'f32')]
    const weight = vector()
    const residual = draw(random, [2, 3, 3, 128], 'e4m3')
    const norm = (): Tensor => batchNorm(x, weight, vector(), vector(), vector(), { train: true, residual })
    throwsError(() => new Tape().watch([weight]).record(norm), 'DTYPE', /^batchNorm: expected .*residual/, /e4m3/)
    const convolve = (c: number): unknown => conv2dForNorm(draw(random, [1, 3, 3, c], 'e4m3'), draw(random, [8, 1, 1, c], 'bf16'), {}, 1)
    throwsError(() => convolve(64), 'DEVICE', /^conv2dE4m3: expected .* channels by the 128 .* e4m3\[1,3,3,64\]/)
    withCompute({ fusion: 'pointwise' }, () =>
      assert.is(conv2dForNorm(residual, draw(random, [8, 1, 1, 128], 'bf16'), {}, 1).statistics, undefined),
    )
  })
})

test.run()
