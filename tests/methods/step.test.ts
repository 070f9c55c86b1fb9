/** The method's own properties: what moves, what does not, in which order. Parity with PyTorch is in golden.test.ts. */
import * as assert from 'uvu/assert'

import { embeddingSpread } from '../../src/methods/spread.js'
import { chanceLoss, matchHealth } from '../../src/methods/densecl/health.js'
import { resnet } from '../../src/nn/resnet.js'
import { densecl, describeStep } from '../../src/methods/densecl/method.js'
import { DenseCL, Queue } from '../../src/methods/densecl/model.js'
import { type DenseCLObserved, denseclStep, type StepOptions } from '../../src/methods/densecl/step.js'
import { resolveConfig } from '../../src/methods/index.js'
import type { StepResult } from '../../src/methods/method.js'
import { allTensors } from '../../src/nn/module.js'
import { Random } from '../../src/tensor/random.js'
import { Sgd } from '../../src/optim/sgd.js'
import { settingsOf } from '../../src/run/options.js'
import { scope, Tensor } from '../../src/tensor/tensor.js'
import { relativeDifference } from '../support/gradients.js'
import { suite, throwsError } from '../support/suite.js'

const test = suite('densecl')

const build = (more: { queueLength?: number; numGrid?: number } = {}): DenseCL =>
  new DenseCL({
    backbone: resnet({ depth: 18, baseChannels: 4 }),
    neck: { hidden: 16, featDim: 8, numGrid: more.numGrid },
    queueLength: more.queueLength ?? 20,
    seed: 1,
    dtype: 'f64',
  })

function step(model: DenseCL, more: Partial<StepOptions> = {}, images = 4): StepResult<DenseCLObserved> {
  return scope(() => {
    const random = new Random(3)
    const view = (): Tensor =>
      Tensor.from(
        Float64Array.from({ length: images * 64 * 64 * 3 }, () => random.normal()),
        [images, 64, 64, 3],
        'f64',
      )
    return denseclStep(model, [view(), view()], {
      temperature: 0.2,
      denseWeight: 0.5,
      keyMomentum: 0.99,
      normGroups: 1,
      keyOrder: [0, 1, 2, 3].slice(0, images),
      ...more,
    })
  })
}

/** What a step leaves to be read, of one image and one position. */
const readings = () => {
  const of = (...numbers: number[]) => ({ values: Float32Array.from(numbers), shape: [1, numbers.length] })
  const [one, three] = [of(1), of(1, 0, 1)]
  const vector = of(0.6, 0.8)
  const losses = { loss: one, lossGlobal: one, lossDense: one, statisticsGlobal: three, statisticsDense: three }
  const all = { ...losses, q: vector, positionMeans: vector, imageMeans: vector }
  return { ...all, index: { values: Int32Array.of(0), shape: [1, 1] } }
}

const values = (model: DenseCL): Map<string, ArrayLike<number>> =>
  new Map([...allTensors(model.state())].map(([name, tensor]) => [name, tensor.data()]))
const free = (result: StepResult<DenseCLObserved>): void => result.dispose()

test('both encoders start equal; key parameters change only by the moving average, query ones only by the optimiser', () => {
  const model = build()
  const sgd = new Sgd(model.parameters(), { momentum: 0.9, weightDecay: 0 })
  const [before] = [values(model)]
  for (const name of model.parameters().keys()) assert.equal(before.get(`encoder_k.${name}`), before.get(`encoder_q.${name}`))
  const first = step(model)
  const afterStep = values(model)
  for (const name of model.parameters().keys()) {
    assert.equal(afterStep.get(`encoder_q.${name}`), before.get(`encoder_q.${name}`), `${name} waits for the optimiser`)
    // Equal networks average to themselves, to rounding.
    assert.ok(relativeDifference(afterStep.get(`encoder_k.${name}`)!, before.get(`encoder_k.${name}`)!) < 1e-15)
  }
  sgd.step(first.gradients, 0.1)
  free(first)
  const afterUpdate = values(model)
  free(step(model))
  const afterSecond = values(model)
  for (const name of model.parameters().keys()) {
    const [k, q] = [afterUpdate.get(`encoder_k.${name}`)!, afterUpdate.get(`encoder_q.${name}`)!]
    const expected = Array.from(k, (value, i) => 0.99 * value + 0.01 * q[i]!)
    assert.ok(relativeDifference(afterSecond.get(`encoder_k.${name}`)!, expected) < 1e-14, name)
  }
  sgd.dispose()
  model.dispose()
})

