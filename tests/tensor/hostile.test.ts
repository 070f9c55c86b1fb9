/** The addon's functions called from plain JavaScript with what they cannot take: each refuses with our error, and the process lives. */
import fc from 'fast-check'
import * as assert from 'uvu/assert'

import { DenseclError } from '../../src/tensor/errors.js'
import { native } from '../../src/tensor/native.js'
import { opSignatures } from '../../src/tensor/nativeOps.js'
import { scope, Tensor } from '../../src/tensor/tensor.js'
import { suite, throwsError } from '../support/suite.js'

const test = suite('hostile calls of the addon')

const hostile = native as unknown as Record<string, (...given: unknown[]) => unknown>
const call = (name: string, ...given: unknown[]): unknown => hostile[name]!(...given)
const detached = (): Float32Array => {
  const array = new Float32Array(4)
  structuredClone(array.buffer, { transfer: [array.buffer] })
  return array
}

test('create and view refuse dtypes and shapes that no tensor has', () => {
  for (const dtype of [-1, 6, 99, 0.5, NaN, '0', undefined]) throwsError(() => call('create', dtype, [2], 'cpu'), 'ARGUMENT', /a dtype/)
  for (const shape of [[-4, -4], [1.5], [NaN], ['2'], [{ valueOf: () => 2 }], [2 ** 60]])
    throwsError(() => call('create', 0, shape, 'cpu'), 'ARGUMENT', /a dimension of a shape/)
  throwsError(() => call('create', 0, [2 ** 40, 2 ** 40, 0], 'cpu'), 'OUT_OF_MEMORY', /larger than any memory/)
  throwsError(() => call('create', 0, new Array(65).fill(1), 'cpu'), 'SHAPE', /at most 64 dimensions/)
  throwsError(() => call('create', 0, { length: 2 }, 'cpu'), 'ARGUMENT', /array/)
  throwsError(() => call('create', 0, [2], 7), 'ARGUMENT')
  scope(() => {
    const x = Tensor.zeros([4])
    throwsError(() => call('view', x.handle, [-2, -2]), 'ARGUMENT', /a dimension of a shape/)
    throwsError(() => x.alias([-2, -2]), 'SHAPE', /alias: .*\[-2,-2\]/)
    throwsError(() => x.alias([5]), 'SHAPE', /\[5\]/)
    throwsError(() => Tensor.empty([4], 'f16' as 'f32'), 'DTYPE', /f16/)
  })
})

test('finishRead takes an array of the size that was read, and no other', () => {
  scope(() => {
    const x = Tensor.from([1, 2, 3, 4], [4])
    const ticket = native.startRead(x.handle)
    for (const array of [new Float32Array(3), new Float32Array(5), detached(), [1, 2, 3, 4], undefined])
      throwsError(() => call('finishRead', ticket, array), array instanceof Float32Array ? 'SHAPE' : 'ARGUMENT')
    const values = new Float32Array(4)
    native.finishRead(ticket, values)
    assert.equal([...values], [1, 2, 3, 4])
    throwsError(() => native.finishRead(ticket, values), 'INTERNAL', /no such read/)
  })
})

test('reads that nobody finishes come to an end', () => {
  scope(() => {
    const x = Tensor.zeros([1])
    const tickets: number[] = []
    throwsError(
      () => {
        for (let i = 0; i < 10_000; ++i) tickets.push(native.startRead(x.handle))
      },
      'OUT_OF_MEMORY',
      /startRead: \d+ reads .* not finished/,
    )
    for (const ticket of tickets) native.finishRead(ticket, new Float32Array(1))
    x.startRead()()
  })
})

test('an upload starts and ends inside of its tensor', () => {
  scope(() => {
    const x = Tensor.zeros([4])
    const bytes = new Uint8Array(8)
    for (const offset of [-8, -1, 17, 0.5, NaN, Infinity, 2 ** 63, '0', undefined])
      throwsError(() => call('startUpload', x.handle, bytes, offset), 'ARGUMENT', /an offset/)
    throwsError(() => native.startUpload(x.handle, bytes, 9), 'SHAPE', /do not fit/)
    for (const name of ['useUpload', 'finishUpload', 'release']) throwsError(() => call(name, x.handle, -8), 'ARGUMENT', /an offset/)
    native.startUpload(x.handle, new Float32Array([5, 6]), 8)
    assert.equal([...x.data()], [0, 0, 5, 6])
  })
})

