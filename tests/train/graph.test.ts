/** Recorded steps on the CPU: the bits of steps that are run op by op, in no more memory, while other threads compute. */
import { once } from 'node:events'
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { Worker } from 'node:worker_threads'
import * as assert from 'uvu/assert'

import { densecl } from '../../src/methods/densecl/method.js'
import { resolveConfig } from '../../src/methods/index.js'
import { matmul, scale } from '../../src/engine.js'
import { evaluationCompute } from '../../src/eval/compute.js'
import { pooledFeatures } from '../../src/eval/features.js'
import { resnet } from '../../src/nn/resnet.js'
import { Sgd } from '../../src/optim/sgd.js'
import type { LogTo } from '../../src/run/logTo.js'
import { settingsOf } from '../../src/run/options.js'
import { withCompute } from '../../src/tensor/compute.js'
import { Graph } from '../../src/tensor/graph.js'
import { native } from '../../src/tensor/native.js'
import { Random } from '../../src/tensor/random.js'
import { type FloatDType, scope, Tensor } from '../../src/tensor/tensor.js'
import { pretrain } from '../../src/train/pretrain.js'
import { Trainer } from '../../src/train/trainer.js'
import { recordSums } from '../support/recordedSums.js'
import { suite, throwsError, withFolder } from '../support/suite.js'

const test = suite('recorded steps')
const side = 48

function images(random: Random, count: number, dtype: FloatDType): Tensor {
  const values = Float32Array.from({ length: count * side * side * 3 }, () => random.normal())
  return Tensor.from(values, [count, side, side, 3], dtype).keep()
}

/** A method with its optimiser, to be disposed. */
function built(compute: FloatDType) {
  const sizes = { imageSize: side, batchSize: 4, queueLength: 64, hidden: 64, shuffle: true }
  const config = resolveConfig(settingsOf(sizes, 'test'))
  const method = densecl.build(config, { backbone: resnet({ depth: 18, baseChannels: 16 }), compute })
  const { parameters, copies } = method.trained()
  return { method, parameters, sgd: new Sgd(parameters, config, copies) }
}

/** The losses of some steps, all parameters after them, and the most bytes of tensors from the third step on. */
function train(compute: FloatDType, graph: boolean): { losses: number[]; values: number[][]; peak: number; arena: number | undefined } {
  const { method, parameters, sgd } = built(compute)
  const random = new Random(7)
  const held = [0, 1].map(() => images(random, 4, compute))
  const trainer = new Trainer(method, sgd, { graph, views: () => [held[0]!.alias(), held[1]!.alias()] })
  const losses: number[] = []
  for (let step = 0; step < 6; ++step) {
    if (step === 2) native.resetPeakMemory('cpu')
    const result = trainer.step(step, 0.05 / (1 + step))
    losses.push(result.readings.loss.values[0]!)
  }
  const { peak } = native.memory('cpu')
  const values = [...parameters.values()].map((tensor) => [...tensor.data()])
  const arena = trainer.graph.plan?.arena
  for (const part of [trainer, sgd, method, ...held]) part.dispose()
  return { losses, values, peak, arena }
}

for (const compute of ['f32', 'bf16'] as const)
  test(`a training step in ${compute} has the same bits recorded, in as much memory and a tenth`, () => {
    const [recorded, eager] = [train(compute, true), train(compute, false)]
    assert.ok(recorded.arena! > 0)
    assert.is(eager.arena, undefined)
    assert.equal(recorded.losses, eager.losses)
    assert.equal(recorded.values, eager.values)
    assert.ok(recorded.peak < 1.1 * eager.peak, `${recorded.peak} bytes recorded, ${eager.peak} op by op`)
  })

test('a batch of another size, or in other tensors, is not taken for the one that was recorded; after dispose() it is', () => {
  const { method, sgd } = built('f32')
  const random = new Random(7)
  const pair = (count: number): [Tensor, Tensor] => [images(random, count, 'f32'), images(random, count, 'f32')]
  let held = pair(4)
  const trainer = new Trainer(method, sgd, { graph: true, views: () => [held[0].alias(), held[1].alias()] })
  let steps = 0
  const step = (): number => trainer.step(steps++, 0.01).readings.loss.values[0]!
  for (const size of [4, 2, 4]) {
    for (const view of held) view.dispose()
    held = pair(size)
    if (steps > 0) throwsError(() => step(), 'GRAPH', /expected the tensor x f32\[\d,48,48,3\] of conv2d to live/)
    trainer.graph.dispose()
    const losses = Array.from({ length: 5 }, step)
    assert.ok(losses.every(Number.isFinite) && new Set(losses).size === 5, losses.join(' '))
    assert.ok(trainer.graph.plan !== undefined)
  }
  for (const part of [trainer, sgd, method, ...held]) part.dispose()
})

