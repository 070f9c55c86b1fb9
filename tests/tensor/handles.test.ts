import { spawnSync } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { Worker } from 'node:worker_threads'

import * as assert from 'uvu/assert'

import { add } from '../../src/ops/arithmetic.js'
import { DenseclError } from '../../src/tensor/errors.js'
import { addonPath, native, runNative } from '../../src/tensor/native.js'
import { Random } from '../../src/tensor/random.js'
import { leakedTensors, scope, Tensor } from '../../src/tensor/tensor.js'
import { suite, testWhere, throwsError } from '../support/suite.js'

const test = suite('handles')

test('data goes in and comes out unchanged, in every dtype', () => {
  scope(() => {
    for (const dtype of ['f32', 'f64', 'i32', 'u8'] as const) assert.equal([...Tensor.from([0, 1, 255], [3], dtype).data()], [0, 1, 255])
  })
})

test('dispose frees, a second dispose and any use are errors', () => {
  const x = Tensor.zeros([2, 3])
  x.dispose()
  throwsError(() => x.dispose(), 'USE_AFTER_DISPOSE', /f32\[2,3\]/)
  throwsError(() => x.data(), 'USE_AFTER_DISPOSE')
  const y = Tensor.zeros([2, 3])
  throwsError(() => add(x, y), 'USE_AFTER_DISPOSE', /^add: the tensor a, f32\[2,3\], has been disposed$/)
  throwsError(
    () => runNative('checkFinite', { foundInf: y, tensors: [y, x] }),
    'USE_AFTER_DISPOSE',
    /^checkFinite: the tensor tensors, f32/,
  )
  y.dispose()
})

test('a stale handle is refused by the addon although its slot is in use again', () => {
  const x = Tensor.zeros([2])
  const { handle } = x
  x.dispose()
  const y = Tensor.zeros([2])
  assert.is.not(y.handle, handle)
  throwsError(() => native.dispose(handle), 'USE_AFTER_DISPOSE')
  y.dispose()
})

test('what is no handle is refused', () => {
  for (const handle of [-1, 0.5, 2 ** 60, Infinity, 12345]) throwsError(() => native.dispose(handle), 'FOREIGN_HANDLE')
  const clone = { shape: [1], dtype: 'f32' } as unknown as Tensor
  const x = Tensor.zeros([1])
  throwsError(() => runNative('add', { y: x, a: clone, b: x }), 'FOREIGN_HANDLE', /workers/)
  x.dispose()
})

test('views share storage, which lives as long as the last of them', () => {
  const x = Tensor.from([1, 2, 3, 4], [4])
  const view = x.alias([2, 2])
  x.dispose()
  assert.equal([...view.data()], [1, 2, 3, 4])
  view.dispose()
})

test('scope frees what it does not return, also when it throws', () => {
  const before = native.memory().handles
  const kept = scope(() => {
    Tensor.zeros([100])
    return { list: [Tensor.zeros([1])], map: new Map([['a', Tensor.zeros([2])]]) }
  })
  assert.is(native.memory().handles, before + 2)
  kept.list[0]!.dispose()
  kept.map.get('a')!.dispose()
  assert.throws(() =>
    scope(() => {
      Tensor.zeros([5])
      throw new Error('inside')
    }),
  )
  assert.is(native.memory().handles, before)
  throwsError(() => scope(async () => Promise.resolve(Tensor.zeros([1]))), 'SCOPE', /promise/)
})

const held = (): number => native.memory().live + native.memory().cached
const shuffled = <T>(random: Random, all: readonly T[]): T[] => Array.from(random.permutation(all.length), (i) => all[i]!)

test('blocks that are in use share no byte, whatever was freed before', () => {
  const random = new Random(11)
  let live: { x: Tensor; mark: number }[] = []
  for (let i = 0; i < 400; ++i) {
    // Bytes to megabytes: both sides of where large blocks begin.
    const mark = i + 1
    live.push({ x: Tensor.full([Math.ceil(2 ** (20 * random.uniform()))], mark), mark })
    if (live.length < 24) continue
    const order = shuffled(random, live)
    for (const { x, mark } of order.slice(12)) {
      assert.ok(x.data().every((value) => value === mark))
      x.dispose()
    }
    if (random.uniform() < 0.3) native.trimMemory()
    live = order.slice(0, 12)
  }
  for (const { x, mark } of live) {
    assert.ok(x.data().every((value) => value === mark))
    x.dispose()
  }
})

test('neighbours that are free become one block again, and large blocks are cut', () => {
  native.trimMemory()
  const before = held()
  const whole = Tensor.empty([8_000_000], 'f32')
  const most = held()
  assert.ok(most >= before + 32e6)
  whole.dispose()
  for (let round = 0; round < 8; ++round) {
    const parts = Array.from({ length: 14 }, () => Tensor.empty([500_000], 'f32'))
    assert.is(held(), most)
    for (const part of shuffled(new Random(round), parts)) part.dispose()
    Tensor.empty([8_000_000], 'f32').dispose()
    assert.is(held(), most)
  }
  native.trimMemory()
  assert.is(held(), before)
})

