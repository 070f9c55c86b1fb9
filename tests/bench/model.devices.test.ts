/** The model beside the kernels: the splits of a weight gradient, seen by the memory of its partial sums; the calls of a step. */
import fc from 'fast-check'
import * as assert from 'uvu/assert'

import { gpus, splitsOf, tiles } from '../../src/bench/model.js'
import { bytesOf, type Call, detectionCalls, stepCalls } from '../../src/bench/step/calls.js'
import { Machine } from '../../src/bench/step/machine.js'
import { costsOf, type StepTimes, stepTimes } from '../../src/bench/step/predict.js'
import type { DetectorForm } from '../../src/detection/detector.js'
import { pointwiseWindows } from '../../src/ops/tuning.js'
import { native, runNative } from '../../src/tensor/native.js'
import { scope, Tensor, withDevice } from '../../src/tensor/tensor.js'
import { deviceTraits } from '../../src/tensor/traits.js'
import { setCapability, simulated } from '../support/capability.js'
import { device, thorough } from '../support/devices.js'
import { runCli, suite, testWhere } from '../support/suite.js'

const test = suite(`model on ${device}`, device)
const { multiprocessors } = deviceTraits(device)

testWhere(
  simulated,
  'the multiprocessors of another device are not known here',
  test,
  'weight gradients are split as the model splits them, by kernels of Ampere and of Hopper',
  () => {
    const shape = fc.record({
      n: fc.integer({ min: 1, max: 8 }),
      side: fc.integer({ min: 8, max: 48 }),
      c: fc.constantFrom(64, 192),
      o: fc.constantFrom(8, 72),
      tile: fc.constantFrom(1, 2, 3, 4, 5, 6),
    })
    try {
      fc.assert(
        fc.property(shape, ({ n, side, c, o, tile: id }) => {
          const hopper = id > 3
          setCapability(hopper ? 90 : 80)
          const tile = tiles.find((one) => one.id === id)!
          const [m, width] = hopper ? [tile.n, tile.m] : [tile.m, tile.n] // Hopper's lie on their side
          const pixels = n * side * side
          const { count } = splitsOf(
            pixels,
            Math.ceil(o / m) * Math.ceil(c / width),
            (hopper ? 1 : 2) * multiprocessors,
            hopper ? 64 : 32,
            o * c,
          )
          withDevice(device, () =>
            scope(() => {
              const tensors = {
                dweight: Tensor.empty([o, 1, 1, c], 'f32'),
                dy: Tensor.zeros([n, side, side, o], 'bf16'),
                x: Tensor.zeros([n, side, side, c], 'bf16'),
              }
              native.resetPeakMemory(device)
              const before = native.memory(device).live
              runNative('conv2dBackwardWeight', tensors, { ...pointwiseWindows, tile: id, tf32: false, relu: false, splits: 0 })
              const partial = native.memory(device).peak - before
              const results = o * c * 4
              assert.is(Math.round(partial / results), count > 1 ? count : 0, `${partial} bytes of partial sums, ${results} each`)
            }),
          )
        }),
        { numRuns: thorough ? 15 : 4 },
      )
    } finally {
      setCapability(80)
    }
  },
)

testWhere(
  simulated && thorough,
  'calls of a step are taken from simt',
  test,
  'the calls of a batch are found from those of one image and two',
  () => {
    const calls = stepCalls({ level: 'epilogue', depth: 18, image: 64, queue: 256, hidden: 64 })
    const [two, three] = [calls(2), calls(3)]
    assert.is(three.length, two.length)
    const pixels = (of: readonly Call[]): number =>
      of.filter(({ op }) => op === 'conv2d').reduce((sum, { tensors }) => sum + tensors.y!.bytes, 0)
    assert.is(pixels(three) / 3, pixels(two) / 2)
    assert.ok(two.filter(({ op }) => op === 'conv2d').length > 40 && two.filter(({ op }) => op === 'batchNormTrain').length === 40)
    for (const { tensors, lists } of two)
      for (const tensor of [...Object.values(tensors), ...Object.values(lists).flat()])
        if (tensor !== undefined) assert.ok(tensor.bytes >= 0 && tensor.shape.every((size) => Number.isInteger(size) && size > 0))
    // A larger batch passes more bytes and takes longer on every GPU.
    const bytes = (of: readonly Call[]): number => of.reduce((sum, call) => sum + bytesOf(call), 0)
    assert.ok(bytes(three) > bytes(two))
    for (const gpu of Object.values(gpus)) {
      const time = (of: readonly Call[]): number => stepTimes(of.flatMap((call) => costsOf(new Machine(gpu, 'now'), call))).milliseconds
      assert.ok(time(calls(64)) > time(two))
    }
  },
)

