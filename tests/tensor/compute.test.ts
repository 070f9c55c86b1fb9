/** Settings are values: they hold in their scope and nowhere else. */
import fc from 'fast-check'
import * as assert from 'uvu/assert'

import { Tape } from '../../src/autograd/tape.js'
import { linear } from '../../src/ops/linear.js'
import { type ComputeOptions, currentCompute, fusionLevels, precisions, withCompute } from '../../src/tensor/compute.js'
import { fail } from '../../src/tensor/errors.js'
import { native } from '../../src/tensor/native.js'
import { setThreads } from '../../src/tensor/runtime.js'
import { Tensor } from '../../src/tensor/tensor.js'
import { suite, throwsError } from '../support/suite.js'

const test = suite('compute settings')

const options: fc.Arbitrary<ComputeOptions> = fc.record(
  {
    precision: fc.constantFrom(...precisions, undefined),
    fusion: fc.constantFrom(...fusionLevels, undefined),
    tile: fc.constantFrom(0, 1, 2, 3, undefined),
    threads: fc.constantFrom(1, 2, 3, undefined),
  },
  { requiredKeys: [] },
)

/** What holds, the threads as the native side has them. */
const now = () => ({ ...currentCompute(), threads: native.threads() })
const overridden = (outer: ReturnType<typeof now>, inner: ComputeOptions) => ({
  ...outer,
  ...Object.fromEntries(Object.entries(inner).filter(([, value]) => value !== undefined)),
})

test('scopes nest: each changes what it names, and is undone when it returns or throws', () => {
  fc.assert(
    fc.property(fc.array(options, { maxLength: 4 }), fc.boolean(), (nested, throws) => {
      const before = now()
      const enter = (expected: ReturnType<typeof now>, [first, ...rest]: ComputeOptions[]): void => {
        assert.equal(now(), expected)
        if (first === undefined) return throws ? fail('TEST', 'the innermost scope') : undefined
        try {
          withCompute(first, () => enter(overridden(expected, first), rest))
        } finally {
          assert.equal(now(), expected)
        }
      }
      if (throws) throwsError(() => enter(before, nested), 'TEST')
      else enter(before, nested)
      assert.equal(now(), before)
    }),
  )
})

test('the value of the body is that of the scope, and threads that it sets end with it', () => {
  const before = native.threads()
  const inside = withCompute({ threads: before + 1 }, () => {
    setThreads(before + 2)
    return native.threads()
  })
  assert.equal([inside, native.threads()], [before + 2, before])
})

test('a body that returns a promise is refused: its settings would hold for whatever runs meanwhile', () => {
  throwsError(() => withCompute({ precision: 'tf32' }, () => Promise.resolve()), 'SCOPE', /synchronous/)
  assert.is(currentCompute().precision, 'f32')
})

test('at first nothing is asked of kernels that tables, or the kernels themselves, decide', () => {
  assert.equal(currentCompute(), { precision: 'f32', fusion: 'epilogue', tile: 0, kernels: undefined, threads: undefined })
})

test('values that a setting cannot have are named', () => {
  const bad: [Record<string, unknown>, RegExp][] = [
    [{ precision: 'bf16' }, /expected precision to be one of f32, tf32 but received bf16/],
    [{ fusion: 'most' }, /expected fusion to be one of pointwise, epilogue, full but received most/],
    [{ tile: -1 }, /expected tile to be an integer of at least 0 but received -1/],
    [{ threads: 0 }, /expected threads to be an integer of at least 1 but received 0/],
    [{ threads: 1.5 }, /but received 1.5/],
  ]
  for (const [settings, message] of bad) throwsError(() => withCompute(settings as ComputeOptions, () => undefined), 'ARGUMENT', message)
})

test('gradients outside of the scope are those inside, and leave the settings alone', () => {
  const before = now()
  const tape = new Tape()
  const [x, w] = [Tensor.from([1, 2, 3, 4], [2, 2]), Tensor.from([1, 0, 2, 1], [2, 2])]
  tape.watch([x, w])
  const y = withCompute({ precision: 'tf32', threads: 1 }, () => tape.record(() => linear(x, w)))
  const [dx, dw] = tape.backward(y, [x, w])
  assert.equal(
    [[...dx!.data()], [...dw!.data()]],
    [
      [3, 1, 3, 1],
      [4, 6, 4, 6],
    ],
  )
  assert.equal(now(), before)
  for (const tensor of [x, w, y, dx!, dw!]) tensor.dispose()
})

test.run()