test('every parameter has a gradient; with dense weight 0 the dense head has none and the loss is the global one', () => {
  const model = build()
  const both = step(model)
  both.gradients.forEach((gradient, i) =>
    assert.ok(
      gradient.data().some((value) => value !== 0),
      [...model.parameters().keys()][i],
    ),
  )
  const moco = step(model, { denseWeight: 0 })
  const { loss, lossGlobal, lossDense } = describeStep(moco.readings)
  assert.is(lossDense, 0)
  assert.is(loss, lossGlobal)
  ;[...model.parameters().keys()].forEach((name, i) => {
    if (name.includes('mlp2'))
      assert.ok(
        moco.gradients[i]!.data().every((value) => value === 0),
        name,
      )
  })
  free(both)
  free(moco)
  model.dispose()
})

test('MoCo v2 is the step of dense weight 0 to the bit, without the dense head: its queue stays, and less is kept', () => {
  const taken = (more: Partial<StepOptions>) => {
    const model = build()
    const [start, result] = [values(model), step(model, { denseWeight: 0, ...more })]
    const [{ loss, accuracyGlobal, accuracyDense }, after] = [describeStep(result.readings), values(model)]
    const gradients = result.gradients.map((gradient) => Array.from(gradient.data()))
    free(result)
    model.dispose()
    return { loss, accuracyGlobal, accuracyDense, gradients, start, after, savedBytes: result.savedBytes }
  }
  const [whole, moco] = [taken({}), taken({ heads: 'global' })]
  assert.equal([moco.loss, moco.accuracyGlobal], [whole.loss, whole.accuracyGlobal])
  moco.gradients.forEach((gradient, i) => assert.ok(gradient.every((value, at) => value === whole.gradients[i]![at])))
  assert.equal(moco.after.get('queue'), whole.after.get('queue'))
  assert.equal(moco.after.get('queue2'), moco.start.get('queue2'))
  assert.not.equal(whole.after.get('queue2'), moco.start.get('queue2'))
  assert.is(moco.accuracyDense, undefined)
  assert.ok(moco.savedBytes < whole.savedBytes)
})

test('the queue holds unit vectors, is read before it is written, and wraps at any batch size', () => {
  const model = build({ queueLength: 6 })
  const start = values(model)
  free(step(model))
  const once = values(model)
  free(step(model))
  const twice = values(model)
  const row = (of: Map<string, ArrayLike<number>>, i: number): number[] => Array.from(of.get('queue')!).slice(8 * i, 8 * i + 8)
  for (let i = 4; i < 6; ++i) assert.equal(row(once, i), row(start, i), 'not reached yet')
  for (let i = 0; i < 4; ++i) assert.not.equal(row(once, i), row(start, i))
  for (let i = 2; i < 4; ++i) assert.equal(row(twice, i), row(once, i), 'kept over the wrap')
  for (const i of [0, 1, 4, 5]) assert.not.equal(row(twice, i), row(once, i))
  for (let i = 0; i < 6; ++i) assert.ok(Math.abs(Math.hypot(...row(twice, i)) - 1) < 1e-12)
  assert.equal(Array.from(twice.get('queue_ptr')!), [2])
  assert.equal(Array.from(twice.get('queue2_ptr')!), [2])
  model.dispose()
})

