/** Tensors on the device under test: transfers, dtypes, layout changes, memory, and what may not be mixed. */
import fc from 'fast-check'
import * as assert from 'uvu/assert'

import { Random } from '../../src/tensor/random.js'
import { add, conv2d, crossEntropy, gatherRows, permute, permuteBatch, relu } from '../../src/engine.js'
import { native } from '../../src/tensor/native.js'
import { type DType, dtypes, scope, Tensor, withDevice } from '../../src/tensor/tensor.js'
import { device } from '../support/devices.js'
import { suite, throwsError } from '../support/suite.js'

const test = suite(`tensors on ${device}`, device)
const shapes = fc.array(fc.integer({ min: 1, max: 7 }), { minLength: 4, maxLength: 4 })
const onDevice = <R>(body: () => R): R => scope(() => withDevice(device, body))

test('values come back as they were written, through every dtype', () => {
  onDevice(() => {
    for (const dtype of dtypes) {
      const tensor = Tensor.from([0, 1, 2, 208], [2, 2], dtype)
      assert.is(tensor.device, device)
      assert.equal([...tensor.data()], [0, 1, 2, 208], dtype)
      assert.equal([...tensor.to(dtype, 'cpu').data()], [0, 1, 2, 208])
    }
    const converted: DType[] = ['f32', 'bf16', 'i32', 'u8', 'e4m3']
    for (const from of converted)
      for (const to of converted)
        assert.equal([...Tensor.from([0, 3, 128, 240], [4], from).to(to).data()], [0, 3, 128, 240], `${from} to ${to}`)
    for (const dtype of converted) assert.equal([...Tensor.full([5], 3, dtype).data()], [3, 3, 3, 3, 3])
  })
})

test('bf16 is rounded to the nearest, ties to even, here as on the CPU', () => {
  onDevice(() => {
    const random = new Random(3)
    const values = Float32Array.from([
      1 + 2 ** -8,
      1 + 3 * 2 ** -8,
      -1 - 2 ** -8,
      3.0e38,
      1e-40,
      0,
      -0,
      Infinity,
      ...Array.from({ length: 999 }, () => random.normal() * 10 ** random.uniform(-20, 20)),
    ])
    const expected = Tensor.from(values, [values.length], 'bf16', 'cpu').data()
    assert.equal(Tensor.from(values, [values.length]).to('bf16').data(), expected)
    assert.equal(Tensor.from(values, [values.length], 'f32', 'cpu').to('bf16').data(), expected)
    assert.equal([expected[0], expected[1], expected[2]], [1, 1 + 2 ** -6, -1])
    assert.ok(Number.isNaN(Tensor.from([NaN], [1]).to('bf16').item()) && Number.isNaN(Tensor.from([NaN], [1], 'bf16').item()))
  })
})

test('E4M3 is rounded to the nearest of its 253 numbers, ties to even, here as on the CPU', () => {
  onDevice(() => {
    const bytes = Array.from({ length: 127 }, (_, i) => i)
    // Sizes in the order of their bytes: 0 to 448.
    const sizes = bytes.map((byte) => (byte < 8 ? byte * 2 ** -9 : (1 + (byte & 7) / 8) * 2 ** ((byte >> 3) - 7)))
    const nearest = (value: number): number => {
      const size = Math.min(448, Math.abs(value))
      const above = sizes.findIndex((each) => each >= size)
      const [low, high] = [sizes[Math.max(0, above - 1)]!, sizes[above]!]
      const up = high - size < size - low || (high - size === size - low && above % 2 === 0)
      return Math.sign(value) * (up ? high : low)
    }
    const random = new Random(4)
    const values = Float32Array.from([
      ...sizes,
      ...sizes.slice(1).map((size, i) => -(size + sizes[i]!) / 2),
      ...[449, 465, 1e30, Infinity, -Infinity, 2 ** -10, 2 ** -11, 1e-40],
      ...Array.from({ length: 999 }, () => random.normal() * 10 ** random.uniform(-4, 3)),
    ])
    const expected = Float32Array.from(values, nearest)
    assert.equal(Tensor.from(values, [values.length], 'e4m3', 'cpu').data(), expected)
    assert.equal(Tensor.from(values, [values.length], 'f32', 'cpu').to('e4m3').data(), expected)
    assert.equal(Tensor.from(values, [values.length]).to('e4m3').data(), expected)
    assert.equal(Tensor.from(values, [values.length], 'e4m3').to('f32').data(), expected)
    for (const of of [Tensor.from([NaN], [1]).to('e4m3'), Tensor.from([NaN], [1], 'e4m3'), Tensor.from([NaN], [1], 'e4m3').to('f32')])
      assert.ok(Number.isNaN(of.item()))
  })
})

