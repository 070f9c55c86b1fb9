/** Maps in E4M3 on Hopper's kernels. */
import * as assert from 'uvu/assert'

import { conv2dForNorm } from '../../src/ops/conv2d.js'
import { withCompute } from '../../src/tensor/compute.js'
import { Random } from '../../src/tensor/random.js'
import { scope, withDevice } from '../../src/tensor/tensor.js'
import { deviceTraits } from '../../src/tensor/traits.js'
import { simulated, withCapability } from '../support/capability.js'
import { device } from '../support/devices.js'
import { suite, testWhere, throwsError } from '../support/suite.js'
import { checkConvolutions, checkJoins, checkNetwork, draw, stages } from './e4m3.js'

const test = suite(`maps in E4M3 on ${device}`, device)
const onHopper = (name: string, body: () => void): void =>
  testWhere(simulated || deviceTraits(device).capability === 90, 'no GPU of compute capability 9.0', test, name, () =>
    withCapability(90, body),
  )

onHopper('convolutions are those of the rounded operands in f32, and so are the statistics of their result', () =>
  checkConvolutions(device),
)
onHopper('tiles of 128x256 give the bits of those of 128x128', () =>
  scope(() =>
    withDevice(device, () => {
      for (const [n, side, c, o, kernel, stride] of [
        [2, 9, 128, 264, 3, 1],
        [1, 12, 256, 520, 1, 1],
        [3, 7, 384, 200, 3, 2],
      ] as const) {
        const random = new Random(o)
        const [x, weight] = [draw(random, [n, side, side, c], 'e4m3'), draw(random, [o, kernel, kernel, c], 'bf16')]
        const [usual, widest] = [4, 6].map((tile) => {
          const { y, statistics } = withCompute({ tile }, () => conv2dForNorm(x, weight, { stride, padding: kernel >> 1 }, 1))
          return [y.data(), statistics!.data()]
        })
        assert.equal(widest, usual)
      }
    }),
  ),
)
onHopper('norms, and joins of each kind, are the rounding of those in f32', () => checkJoins(device, ['none', 'bf16', 'e4m3', 'norm']))
onHopper("a network keeps in E4M3 what its convolutions of 128 channels read, and its last map is near bf16's", () => checkNetwork(device))

onHopper('a convolution takes whole slices of channels, and gives no statistics where nothing is fused', () =>
  scope(() =>
    withDevice(device, () => {
      const random = new Random(1)
      const convolve = (c: number) => conv2dForNorm(draw(random, [1, 3, 3, c], 'e4m3'), draw(random, [8, 1, 1, c], 'bf16'), {}, 1)
      throwsError(() => convolve(64), 'DEVICE', /^conv2dE4m3: expected .* channels by the 128, .* e4m3\[1,3,3,64\]/)
      withCompute({ fusion: 'pointwise' }, () => assert.is(convolve(128).statistics, undefined))
    }),
  ),
)

if (simulated)
  test("without Hopper's kernels maps stay in bf16", () => {
    const mode = { train: true, groups: 2 } as const
    assert.equal(stages(device, { ...mode, maps: 'e4m3' }), stages(device, mode))
  })

test.run()
