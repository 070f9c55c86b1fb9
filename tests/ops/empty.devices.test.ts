/** Axes of no elements: an empty batch goes through, an empty image, channel or kernel is refused before any kernel divides by it. */
import * as assert from 'uvu/assert'

import { valueAndGradients } from '../../src/autograd/tape.js'
import { batchNorm } from '../../src/ops/batchNorm.js'
import { conv2d } from '../../src/ops/conv2d.js'
import { linear } from '../../src/ops/linear.js'
import { adaptiveAvgPool2d, avgPool2d, maxPool2d } from '../../src/ops/pool2d.js'
import { sum } from '../../src/ops/reduce.js'
import { resizeBilinear } from '../../src/ops/resizeBilinear.js'
import { upsample2d } from '../../src/ops/upsample2d.js'
import { scope, type Shape, sizeOf, Tensor, withDevice } from '../../src/tensor/tensor.js'
import { device } from '../support/devices.js'
import { suite, throwsError } from '../support/suite.js'

const test = suite(`empty axes on ${device}`, device)

const imageOps: Readonly<Record<string, (x: Tensor) => Tensor>> = {
  conv2d: (x) => conv2d(x, Tensor.full([4, 3, 3, x.shape[3]!], 1), undefined, { padding: 1 }),
  'conv2d in groups': (x) => conv2d(x, Tensor.full([4, 3, 3, x.shape[3]! / 2], 1), undefined, { padding: 1, groups: 2 }),
  maxPool2d: (x) => maxPool2d(x, { kernel: 2, padding: 1 }),
  avgPool2d: (x) => avgPool2d(x, { kernel: 2, padding: 1 }),
  adaptiveAvgPool2d: (x) => adaptiveAvgPool2d(x, 2),
  resizeBilinear: (x) => resizeBilinear(x, [3, 5]),
  upsample2d: (x) => upsample2d(x, 2, 'bilinear'),
}

const gradients = (run: (...inputs: Tensor[]) => Tensor, ...shapes: Shape[]): Tensor[] => {
  const inputs = shapes.map((shape) => Tensor.full(shape, 1))
  return valueAndGradients(() => sum(run(...inputs)), inputs).gradients
}

test('a batch of no images or rows gives none, and gradients of 0', () => {
  withDevice(device, () =>
    scope(() => {
      for (const [name, run] of Object.entries(imageOps)) {
        const y = run(Tensor.zeros([0, 4, 4, 2]))
        assert.is(y.shape[0], 0, name)
        assert.is(y.data().length, 0, name)
        assert.equal(gradients(run, [0, 4, 4, 2])[0]!.shape, [0, 4, 4, 2], name)
      }
      const convolved = gradients((x, weight, bias) => conv2d(x, weight, bias), [0, 4, 4, 2], [3, 1, 1, 2], [3])
      const mapped = gradients((x, weight, bias) => linear(x, weight, bias), [0, 2], [3, 2], [3])
      for (const [, ...ofParameters] of [convolved, mapped])
        for (const gradient of ofParameters) assert.equal([...gradient.data()], Array<number>(sizeOf(gradient.shape)).fill(0))
    }),
  )
})

test('other empty axes are refused by name and shape', () => {
  withDevice(device, () =>
    scope(() => {
      for (const run of Object.values(imageOps))
        for (const shape of [
          [1, 0, 4, 2],
          [1, 4, 0, 2],
          [1, 4, 4, 0],
        ])
          throwsError(() => run(Tensor.zeros(shape)), 'SHAPE', /expected x without an empty axis/, `f32[${shape.join(',')}]`)
      const x = Tensor.zeros([1, 4, 4, 2])
      for (const shape of [
        [0, 3, 3, 2],
        [1, 0, 3, 2],
        [1, 3, 0, 2],
      ])
        throwsError(() => conv2d(x, Tensor.zeros(shape)), 'SHAPE', /conv2d: expected weight without an empty axis/, shape.join(','))
      throwsError(() => conv2d(x, Tensor.zeros([2, 0, 3, 1]), undefined, { groups: 2 }), 'SHAPE', /weight without an empty axis/)
      throwsError(() => linear(Tensor.zeros([2, 0]), Tensor.zeros([3, 0])), 'SHAPE', /linear: expected weight without an empty axis/)
      throwsError(() => linear(Tensor.zeros([2, 3]), Tensor.zeros([0, 3])), 'SHAPE', /linear: expected weight without an empty axis/)
      const none = Tensor.zeros([0])
      throwsError(() => batchNorm(Tensor.zeros([2, 2, 2, 0]), none, none, none, none, { train: true }), 'SHAPE', /one channel or more/)
    }),
  )
})

test.run()
