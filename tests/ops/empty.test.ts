/** Ops of tensors without elements: each gives what follows from its definition, or refuses by its name and the shape. */
import * as assert from 'uvu/assert'

import { Tape } from '../../src/autograd/tape.js'
import { conv2d } from '../../src/ops/conv2d.js'
import { groupedConv2d } from '../../src/ops/groupedConv2d.js'
import { layerNorm } from '../../src/ops/layerNorm.js'
import { linear } from '../../src/ops/linear.js'
import { infoNce } from '../../src/ops/losses.js'
import { matmul } from '../../src/ops/matmul.js'
import { permute } from '../../src/ops/permute.js'
import { avgPool2d, maxPool2d } from '../../src/ops/pool2d.js'
import { max, sum } from '../../src/ops/reduce.js'
import { resizeBilinear } from '../../src/ops/resizeBilinear.js'
import { denseMatch, l2Normalize } from '../../src/ops/similarity.js'
import { argmax, softmax } from '../../src/ops/softmax.js'
import { runNative } from '../../src/tensor/native.js'
import { scope, type Shape, Tensor } from '../../src/tensor/tensor.js'
import { suite, throwsError } from '../support/suite.js'

const test = suite('ops of nothing')
const zeros = (...shape: number[]): Tensor => Tensor.zeros(shape)
const windows = { strideH: 1, strideW: 1, paddingH: 0, paddingW: 0, dilationH: 1, dilationW: 1 }

const refused: [string, RegExp, () => unknown][] = [
  ['conv2d without channels', /^conv2d: .*\[1,4,4,0\]/, () => conv2d(zeros(1, 4, 4, 0), zeros(2, 1, 1, 0), undefined, {})],
  ['conv2d without rows', /^conv2d: /, () => conv2d(zeros(1, 0, 4, 3), zeros(2, 1, 1, 3), undefined, { padding: 1 })],
  ['conv2d without outputs', /^conv2d: .*\[0,1,1,3\]/, () => conv2d(zeros(1, 4, 4, 3), zeros(0, 1, 1, 3), undefined, {})],
  ['linear without features', /^linear: .*\[(2|3),0\]/, () => linear(zeros(2, 0), zeros(3, 0))],
  [
    'groupedConv2d without channels',
    /^conv2d: expected x without an empty axis/,
    () => groupedConv2d(zeros(1, 4, 4, 0), zeros(2, 1, 1, 0), undefined, { groups: 2 }),
  ],
  ['resizeBilinear of an empty image', /^resizeBilinear: .*\[1,0,0,3\]/, () => resizeBilinear(zeros(1, 0, 0, 3), [2, 2])],
  ['maxPool2d without rows', /^maxPool2d: .*\[1,0,3,4\]/, () => maxPool2d(zeros(1, 0, 3, 4), { kernel: 2, padding: 1 })],
  ['avgPool2d without columns', /^avgPool2d: .*\[1,3,0,4\]/, () => avgPool2d(zeros(1, 3, 0, 4), { kernel: 2, padding: 1 })],
  ['layerNorm without channels', /^layerNorm: .*\[2,0\]/, () => layerNorm(zeros(2, 0))],
  ['l2Normalize without channels', /^l2Normalize: .*\[2,0\]/, () => l2Normalize(zeros(2, 0))],
  ['denseMatch without keys', /^denseMatch: .*\[1,0,3\]/, () => denseMatch(zeros(1, 2, 3), zeros(1, 0, 3))],
  ['infoNce without negatives', /^infoNce: .*\[0,3\]/, () => infoNce(zeros(2, 3), zeros(2, 3), zeros(0, 3), 0.2)],
  ['max of nothing', /^max: /, () => max(zeros(2, 0), { axes: 1 })],
  ['argmax of nothing', /^argmax: /, () => argmax(zeros(2, 0))],
]
for (const [name, message, run] of refused)
  test(`${name} is refused`, () => {
    scope(() => throwsError(run, 'SHAPE', message))
  })

test('an order that is no permutation is refused', () => {
  for (const order of [
    [3, 3, 3, 3],
    [0, 1, 2, -2],
    [0, 1, 2, 9],
    [0, 1, 2],
    [0, 1, 2, 2.5],
  ])
    scope(() => throwsError(() => permute(zeros(1, 1, 1, 4), order), 'ARGUMENT', /^permute: /))
})

