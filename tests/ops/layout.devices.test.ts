/** What the cases of `layout` do not reach on a device: every dtype, words of every width, and indices that are wrong. */
import fc from 'fast-check'
import * as assert from 'uvu/assert'

import { concat } from '../../src/ops/concat.js'
import { gather, oneHot } from '../../src/ops/gather.js'
import { pad } from '../../src/ops/pad.js'
import { permute } from '../../src/ops/permute.js'
import { slice } from '../../src/ops/slice.js'
import { upsample2d } from '../../src/ops/upsample2d.js'
import { type DType, scope, Tensor, withDevice } from '../../src/tensor/tensor.js'
import { device } from '../support/devices.js'
import { suite, throwsError } from '../support/suite.js'

const test = suite(`layout on ${device}`, device)
const runs = Number(process.env.DENSECL_TEST_RUNS ?? 25)
const size = (least: number): fc.Arbitrary<number> => fc.oneof(fc.integer({ min: least, max: 9 }), fc.constantFrom(8, 16, 36))

test('every dtype is moved as on the CPU, whatever the width of its runs', () => {
  const cases = fc.record({
    shape: fc.tuple(size(1), size(2), size(2)),
    axis: fc.nat(2),
    dtype: fc.constantFrom<DType>('f32', 'i32', 'u8', 'bf16'),
  })
  fc.assert(
    fc.property(cases, ({ shape, axis, dtype }) => {
      scope(() => {
        const x = Tensor.from(
          Array.from({ length: shape[0] * shape[1] * shape[2] }, (_, i) => i % 128),
          shape,
          dtype,
        )
        const moved = (on: string): number[][] =>
          withDevice(on, () => {
            const here = on === 'cpu' ? x : x.to(dtype, on)
            const order = [0, 1, 2].map((i) => (i + axis) % 3)
            const index = Tensor.from([1, -1, 1], [3], 'i32')
            return [
              permute(here, order),
              permute(here, [0, 2, 1]),
              slice(here, [undefined, [1], [undefined, undefined, -1]]),
              concat([here, here], axis),
              pad(
                here,
                [0, 1, 2].map((i) => (i === axis ? [1, 2] : [0, 0])),
                3,
              ),
              gather(here, index, { axis: 1 }),
              upsample2d(here.alias([1, ...shape]), [2, 1]),
            ].map((tensor) => [...tensor.data()])
          })
        assert.equal(moved(device), moved('cpu'))
      })
    }),
    { numRuns: runs },
  )
})

test('oneHot in f32 and bf16 is that of the CPU', () => {
  scope(() => {
    const index = Tensor.from([0, 3, 3, 1], [2, 2], 'i32')
    const expected = oneHot(index, 5).data()
    for (const dtype of ['f32', 'bf16'] as const) assert.equal([...oneHot(index.to('i32', device), 5, dtype).data()], [...expected])
  })
})

test('an index outside of its axis is thrown at the next read, forward and in oneHot', () => {
  scope(() =>
    withDevice(device, () => {
      const index = Tensor.from([0, 7], [2], 'i32')
      throwsError(() => gather(Tensor.zeros([4, 3]), index).data(), 'RANGE', /index 7/, /4 rows/)
      throwsError(() => gather(Tensor.zeros([4, 3]), Tensor.from([-2], [1], 'i32')).data(), 'RANGE', /index -2/, /4 rows/)
      throwsError(() => oneHot(index, 7).data(), 'RANGE', /index 7/, /7 rows/)
    }),
  )
})

test.run()
