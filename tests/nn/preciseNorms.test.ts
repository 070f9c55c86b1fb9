import * as assert from 'uvu/assert'

import { noGrad } from '../../src/autograd/tape.js'
import { FasterRcnn } from '../../src/detection/fasterRcnn.js'
import { BatchNorm2d, evaluation, training } from '../../src/nn/layers.js'
import { allTensors } from '../../src/nn/module.js'
import { PreciseNorms } from '../../src/nn/preciseNorms.js'
import { ResNet } from '../../src/nn/resnet.js'
import { conv2d } from '../../src/ops/conv2d.js'
import { roiAlign } from '../../src/ops/roiAlign.js'
import { Random } from '../../src/tensor/random.js'
import { scope, Tensor } from '../../src/tensor/tensor.js'
import { suite, throwsError } from '../support/suite.js'

const test = suite('statistics of batch norms over a population')

/** Mean and unbiased variance of each channel, by their definitions in JavaScript. */
function statistics(x: Tensor): { mean: number[]; variance: number[] } {
  const [values, channels] = [x.data(), x.shape.at(-1)!]
  const rows = values.length / channels
  const sum = (of: (row: number) => number): number => Array.from({ length: rows }, (_, row) => of(row)).reduce((a, b) => a + b, 0)
  const mean = Array.from({ length: channels }, (_, c) => sum((row) => values[row * channels + c]!) / rows)
  return { mean, variance: mean.map((m, c) => sum((row) => (values[row * channels + c]! - m) ** 2) / (rows - 1)) }
}

const near = (actual: ArrayLike<number>, expected: readonly number[]): void => {
  assert.is(actual.length, expected.length)
  expected.forEach((value, i) =>
    assert.ok(Math.abs(actual[i]! - value) < 1e-10 * (1 + Math.abs(value)), `${actual[i]} for ${value} at ${i}`),
  )
}

test('means over batches of what the norms of a detector see, those on regions too; weights stay', () =>
  scope(() => {
    const build = { random: new Random(1), dtype: 'f64' as const }
    const backbone = new ResNet(build, { depth: 18, baseChannels: 4, blocks: [1, 1, 1, 1] })
    const anchors = { sizes: [16], ratios: [1], stride: 16, order: 'size' as const }
    const model = new FasterRcnn(build, backbone, { classes: 2, anchors, regionSize: 4 })
    const state = model.state()
    const random = new Random(2)
    // Batches of different sizes: each counts alike.
    const batches = [1, 3, 2].map((count, b) => {
      const [height, width] = [32 + 16 * b, 48]
      const x = Tensor.from(
        Float64Array.from({ length: count * height * width * 3 }, () => random.normal() + b),
        [count, height, width, 3],
        'f64',
      )
      const boxes = Float64Array.from(Array.from({ length: 2 * count }, () => [0, 0, 20 + random.below(20), 20 + random.below(12)]).flat())
      const images = Int32Array.from({ length: 2 * count }, (_, i) => Math.floor(i / 2))
      return { x, boxes, images }
    })
    const weights = [...state.parameters.values()].map((tensor) => Float64Array.from(tensor.data()))
    // The inputs of the first norm and of the one after the last stage, each batch by its own statistics.
    const seen = batches.map(({ x, boxes, images }) => {
      const [map] = model.features(x, training)
      const pooled = roiAlign(map, Tensor.from(boxes, [images.length, 4], 'f64'), Tensor.from(images, [images.length], 'i32'), {
        size: 4,
        scale: 1 / 16,
      })
      return [
        statistics(conv2d(x, state.parameters.get('backbone.conv1.weight')!, undefined, { stride: 2, padding: 3 })),
        statistics(backbone.last(pooled, training)),
      ]
    })
    const norms = new PreciseNorms(state)
    throwsError(() => norms.write(), 'ARGUMENT', /one batch or more/)
    for (const { x, boxes, images } of batches)
      norms.add((mode) => noGrad(() => scope(() => void model.classify(model.features(x, mode), { boxes, images }, mode))))
    assert.is(norms.batches, 3)
    norms.write()
    const mean = (values: number[][]): number[] => values[0]!.map((_, c) => values.reduce((sum, each) => sum + each[c]!, 0) / values.length)
    for (const [i, name] of ['backbone.bn1', 'roi_head.shared_head.norm'].entries()) {
      near(state.buffers.get(`${name}.running_mean`)!.data(), mean(seen.map((each) => each[i]!.mean)))
      near(state.buffers.get(`${name}.running_var`)!.data(), mean(seen.map((each) => each[i]!.variance)))
    }
    assert.equal(
      [...state.parameters.values()].map((tensor) => Float64Array.from(tensor.data())),
      weights,
    )
    for (const [, tensor] of allTensors(state)) tensor.dispose()
  }))

test('of one batch they are the batch’s own, whatever was there before, and the test then sees what the training saw', () =>
  scope(() => {
    const norm = new BatchNorm2d({ random: new Random(0), dtype: 'f64' }, 2)
    norm.runningMean.write(Float64Array.of(1e9, -3))
    const x = Tensor.from(
      Float64Array.from({ length: 4000 }, (_, i) => Math.sin(i) * 3 + 1),
      [1, 20, 100, 2],
      'f64',
    )
    const norms = new PreciseNorms(norm.state())
    let trained: Tensor | undefined
    norms.add((mode) => (trained = norm.forward(x, mode)))
    norms.write()
    const tested = norm.forward(x, evaluation).data()
    // Biased against unbiased variance: 2000 against 1999 values.
    trained!.data().forEach((value, i) => assert.ok(Math.abs(value - tested[i]!) < 1e-3, `${value} and ${tested[i]}`))
    for (const [, tensor] of allTensors(norm.state())) tensor.dispose()
  }))

test.run()