test('what follows from the definition is given', () => {
  const shapes = (run: () => Tensor): Shape => scope(() => run().shape)
  assert.equal(
    shapes(() => conv2d(zeros(0, 4, 4, 3), zeros(2, 3, 3, 3), undefined, {})),
    [0, 2, 2, 2],
  )
  assert.equal(
    shapes(() => softmax(zeros(2, 0))),
    [2, 0],
  )
  assert.equal(
    shapes(() => maxPool2d(zeros(0, 4, 4, 3), { kernel: 2 })),
    [0, 2, 2, 3],
  )
  scope(() => {
    assert.equal([...matmul(zeros(2, 0), zeros(0, 3)).data()], [0, 0, 0, 0, 0, 0])
    assert.equal([...sum(zeros(2, 0), { axes: 1 }).data()], [0, 0])
  })
})

test('infoNce of NaN is NaN', () => {
  scope(() => {
    const [query, other] = [Tensor.full([17, 3], NaN), Tensor.full([17, 3], 1)]
    const tape = new Tape().watch([query])
    const loss = tape.record(() => infoNce(query, other, Tensor.full([40, 3], 0.5), 0.2).loss)
    tape.backward(loss, [query])
    assert.ok(Number.isNaN(loss.item()))
  })
})

test('native ops refuse places that lie outside of their tensors', () => {
  scope(() => {
    const pool = { kernelH: 2, kernelW: 2, strideH: 2, strideW: 2, paddingH: 0, paddingW: 0 }
    for (const place of [-1, 4, 2 ** 31 - 1])
      throwsError(
        () =>
          runNative(
            'maxPool2dBackward',
            { dx: zeros(1, 4, 4, 1), dy: zeros(1, 2, 2, 1), index: Tensor.full([1, 2, 2, 1], place, 'i32') },
            pool,
          ),
        'RANGE',
        /maxPool2dBackward: index -?\d+ is no tap/,
      )
    const padded = { ...pool, paddingH: 3, paddingW: 0 }
    const y = zeros(1, 4, 2, 1)
    throwsError(
      () => runNative('maxPool2d', { y, index: Tensor.zeros(y.shape, 'i32'), x: zeros(1, 4, 4, 1) }, { ...padded, relu: false }),
      'ARGUMENT',
      /maxPool2d: expected padding of at most half the kernel/,
    )
    const copy = { yOffset: 0, xOffset: 0 }
    const big = 2 ** 32
    throwsError(
      () => runNative('copyStrided', { y: zeros(4), x: zeros(4) }, { ...copy, shape: [big + 1], yStrides: [big], xStrides: [big] }),
      'SHAPE',
      /copyStrided: expected shape/,
    )
    throwsError(
      () => runNative('copyStrided', { y: zeros(4), x: zeros(4) }, { ...copy, shape: [2], yStrides: [1], xStrides: [4] }),
      'RANGE',
      /copyStrided: expected places inside of x/,
    )
    throwsError(() => runNative('binary', { y: zeros(), a: zeros(0), b: zeros() }, { kind: 0 }), 'SHAPE', /does not broadcast/)
    throwsError(() => runNative('scale', { y: zeros(2), x: zeros(2), factor: zeros(0) }, { number: 1 }), 'SHAPE', /factor of one element/)
    throwsError(
      () =>
        runNative('groupedConv2d', { y: zeros(1, 4, 4, 2), x: zeros(1, 4, 4, 2), weight: zeros(2, 3, 3, 2) }, { ...windows, groups: 1 }),
      'SHAPE',
      /groupedConv2d: expected y of 2x2 windows/,
    )
  })
})

test('an image smaller than a kernel has no windows, and gives no gradients', () => {
  scope(() => {
    const [y, x, weight] = [zeros(2, 0, 0, 5), Tensor.full([2, 2, 2, 16], 7), Tensor.full([5, 3, 3, 16], 7)]
    const numbers = { ...windows, tile: 0, tf32: false }
    runNative('conv2d', { y, x, weight }, { ...numbers, relu: false })
    runNative('conv2dBackwardInput', { dx: x, dy: y, weight }, numbers)
    runNative('conv2dBackwardWeight', { dweight: weight, dy: y, x }, { ...numbers, relu: false, splits: 0 })
    for (const gradient of [x, weight]) assert.ok(gradient.data().every((value) => value === 0))
  })
})

test.run()
