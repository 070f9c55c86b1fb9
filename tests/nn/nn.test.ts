import * as assert from 'uvu/assert'

import { evaluation, frameworkDefault, kaimingNormal } from '../../src/nn/layers.js'
import { allTensors, disposeState } from '../../src/nn/module.js'
import { Random } from '../../src/tensor/random.js'
import type { Backbone } from '../../src/nn/backbone.js'
import { ResNet, resnet, type ResNetDepth, resnetKind, type ResNetOptions } from '../../src/nn/resnet.js'
import { DenseCL } from '../../src/methods/densecl/model.js'
import { scope, Tensor } from '../../src/tensor/tensor.js'
import { storedShape } from '../../src/weights/layout.js'
import { hasTorch, noTorch, runPython } from '../support/python.js'
import { suite, testWhere, throwsError } from '../support/suite.js'

const test = suite('nn')

const build = (options: ResNetOptions): ResNet => new ResNet({ random: new Random(1), dtype: 'f32' }, options)

test('the parameters of the published model: 64,850,560 in both encoders, 23,508,032 in a backbone', () => {
  const backbone = build({ depth: 50 })
  const count = (tensors: Iterable<Tensor>): number => [...tensors].reduce((sum, tensor) => sum + tensor.size, 0)
  assert.is(count(backbone.state().parameters.values()), 23_508_032)
  assert.is([...allTensors(backbone.state())].length, 318)
  disposeState(backbone.state())
  const model = new DenseCL({ backbone: resnet({ depth: 50 }), neck: { hidden: 2048, featDim: 128 }, queueLength: 8, seed: 0 })
  assert.is(count(model.state().parameters.values()), 64_850_560)
  assert.is([...allTensors(model.state())].length, 974 - 318, 'less the alias of the backbone')
  model.dispose()
})

testWhere(hasTorch, noTorch, test, 'state names and shapes are those of torchvision, at every depth', () => {
  const program = `
import json, torchvision
states = {d: getattr(torchvision.models, f"resnet{d}")(weights=None).state_dict() for d in (18, 34, 50, 101)}
print(json.dumps({d: {k: list(v.shape) for k, v in state.items() if not k.startswith("fc.")} for d, state in states.items()}))`
  const expected = JSON.parse(runPython(program)) as Record<string, Record<string, number[]>>
  for (const [depth, shapes] of Object.entries(expected)) {
    const backbone = build({ depth: Number(depth) as ResNetDepth })
    const ours = Object.fromEntries([...allTensors(backbone.state())].map(([name, tensor]) => [name, storedShape(name, tensor)]))
    assert.equal(Object.keys(ours).sort(), Object.keys(shapes).sort())
    for (const [name, shape] of Object.entries(shapes)) assert.equal(ours[name], shape, `${depth} ${name}`)
    disposeState(backbone.state())
  }
})

test('maps have the strides of their stages; dilated stages keep the resolution (R50-D8)', () => {
  const sides = (options: ResNetOptions): number[] => {
    const backbone = build({ baseChannels: 4, ...options })
    const found = scope(() => backbone.stages(Tensor.zeros([1, 64, 64, 3]), evaluation).map((map) => map.shape[1]!))
    disposeState(backbone.state())
    return found
  }
  assert.equal(sides({ depth: 50 }), [32, 16, 8, 4, 2])
  assert.equal(sides({ depth: 50, strides: [1, 2, 1, 1], dilations: [1, 1, 2, 4], contractDilation: true }), [32, 16, 8, 8, 8])
  throwsError(() => build({ depth: 20 as ResNetDepth }), 'ARGUMENT', /18, 34, 50, 101/, /20/)
  throwsError(() => build({ depth: 18, strides: [1, 2, 0, 1] }), 'ARGUMENT', /strides/, /\[1,2,0,1\]/)
})

test('strides of its own belong to a ResNet, and a stride of 8 that it was trained at needs no dilation', () => {
  const made = (strides: number[], outputStride?: number): Backbone =>
    resnetKind.build({ random: new Random(1), dtype: 'f32' }, { depth: 18, baseChannels: 4, strides }, { outputStride })
  for (const [strides, outputStride, stride, options] of [
    [[1, 2, 2, 2], undefined, 32, { depth: 18, baseChannels: 4 }],
    [[1, 2, 1, 1], undefined, 8, { depth: 18, baseChannels: 4, strides: [1, 2, 1, 1] }],
    [[1, 2, 1, 1], 8, 8, { depth: 18, baseChannels: 4, strides: [1, 2, 1, 1] }],
    [[1, 2, 2, 1], 8, 8, { depth: 18, baseChannels: 4 }],
  ] as const) {
    const backbone = made([...strides], outputStride)
    assert.is(backbone.stride, stride)
    assert.equal(backbone.options, options)
    assert.is(backbone.description.includes('strides'), 'strides' in options)
    const side = scope(() => backbone.forward(Tensor.zeros([1, 64, 64, 3]), evaluation).shape[1])
    assert.is(side, 64 / stride)
    backbone.dispose()
  }
})

test('weights are drawn with the deviation of their rule', () => {
  const random = new Random(2)
  const deviation = (values: ArrayLike<number>): number => Math.sqrt(Array.from(values).reduce((sum, v) => sum + v * v, 0) / values.length)
  const near = (actual: number, expected: number): void => assert.ok(Math.abs(actual / expected - 1) < 0.03, `${actual} ${expected}`)
  near(deviation(kaimingNormal('fanIn')(random, [64, 3, 3, 16])), Math.sqrt(2 / (9 * 16)))
  near(deviation(kaimingNormal('fanOut')(random, [64, 3, 3, 16])), Math.sqrt(2 / (9 * 64)))
  const uniform = Array.from(frameworkDefault()(random, [200, 50]))
  near(deviation(uniform), 1 / Math.sqrt(50) / Math.sqrt(3))
  assert.ok(Math.max(...uniform.map(Math.abs)) <= 1 / Math.sqrt(50))
})

test('random streams: the same seed gives the same, neighbours are independent, draws are uniform', () => {
  const draws = (...seed: number[]): number[] => {
    const random = new Random(...seed)
    return Array.from({ length: 2000 }, () => random.uniform())
  }
  assert.equal(draws(1, 2), draws(1, 2))
  const correlation = (a: number[], b: number[]): number =>
    a.reduce((sum, v, i) => sum + (v - 0.5) * (b[i]! - 0.5), 0) / a.length / (1 / 12)
  for (const other of [draws(1, 3), draws(2, 2), draws(1), draws(1, 2, 0)]) assert.ok(Math.abs(correlation(draws(1, 2), other)) < 0.1)
  const bins = new Array<number>(10).fill(0)
  for (const value of draws(7)) bins[Math.floor(10 * value)]! += 1
  assert.ok(
    bins.every((count) => count > 140 && count < 260),
    bins.join(),
  )
  assert.equal([...new Random(5).permutation(9)].sort(), [0, 1, 2, 3, 4, 5, 6, 7, 8])
})

test.run()