test('enqueue at every pointer and batch leaves the last K keys in order', () => {
  for (const length of [1, 5, 7]) {
    const queue = new Queue(new Random(1), length, 1, 'f64')
    const all: number[] = []
    for (const batch of [1, 2, 3, 5, 8, 16, 4]) {
      const keys = Array.from({ length: batch }, () => all.push(all.length))
      scope(() => queue.enqueue(Tensor.from(keys, [batch, 1], 'f64')))
      const held = [...queue.keys.data()].filter((value) => value >= 1 && Number.isInteger(value)).sort((a, b) => a - b)
      const last = all.map((_, i) => i + 1).slice(-length)
      assert.equal(held.slice(-Math.min(length, all.length)), last.slice(-Math.min(length, all.length)))
      assert.is(queue.pointer.item(), all.length % length)
    }
    throwsError(() => scope(() => queue.enqueue(Tensor.zeros([2, 3], 'f64'))), 'SHAPE', /\[B,1\]/, /f64\[2,3\]/)
    queue.keys.dispose()
    queue.pointer.dispose()
  }
})

test('shuffling the key batch changes nothing with one group, and statistics with two', () => {
  const losses = (order: number[], normGroups: number): number => {
    const model = build()
    const result = step(model, { keyOrder: order, normGroups })
    const { loss } = describeStep(result.readings)
    free(result)
    model.dispose()
    return loss
  }
  const plain = losses([0, 1, 2, 3], 1)
  assert.ok(Math.abs(losses([2, 0, 3, 1], 1) - plain) < 1e-9)
  assert.ok(Math.abs(losses([2, 0, 3, 1], 2) - losses([0, 1, 2, 3], 2)) > 1e-6)
})

test('a grid pools embeddings and matched features alike', () => {
  const model = build({ numGrid: 1 })
  const result = step(model)
  assert.is(describeStep(result.readings).samePosition, 1)
  free(result)
  model.dispose()
})

test('two runs of a step give the same bits', () => {
  const run = (): Map<string, ArrayLike<number>> => {
    const model = build()
    const sgd = new Sgd(model.parameters(), { momentum: 0.9, weightDecay: 1e-4 })
    for (let i = 0; i < 2; ++i) {
      const result = step(model)
      sgd.step(result.gradients, 0.1)
      free(result)
    }
    const state = values(model)
    sgd.dispose()
    model.dispose()
    return state
  }
  assert.equal(run(), run())
})

test('health: spread is near 1 for random directions and 0 for one', () => {
  scope(() => {
    const random = new Random(4)
    const { keys, pointer } = new Queue(random, 500, 32, 'f64')
    assert.ok(Math.abs(embeddingSpread(keys.data(), keys.shape[1]!) - 1) < 0.05)
    assert.is(embeddingSpread(new Float32Array(20).fill(0.5), 4), 0)
    keys.dispose()
    pointer.dispose()
  })
  assert.ok(Math.abs(chanceLoss(65536) - 11.0904) < 1e-4)
})

test('health: matches are counted for each image by itself, and the share of the queue that is filled ends at 1', () => {
  const [images, positions] = [3, 4]
  // All at their own place; all at one; two and two, of which the first and the last at their own.
  const matches = Int32Array.of(0, 1, 2, 3, 2, 2, 2, 2, 0, 0, 3, 3)
  assert.equal(matchHealth(matches, positions), { samePosition: (4 + 1 + 2) / 12, distinctMatches: (4 + 1 + 2) / 12 })
  for (let n = 0; n < images; ++n) {
    const shares = [
      [1, 1],
      [0.25, 0.25],
      [0.5, 0.5],
    ][n]!
    const { samePosition, distinctMatches } = matchHealth(matches.subarray(n * positions, (n + 1) * positions), positions)
    assert.equal([samePosition, distinctMatches], shares)
  }
  const config = resolveConfig(settingsOf({ queueLength: 20, batchSize: 4, depth: 18, baseChannels: 4, hidden: 16, featDim: 8 }, 'test'))
  const built = densecl.build(config, { backbone: resnet({ depth: 18, baseChannels: 4 }), compute: 'f32' })
  const fills = [0, 1, 2, 5, 9].map((step) => built.describe(readings(), step).queueFill)
  assert.equal(fills, [0, 0.2, 0.4, 1, 1])
  built.dispose()
})

test.run()
