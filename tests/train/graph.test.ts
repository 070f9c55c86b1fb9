/** Recorded steps on the CPU: the bits of steps that are run op by op, in no more memory, while other threads compute. */
import { once } from 'node:events'
import { Worker } from 'node:worker_threads'
import * as assert from 'uvu/assert'

import { densecl } from '../../src/methods/densecl/method.js'
import { resolveConfig } from '../../src/methods/index.js'
import { add } from '../../src/engine.js'
import { evaluationCompute } from '../../src/eval/compute.js'
import { pooledFeatures } from '../../src/eval/features.js'
import { resnet } from '../../src/nn/resnet.js'
import { Sgd } from '../../src/optim/sgd.js'
import { settingsOf } from '../../src/run/options.js'
import { withCompute } from '../../src/tensor/compute.js'
import { Graph } from '../../src/tensor/graph.js'
import { native } from '../../src/tensor/native.js'
import { Random } from '../../src/tensor/random.js'
import { type FloatDType, scope, Tensor } from '../../src/tensor/tensor.js'
import { Trainer } from '../../src/train/trainer.js'
import { suite } from '../support/suite.js'

const test = suite('recorded steps')
const side = 48

function images(random: Random, count: number, dtype: FloatDType): Tensor {
  const values = Float32Array.from({ length: count * side * side * 3 }, () => random.normal())
  return Tensor.from(values, [count, side, side, 3], dtype).keep()
}

/** The losses of some steps, all parameters after them, and the most bytes of tensors from the third step on. */
function train(compute: FloatDType, graph: boolean): { losses: number[]; values: number[][]; peak: number; arena: number | undefined } {
  const sizes = { imageSize: side, batchSize: 4, queueLength: 64, hidden: 64, shuffle: true }
  const config = resolveConfig(settingsOf(sizes, 'test'))
  const method = densecl.build(config, { backbone: resnet({ depth: 18, baseChannels: 16 }), compute })
  const { parameters, copies } = method.trained()
  const sgd = new Sgd(parameters, config, copies)
  const random = new Random(7)
  const held = [0, 1].map(() => images(random, 4, compute))
  const trainer = new Trainer(method, sgd, { graph, views: () => [held[0]!.alias(), held[1]!.alias()] })
  const losses: number[] = []
  for (let step = 0; step < 6; ++step) {
    if (step === 2) native.resetPeakMemory('cpu')
    const result = trainer.step(step, 0.05)
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
  const input = Tensor.full([1000], 3).keep()
  for (let turn = 0; turn < 200; ++turn) {
    const graph = new Graph('cpu', () => scope(() => add(add(input, input), add(input, input))))
    for (let run = 0; run < 4; ++run) assert.is(graph.run().data()[turn], 12)
    assert.is(graph.plan!.launches, 3)
    graph.dispose()
  }
  Atomics.store(new Int32Array(stop), 0, 1)
  const [wrong] = (await once(worker, 'message')) as [number]
  await worker.terminate()
  input.dispose()
  assert.is(wrong, 0)
})

test.run()