test('scratch memory of a recorded op lies where the step has room meanwhile, and beside it where it has none', () => {
  const [large, a, b] = [Tensor.zeros([1 << 20]), Tensor.full([64, 512], 1), Tensor.full([512, 512], 1)]
  /** The most bytes beyond those of tensors in runs of a step. */
  const beside = (graph: Graph<Tensor>): number => {
    for (let run = 0; run < 3; ++run) graph.run()
    native.resetPeakMemory('cpu')
    const { live } = native.memory('cpu')
    assert.ok(
      graph
        .run()
        .data()
        .every((value) => value === 512),
    )
    const { peak } = native.memory('cpu')
    graph.dispose()
    return peak - live
  }
  const product = (): Tensor => matmul(a, b)
  const roomy = (): Tensor => {
    scale(large, 2).dispose()
    return matmul(a, b)
  }
  assert.is(beside(new Graph('cpu', roomy)), 0)
  const packed = beside(new Graph('cpu', product))
  assert.ok(packed >= b.bytes, `${packed} bytes for what is packed of ${b.bytes}`)
  for (const tensor of [large, a, b]) tensor.dispose()
})

test('evaluations between epochs have the memory of the recorded step, and steps after them the bits of a run without them', async () => {
  const seen: { live: number; values: Record<string, number> }[] = []
  const hook = Symbol.for('records of the test')
  ;(globalThis as unknown as Record<symbol, LogTo>)[hook] = ({ values }) => void seen.push({ live: native.memory('cpu').live, values })
  await withFolder(async (folder) => {
    const logTo = join(folder, 'hook.mjs')
    writeFileSync(logTo, `export default (record) => globalThis[Symbol.for('records of the test')](record)`)
    const losses = async (name: string, knnEvery: number): Promise<(number | undefined)[]> => {
      const small = { data: 'scenes:32', knnData: 'scenes:20', knnImages: 20, epochs: 3, depth: 18, baseChannels: 8, hidden: 16 }
      const values = { ...small, imageSize: 32, batchSize: 8, queueLength: 16, workers: 1, logEvery: 1, denseEvery: 0, knnEvery, logTo }
      seen.length = 0
      await pretrain({ config: resolveConfig(settingsOf(values, 'test')), out: join(folder, name), quiet: true, pictures: false })
      return seen.map(({ values }) => values['loss/total']).filter((loss) => loss !== undefined)
    }
    const without = await losses('without', 0)
    assert.is(without.length, 12)
    assert.equal(await losses('with', 1), without)
    const during = seen.filter(({ values }) => 'eval/knn' in values).map(({ live }) => live)
    const steps = Math.max(...seen.filter(({ values }) => 'loss/total' in values).map(({ live }) => live))
    assert.is(during.length, 4)
    const shown = `${during.join(', ')} bytes in evaluations, ${steps} in steps`
    assert.ok(
      during.slice(1, 3).every((live) => live - during[0]! < (steps - during[0]!) / 4),
      shown,
    )
  })
})

test('features are the same recorded, when weights that were packed are kept and when they are written', () => {
  const random = new Random(3)
  const network = resnet({ depth: 18, baseChannels: 32 })({ random, dtype: 'f32', compute: 'f32' })
  const x = images(random, 1, 'f32')
  const { parameters } = network.state()
  withCompute(evaluationCompute('cpu'), () => {
    const forward = (): Tensor => pooledFeatures(network, x, ['pooled'])[0]!
    const graph = new Graph('cpu', forward)
    for (let run = 0; run < 8; ++run) {
      x.write(Float32Array.from({ length: x.size }, () => random.normal()))
      if (run % 2 === 1) for (const weight of parameters.values()) weight.write((weight.data() as Float32Array).map((value) => value * 0.9))
      assert.equal(
        [...graph.run().data()],
        scope(() => [...forward().data()]),
        `run ${run}`,
      )
    }
    assert.ok(graph.plan!.launches > 15)
    graph.dispose()
  })
  x.dispose()
  network.dispose()
})

const busy = `
  import { Tensor, add, scope } from '${new URL('../../src/engine.js', import.meta.url).href}'
  import { parentPort, workerData } from 'node:worker_threads'
  const stop = new Int32Array(workerData)
  parentPort.postMessage('begun')
  let wrong = 0
  while (Atomics.load(stop, 0) === 0) scope(() => {
    const x = Tensor.full([1000], 1)
    if (add(x, x).data().some((value) => value !== 2)) wrong += 1
  })
  parentPort.postMessage(wrong)`

test('what other threads compute meanwhile is in no step, and no step is in it', async () => {
  const stop = new SharedArrayBuffer(4)
  const worker = new Worker(new URL(`data:text/javascript,${encodeURIComponent(busy)}`), { workerData: stop })
  await once(worker, 'message')
  recordSums()
  Atomics.store(new Int32Array(stop), 0, 1)
  const [wrong] = (await once(worker, 'message')) as [number]
  await worker.terminate()
  assert.is(wrong, 0)
})

test.run()