test('steps go through their stages in order', () => {
  const step = native.startTrace('cpu')
  throwsError(() => native.replay(step), 'GRAPH', /has not been recorded/)
  throwsError(() => native.endRecording(step), 'GRAPH', /not being recorded/)
  throwsError(() => native.startRecording(step), 'GRAPH', /after its trace/)
  native.endTrace(step)
  throwsError(() => native.endTrace(step), 'GRAPH', /has ended/)
  native.startRecording(step)
  throwsError(() => native.startRecording(step), 'GRAPH', /after its trace/)
  throwsError(() => native.replay(step), 'GRAPH', /has not been recorded/)
  native.endRecording(step)
  throwsError(() => native.endRecording(step), 'GRAPH', /not being recorded/)
  native.replay(step)
  native.endGraph(step)
  throwsError(() => native.replay(step), 'INTERNAL', /no such step/)
})

test('run takes two Float64Arrays as long as the row of its op says', () => {
  scope(() => {
    const x = Tensor.zeros([4])
    const add = opSignatures.findIndex((signature) => signature.startsWith('add('))
    const three = new Float64Array(3).fill(x.handle)
    for (const wrong of [new Uint8Array(3), new BigUint64Array(3), [1, 2, 3], undefined, null])
      throwsError(() => call('run', add, wrong, new Float64Array(0)), 'ARGUMENT', /Float64Array/)
    for (const index of [-1, 1e9, 0.5, NaN, '0'])
      throwsError(() => call('run', index, three, new Float64Array(0)), 'ARGUMENT', /op's number/)
    throwsError(() => call('run', add, three.subarray(1), new Float64Array(0)), 'INTERNAL')
    const sgd = opSignatures.findIndex((signature) => signature.startsWith('sgd('))
    for (const count of [Infinity, 1e300, 2 ** 31])
      throwsError(() => call('run', sgd, Float64Array.of(x.handle, NaN, count), new Float64Array(4)), 'INTERNAL')
  })
})

test('threads and memory limits are numbers that a machine can have', () => {
  for (const count of [1e6, 2 ** 31 - 1, -1, NaN, 1.5]) throwsError(() => native.setThreads(count), 'ARGUMENT', /threads/)
  for (const bytes of [-1, NaN]) throwsError(() => native.setMemoryLimit(bytes), 'ARGUMENT', /a memory limit/)
})

test('any function with any arguments returns or throws, and nothing else happens', () => {
  // Of what these would do with sound arguments, other tests would notice.
  const left = ['initialize', 'setThreads', 'setMemoryLimit', 'simtShuffle', 'simtCapability', 'simtAlarm', 'resetPeakMemory', 'leave']
  const names = Object.getOwnPropertyNames(native).filter((name) => !left.includes(name))
  assert.ok(names.length > 25, names.join())
  const seed = Number(process.env.DENSECL_TEST_SEED ?? Date.now() % 1e9)
  scope(() => {
    const x = Tensor.zeros([2, 3])
    const argument = fc.oneof(
      fc.constantFrom<unknown>(
        x.handle,
        x.handle + 1,
        'cpu',
        'cuda:0',
        '',
        [2, 3],
        [6],
        [],
        [0, 7],
        null,
        undefined,
        true,
        {},
        Symbol.iterator,
      ),
      fc.constantFrom<unknown>(new Float32Array(6), new Float64Array(3), new Uint8Array(24), new DataView(new ArrayBuffer(8)), detached()),
      fc.constantFrom(0, -1, 1, 2, 99, NaN, Infinity, 2 ** 31, 2 ** 32 + 1, -(2 ** 63)),
      fc.double(),
    )
    fc.assert(
      fc.property(fc.constantFrom(...names), fc.array(argument, { maxLength: 4 }), (name, given) => {
        if (name === 'dispose' && given[0] === x.handle) return
        let made: unknown
        try {
          made = call(name, ...given)
        } catch (error) {
          assert.instance(error, DenseclError, `${name}: ${String(error)}`)
        }
        if (name === 'create' || name === 'view') if (typeof made === 'number') native.dispose(made)
        if (name === 'startTrace' && typeof made === 'number') native.endGraph(made)
        if (name === 'startRead' && typeof made === 'number') native.finishRead(made, new Float32Array(6))
      }),
      { numRuns: 4000, seed },
    )
  })
})

test.run()