test('work whose sizes change with every step keeps little more than what is in use at one time', () => {
  native.trimMemory()
  native.resetPeakMemory()
  const random = new Random(5)
  const parameters = Array.from({ length: 20 }, () => Tensor.empty([300_000], 'f32'))
  let most = 0
  for (let step = 0; step < 60; ++step) {
    // As images of many sizes leave them: all of a step's tensors are larger or smaller together.
    const scale = 0.4 + 0.6 * random.uniform()
    const made = Array.from({ length: 30 }, (_, i) => Tensor.empty([Math.ceil(scale * (1e5 + (i % 7) * 4e5))], 'f32'))
    for (const x of made.reverse()) {
      Tensor.empty([x.size], 'f32').dispose()
      x.dispose()
    }
    most = Math.max(most, held())
  }
  const { peak } = native.memory()
  assert.ok(most < 1.05 * peak, `${most} bytes held, of which ${peak} in use`)
  for (const x of parameters) x.dispose()
  native.trimMemory()
})

test('small tensors hold little beyond what they take, however much large ones do', () => {
  native.trimMemory()
  const large = Tensor.empty([64_000_000], 'f32')
  const before = held()
  const small = Array.from({ length: 40 }, () => Tensor.empty([50_000], 'f32'))
  const taken = held() - before
  assert.ok(taken < 40 * 200_000 + 4 * 2 ** 20, `${taken} bytes held for 40 tensors of 200,000`)
  for (const x of [large, ...small]) x.dispose()
  native.trimMemory()
})

test('what is trimmed goes back to the system', () => {
  // More than the 32 MiB up to which the C library may keep a block.
  const x = Tensor.full([12_000_000], 1)
  native.trimMemory()
  const before = process.memoryUsage().rss
  for (let i = 0; i < 16; ++i) {
    add(x, x).dispose()
    native.trimMemory()
  }
  // 768 MB were written.
  assert.ok(process.memoryUsage().rss - before < 2 ** 27, `${process.memoryUsage().rss - before} bytes stayed`)
  x.dispose()
})

test('trimming gives back what is free between blocks in use, whose values stay, and it can be used again', () => {
  native.trimMemory()
  const before = process.memoryUsage().rss
  const [first, x, last] = [Tensor.full([400_000], 1), Tensor.full([48_000_000], 2), Tensor.full([400_000], 3)]
  assert.ok(process.memoryUsage().rss - before > 150e6)
  x.dispose()
  assert.ok(native.memory().cached > 190e6)
  native.trimMemory()
  const { live, cached } = native.memory()
  assert.ok(cached < 4e6, `${cached} bytes held`)
  assert.ok(process.memoryUsage().rss - before < 60e6, `${process.memoryUsage().rss - before} bytes stayed`)
  const again = Tensor.full([24_000_000], 4)
  const more = held() - live - cached
  assert.ok(more >= 96e6 && more < 96.1e6, `${more} bytes more`)
  for (const [each, value] of [
    [first, 1],
    [last, 3],
    [again, 4],
  ] as const) {
    assert.ok(each.data().every((of) => of === value))
    each.dispose()
  }
  native.trimMemory()
})

testWhere(process.platform === 'linux', 'ulimit -v is of Linux', test, 'where addresses are limited, memory comes in segments', () => {
  const program = `
    const { Tensor } = await import(${JSON.stringify(new URL('../../src/tensor/tensor.js', import.meta.url).href)})
    const { native } = await import(${JSON.stringify(new URL('../../src/tensor/native.js', import.meta.url).href)})
    const live = []
    for (let i = 0; i < 200; ++i) {
      live.push({ x: Tensor.full([1 + ((i * 7919) % 97) * 20_011], i), i })
      if (i % 3 === 0) continue
      const [{ x, i: mark }] = live.splice((i * 31) % live.length, 1)
      if (!x.data().every((value) => value === mark)) throw new Error('a value has changed')
      x.dispose()
      if (i % 20 === 1) native.trimMemory()
    }
    for (const { x } of live) x.dispose()
    native.trimMemory()
    console.log(native.memory().live + native.memory().cached)`
  const limited = ['-c', 'ulimit -v 100000000 && exec "$0" --input-type=module -e "$1"', process.execPath, program]
  const { status, stdout, stderr } = spawnSync('sh', limited, { encoding: 'utf8' })
  assert.is(status, 0, stderr)
  assert.is(stdout, '0\n')
})

test('live, peak and cached bytes follow allocations', () => {
  native.trimMemory()
  native.resetPeakMemory()
  const before = native.memory()
  const x = Tensor.zeros([1000, 1000])
  const during = native.memory()
  assert.ok(during.live - before.live >= 4e6 && during.live - before.live < 4.2e6, String(during.live - before.live))
  x.dispose()
  const after = native.memory()
  assert.is(after.live, before.live)
  assert.ok(after.peak >= during.live)
  assert.ok(after.cached >= 4e6)
  native.trimMemory()
  assert.is(native.memory().cached, 0)
})

