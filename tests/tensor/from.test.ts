/** Tensor.from: what numbers may look like, and what is refused by name. */
import fc from 'fast-check'
import * as assert from 'uvu/assert'

import { relu } from '../../src/ops/elementwise.js'
import { setThreads } from '../../src/tensor/runtime.js'
import { type DType, type NestedNumbers, scope, Tensor } from '../../src/tensor/tensor.js'
import { suite, throwsError } from '../support/suite.js'

const test = suite('from')

/** The row-major `values` nested as `shape` says. */
function nested(values: readonly number[], shape: readonly number[]): NestedNumbers {
  if (shape.length === 0) return values[0]!
  const [first, ...rest] = shape as [number, ...number[]]
  const size = rest.reduce((product, d) => product * d, 1)
  return Array.from({ length: first }, (_, i) => nested(values.slice(i * size, (i + 1) * size), rest))
}

test('nested lists of any shape are that tensor, the same as the flat list with the shape', () => {
  const shapes = fc.array(fc.integer({ min: 1, max: 4 }), { maxLength: 4 })
  fc.assert(
    fc.property(shapes, fc.constantFrom<DType>('f32', 'f64', 'i32', 'u8', 'bf16'), (shape, dtype) => {
      scope(() => {
        const values = Array.from({ length: shape.reduce((product, d) => product * d, 1) }, (_, i) => i)
        const [x, flat] = [Tensor.from(nested(values, shape), dtype), Tensor.from(values, shape, dtype)]
        assert.equal([x.shape, x.dtype, [...x.data()]], [shape, dtype, values])
        assert.equal([flat.shape, [...flat.data()]], [shape, values])
      })
    }),
  )
})

test('a number, flat lists, typed arrays and lists of them, and empty ones', () => {
  scope(() => {
    const seen = (x: Tensor): unknown => [x.dtype, x.shape, [...x.data()]]
    assert.equal(seen(Tensor.from(3)), ['f32', [], [3]])
    assert.equal(seen(Tensor.from([1, 2])), ['f32', [2], [1, 2]])
    assert.equal(seen(Tensor.from(Int32Array.of(4, 5), 'i32')), ['i32', [2], [4, 5]])
    assert.equal(seen(Tensor.from(Float64Array.of(1, 2, 3, 4), [2, 2])), ['f32', [2, 2], [1, 2, 3, 4]])
    assert.equal(seen(Tensor.from([Float32Array.of(1, 2), Float32Array.of(3, 4)])), ['f32', [2, 2], [1, 2, 3, 4]])
    assert.equal(seen(Tensor.from([])), ['f32', [0], []])
    assert.equal(seen(Tensor.from([[], []], 'f64', 'cpu')), ['f64', [2, 0], []])
    assert.equal(seen(Tensor.from({ length: 2, 0: 7, 1: 8 })), ['f32', [2], [7, 8]])
  })
})

test('ragged lists, and what is no number, are refused by their place', () => {
  throwsError(() => Tensor.from([[1, 2], [3]]), 'SHAPE', /data\[1\] to be a list of 2/, /received a list of 1/)
  throwsError(
    () =>
      Tensor.from([
        [[1], [2]],
        [[3], 4],
      ]),
    'SHAPE',
    /data\[1\]\[1\] to be a list of 1/,
    /number 4/,
  )
  throwsError(() => Tensor.from([1, [2, 3]]), 'SHAPE', /data\[1\] to be a number/, /a list of 2/)
  throwsError(() => Tensor.from([[1], ['2' as unknown as number]]), 'SHAPE', /data\[1\]\[0\] to be a number/, /string 2/)
  throwsError(() => Tensor.from([1, undefined as unknown as number]), 'SHAPE', /data\[1\] to be a number/, /undefined/)
  throwsError(() => Tensor.from('12' as unknown as number), 'SHAPE', /data to be a number/, /string 12/)
  throwsError(() => Tensor.from(null as unknown as number), 'SHAPE', /data to be a number/, /null/)
  throwsError(() => Tensor.from([1, 2, 3], [2, 2]), 'SHAPE', /expected 4 values for shape \[2,2\]/, /received 3/)
})

test('a wrong dtype is named, with the one that is meant', () => {
  const wrong = (name: string): DType => name as DType
  throwsError(
    () => Tensor.from([1], [1], wrong('float32')),
    'DTYPE',
    /f32, f64, i32, u8, bf16, e4m3/,
    /received float32/,
    /did you mean f32\?/,
  )
  throwsError(() => Tensor.from([1], wrong('torch.int64')), 'DTYPE', /torch\.int64/, /did you mean i32\?/)
  throwsError(() => Tensor.zeros([1], wrong('half')), 'DTYPE', /half/, /did you mean bf16\?/)
  throwsError(() => Tensor.empty([1], wrong('complex')), 'DTYPE', /received complex$/)
  scope(() => {
    const x = Tensor.from(1)
    throwsError(() => x.to(wrong('float64')), 'DTYPE', /did you mean f64\?/)
  })
})

test('values of another count or type than the tensor are refused with both', () => {
  scope(() => {
    const x = Tensor.zeros([2, 3])
    throwsError(() => x.write(new Float32Array(5)), 'SHAPE', /expected 6 values for f32\[2,3\]/, /received 5/)
    throwsError(() => x.write(new Float64Array(6)), 'DTYPE', /Float32Array for f32\[2,3\]/, /received Float64Array/)
    throwsError(() => x.write([1, 2, 3, 4, 5, 6] as unknown as Float32Array), 'DTYPE', /received Array/)
    throwsError(() => x.alias([4, 2]), 'SHAPE', /f32\[2,3\]/, /f32\[4,2\]/)
    throwsError(() => Tensor.zeros(3 as unknown as number[]), 'SHAPE', /received 3/)
    throwsError(() => relu(3 as unknown as Tensor), 'ARGUMENT', /relu: expected x to be a tensor but received 3/)
    throwsError(() => setThreads(0), 'ARGUMENT', /at least 1/, /received 0/)
  })
})

test('a list that holds itself is refused', () => {
  const itself: unknown[] = []
  itself.push(itself)
  throwsError(() => Tensor.from(itself as unknown as NestedNumbers), 'SHAPE', /at most 64 deep/)
})

test.run()