test("permute is the CPU's", () => {
  fc.assert(
    fc.property(
      shapes,
      fc.constantFrom<DType>('f32', 'bf16', 'u8', 'i32'),
      fc.shuffledSubarray([0, 1, 2, 3], { minLength: 4 }),
      (shape, dtype, order) => {
        onDevice(() => {
          const values = Array.from({ length: shape.reduce((n, d) => n * d, 1) }, (_, i) => i % 251)
          const axes = order as unknown as [number, number, number, number]
          assert.equal(
            permute(Tensor.from(values, shape, dtype), axes).data(),
            permute(Tensor.from(values, shape, dtype, 'cpu'), axes).data(),
          )
        })
      },
    ),
    { numRuns: 20 },
  )
})

test('permuteBatch moves whole images, forth and back', () => {
  onDevice(() => {
    for (const size of [2, 3, 8]) {
      const x = Tensor.from(
        Float32Array.from({ length: 5 * size }, (_, i) => i),
        [5, size],
        'bf16',
      )
      const there = permuteBatch(x, [3, 0, 4, 1, 2])
      assert.is(there.data()[0], 3 * size)
      assert.equal(permuteBatch(there, [1, 3, 4, 0, 2]).data(), x.data())
    }
  })
})

test('memory is counted, reused, limited and freed', () => {
  native.trimMemory(device)
  const before = native.memory(device)
  onDevice(() => {
    Tensor.zeros([1000, 256])
    const inside = native.memory(device)
    assert.ok(inside.live >= before.live + 1_024_000)
    assert.ok(inside.peak >= inside.live)
  })
  assert.ok(native.memory(device).cached >= 1_024_000)
  native.setMemoryLimit(native.memory(device).live + 4096, device)
  try {
    throwsError(() => onDevice(() => Tensor.zeros([1 << 20])), 'OUT_OF_MEMORY', new RegExp(device), /4194304 bytes/, /smaller batch/)
    onDevice(() => assert.is(Tensor.full([8], 2).data()[7], 2))
  } finally {
    native.setMemoryLimit(0, device)
    native.trimMemory(device)
  }
  assert.is(native.memory(device).cached, 0)
})

test('tensors of two devices do not meet, and f64 stays on the CPU', () => {
  onDevice(() => {
    const [here, there] = [Tensor.zeros([2], 'f32', 'cpu'), Tensor.zeros([2])]
    throwsError(() => add(there, here), 'DEVICE', /add/, new RegExp(device), /cpu/)
    throwsError(() => relu(Tensor.from([1], [1], 'f64')), 'DTYPE', /relu/, /f64/, new RegExp(device))
    throwsError(
      () => conv2d(Tensor.zeros([1, 2, 2, 1], 'bf16'), Tensor.zeros([1, 1, 1, 1], 'bf16'), Tensor.zeros([1], 'bf16')),
      'DTYPE',
      /bias/,
      /f32/,
    )
  })
  throwsError(() => Tensor.zeros([1], 'f32', 'gpu'), 'DEVICE', /gpu/, /cpu/)
})

test('an index or label that a kernel finds out of range is thrown when values are read, once', () => {
  onDevice(() => {
    const y = gatherRows(Tensor.zeros([1, 2, 3]), Tensor.from([2], [1, 1], 'i32'))
    throwsError(() => y.data(), 'RANGE', /gatherRows/, /index 2/, /2 rows/)
    assert.equal([...y.data()], [0, 0, 0])
    const loss = crossEntropy(Tensor.zeros([2, 3]), Tensor.from([0, 3], [2], 'i32'))
    throwsError(() => loss.data(), 'RANGE', /target 3/, /3 classes/)
  })
})

test('uploads beside compute arrive, and marks measure', () => {
  onDevice(() => {
    const [from, to] = [Float32Array.from({ length: 1000 }, (_, i) => i), Tensor.zeros([1000])]
    native.pin(from, device)
    const start = native.recordEvent(device)
    for (let round = 0; round < 3; ++round) {
      native.startUpload(to.handle, from, 0)
      native.useUpload(to.handle, 0)
      const sum = add(to, to)
      native.release(to.handle, 0)
      native.finishUpload(to.handle, 0)
      assert.is(sum.data()[999], 2 * from[999]!)
      from[999]! += 1
    }
    assert.ok(native.elapsed(device, start, native.recordEvent(device)) >= 0)
    native.unpin(from, device)
  })
})

test.run()