testWhere(
  simulated && thorough,
  'calls of a step are taken from simt',
  test,
  'keys in FP8 take the convolutions of 128 channels of one encoder, and less time',
  () => {
    const shape = { level: 'epilogue', depth: 18, image: 64, queue: 256, hidden: 64 } as const
    const [plain, eighth] = [shape, { ...shape, keyPrecision: 'fp8' } as const].map((each) => stepCalls(each)(256)) as [Call[], Call[]]
    const count = (of: readonly Call[], op: string): number => of.filter((call) => call.op === op).length
    // Of a ResNet-18's 20 convolutions the stem, the four of 64 channels, and the two that read these stay in bf16.
    assert.equal([count(plain, 'conv2dE4m3'), count(eighth, 'conv2dE4m3')], [0, 13])
    assert.is(count(plain, 'conv2d') - count(eighth, 'conv2d'), 13)
    const machine = new Machine(gpus.H100!, 'now')
    const time = (of: readonly Call[]): number => stepTimes(of.flatMap((call) => costsOf(machine, call))).milliseconds
    assert.ok(time(eighth) < time(plain), `${time(eighth)} ms instead of ${time(plain)}`)
  },
)

testWhere(
  simulated && thorough,
  'calls of a step are taken from simt',
  test,
  "a detector's step has each convolution three times but the first, and grows with its images",
  () => {
    for (const form of ['c4', 'fpn'] as const) checkDetectionCalls(form)
  },
)

function checkDetectionCalls(form: DetectorForm): void {
  const [one, two] = [detectionCalls(1, form), detectionCalls(2, form)]
  const count = (op: string): number => one.filter((call) => call.op === op).length
  // ResNet-50's 53, and those of the pyramid and the heads; nothing wants the gradient of images.
  assert.equal([count('conv2dBackwardWeight'), count('conv2dBackwardInput')], [count('conv2d'), count('conv2d') - 1])
  // Of a pyramid boxes and masks are taken from each of four maps.
  for (const op of ['roiAlign', 'roiAlignBackward']) assert.is(count(op), form === 'c4' ? 1 : 8, op)
  assert.equal([count('nms'), count('topK')], [1, form === 'c4' ? 1 : 5])
  assert.equal(
    two.map(({ op }) => op).filter((op) => op !== 'fill'),
    one.map(({ op }) => op).filter((op) => op !== 'fill'),
  )
  const machine = new Machine(gpus.H100!, 'now')
  const [short, long] = [one, two].map((calls) => stepTimes(calls.flatMap((call) => costsOf(machine, call))).milliseconds)
  assert.ok(long! > 1.5 * short! && long! < 2.1 * short!, `${short} ms, then ${long} ms`)
}

testWhere(
  simulated && thorough,
  'calls of a step are taken from simt',
  test,
  'bench step prints every kernel of a step, and their sum',
  () => {
    const { code, out, err } = runCli(['bench', 'step', 'pointwise', '--batch', '32', '--json'])
    assert.is(code, 0, err)
    const { predicted, level } = JSON.parse(out) as { level: string; predicted: Record<string, StepTimes> }
    assert.is(level, 'pointwise')
    assert.equal(Object.keys(predicted), Object.keys(gpus))
    for (const { milliseconds, kernels } of Object.values(predicted)) {
      assert.ok(Math.abs(kernels.reduce((sum, row) => sum + row.milliseconds, 0) - milliseconds) < 1e-9 * milliseconds)
      assert.ok(kernels.every((row) => row.milliseconds >= row.floor && row.launches > 0))
      for (const kernel of ['batchNormTrain: statistics', 'batchNormBackward: reduce', 'infoNce', 'sgd'])
        assert.ok(
          kernels.some((row) => row.kernel === kernel),
          kernel,
        )
    }
    const widest = runCli(['bench', 'step', 'pointwise', '--batch', '32', '--json', '--widest'])
    assert.is(widest.code, 0, widest.err)
    const with6 = (JSON.parse(widest.out) as { predicted: Record<string, StepTimes> }).predicted
    assert.equal(Object.keys(with6), ['H100', 'H200'])
    for (const [gpu, { milliseconds }] of Object.entries(with6)) assert.ok(milliseconds < predicted[gpu]!.milliseconds, gpu)
  },
)

test.run()