test('out of memory is an error with the sizes, and the process goes on', () => {
  native.setMemoryLimit(native.memory().live + 1e6)
  throwsError(() => Tensor.zeros([1000, 1000]), 'OUT_OF_MEMORY', /f32\[1000,1000\]/, /4000000 bytes asked for/, /limit/)
  const small = Tensor.zeros([10])
  small.dispose()
  native.setMemoryLimit(0)
  throwsError(() => Tensor.empty([2 ** 40, 2 ** 20], 'f64'), 'OUT_OF_MEMORY', /larger than any memory/)
  throwsError(() => Tensor.empty([2 ** 45]), 'OUT_OF_MEMORY')
  Tensor.zeros([1000, 1000]).dispose()
})

test('impossible shapes and data of another size are errors with both', () => {
  throwsError(() => Tensor.zeros([-1]), 'SHAPE', /-1/)
  throwsError(() => Tensor.zeros([1.5]), 'SHAPE', /1\.5/)
  throwsError(() => Tensor.from([1, 2, 3], [2]), 'SHAPE', /expected 2 values/, /received 3/)
})

test('a worker thread has handles of its own and refuses ours', async () => {
  const x = Tensor.zeros([3])
  const source = `
    const { parentPort, workerData } = require('node:worker_threads')
    const native = require(workerData.addon)
    class E extends Error { constructor(code, message) { super(message); this.code = code } }
    native.initialize(E)
    const mine = native.create(0, [2])
    let code
    try { native.dispose(workerData.handle) } catch (error) { code = error.code }
    parentPort.postMessage({ code, live: native.memory().handles, mine })`
  const worker = new Worker(source, { eval: true, workerData: { addon: addonPath(), handle: x.handle } })
  // Listened for before the message comes: on a busy machine both are there at once.
  const exited = new Promise((resolve) => worker.once('exit', resolve))
  const result = await new Promise<{ code: string; live: number; mine: number }>((resolve, reject) =>
    worker.once('message', resolve).once('error', reject),
  )
  await exited
  assert.is(result.code, 'FOREIGN_HANDLE')
  assert.is(result.live, 1)
  throwsError(() => native.dispose(result.mine), 'FOREIGN_HANDLE')
  x.dispose()
})

test('a forgotten tensor is freed by the garbage collector and counted; exit with live tensors is clean', () => {
  const tensorModule = new URL('../../src/tensor/tensor.js', import.meta.url).href
  const source = `
    import { Tensor, leakedTensors } from '${tensorModule}'
    for (let i = 0; i < 50; ++i) Tensor.zeros([1000])
    const held = Tensor.zeros([10])
    globalThis.gc()
    await new Promise((resolve) => setTimeout(resolve, 50))
    globalThis.gc()
    await new Promise((resolve) => setTimeout(resolve, 50))
    console.log(leakedTensors() > 0, held.size)`
  const child = spawnSync(process.execPath, ['--expose-gc', '--input-type=module', '-e', source], { encoding: 'utf8' })
  assert.is(child.status, 0, child.stderr)
  assert.is(child.stdout.trim(), 'true 10')
  assert.is(leakedTensors(), 0)
})

test('a test that leaks a tensor fails', () => {
  const { status, stdout } = spawnSync(process.execPath, [fileURLToPath(new URL('./leak.fails.js', import.meta.url))], { encoding: 'utf8' })
  assert.is(status, 1)
  assert.match(stdout, /1 tensors leaked/)
})

test('native errors are of our class and carry a code', () => {
  try {
    native.dispose(-1)
    assert.unreachable()
  } catch (error) {
    assert.instance(error, DenseclError)
    assert.type((error as DenseclError).stack, 'string')
  }
})

test('the addon stays in memory when a worker that computed with several threads is ended, for those threads are in it', () => {
  // Only the worker loads it, so with the worker goes the last use that Node knows of.
  const worker = `
    const { parentPort, workerData } = require('node:worker_threads')
    const addon = require(workerData)
    addon.initialize(Error)
    addon.setThreads(4)
    const add = addon.opSignatures().findIndex((signature) => signature.startsWith('add('))
    const handles = Float64Array.from([0, 1, 2], () => addon.create(0, [1 << 18], 'cpu'))
    addon.run(add, handles, new Float64Array(0))
    parentPort.postMessage(0)
    for (;;) addon.run(add, handles, new Float64Array(0))`
  const program = `
    const { Worker } = require('node:worker_threads')
    const worker = new Worker(${JSON.stringify(worker)}, { eval: true, workerData: ${JSON.stringify(addonPath())} })
    worker.once('message', async () => {
      await worker.terminate()
      console.log(process.report.getReport().sharedObjects.includes(${JSON.stringify(addonPath())}))
    })`
  const { stdout, signal, stderr } = spawnSync(process.execPath, ['-e', program], { encoding: 'utf8' })
  assert.is(signal, null)
  assert.is(stdout.trim(), 'true', stderr)
})

test.run()
