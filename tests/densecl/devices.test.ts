/** Whole training steps on the device under test, against PyTorch in float64, and the gradients of a network against the CPU's. */
import { existsSync } from 'node:fs'
import { join } from 'node:path'

import * as assert from 'uvu/assert'

import { Tape } from '../../src/autograd/tape.js'
import { BatchNorm2d, Conv2d, convNorm, kaimingNormal, Linear } from '../../src/nn/layers.js'
import { disposeState } from '../../src/nn/module.js'
import { Random } from '../../src/nn/random.js'
import { reshape } from '../../src/ops/elementwise.js'
import { adaptiveAvgPool2d } from '../../src/ops/pool2d.js'
import { packageRoot } from '../../src/tensor/native.js'
import { type FloatDType, scope, Tensor, withDevice } from '../../src/tensor/tensor.js'
import { device, thorough } from '../support/devices.js'
import { relativeDistance } from '../support/gradients.js'
import { goldenRows } from '../support/golden.js'
import { suite, testWhere } from '../support/suite.js'

const test = suite(`steps on ${device}`, device)

function check(folder: string): void {
  let rows = 0
  for (const { name, dtype, error, tolerance } of goldenRows(folder, device)) {
    assert.ok(error <= tolerance, `${name} ${dtype}: relative error ${error}, allowed ${tolerance}`)
    rows += 1
  }
  assert.ok(rows >= 4, `${rows} rows`)
}

test('the golden step of this repository', () => check(join(packageRoot, 'tests', 'fixtures', 'golden')))

const shared = join(packageRoot, '..', 'shared', 'golden')
if (thorough) testWhere(existsSync(shared), 'the large golden files are not here', test, 'the large golden files', () => check(shared))

/** Two convolutions with batch norm, a residual, pooling and a linear layer: everything that mixed precision touches, and shallow. */
function gradientsOf(compute: FloatDType, where: string): Float32Array {
  return scope(() =>
    withDevice(where, () => {
      const random = new Random(5)
      const build = { random, dtype: 'f32', compute } as const
      const conv = (from: number): Conv2d => new Conv2d(build, from, 16, 3, { padding: 1, fill: kaimingNormal('fanIn') })
      const [first, second, head] = [conv(8), conv(16), new Linear(build, 16, 8, kaimingNormal('fanIn'))]
      const norms = [new BatchNorm2d(build, 16), new BatchNorm2d(build, 16)] as const
      const states = [first, second, head, ...norms].map((module) => module.state())
      const draw = (shape: number[]): Tensor => Tensor.from(Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, () => random.normal()), shape, 'f32', 'cpu').to('bf16')
      const [x, cotangent] = [draw([8, 12, 12, 8]), draw([8, 8])].map((tensor) => tensor.to('f32').to(compute, where)) as [Tensor, Tensor]
      const watched = states.flatMap(({ parameters, copies }) => [...parameters].map(([name, parameter]) => copies.get(name) ?? parameter))
      const tape = new Tape().watch(watched)
      const y = tape.record(() => {
        const mode = { train: true, groups: 1 } as const
        const inner = convNorm(first, norms[0], x, mode, { relu: true })
        const outer = convNorm(second, norms[1], inner, mode, { relu: true, residual: inner })
        return head.forward(reshape(adaptiveAvgPool2d(outer, 1), [8, 16]))
      })
      const gradients = tape.backward(y, watched, cotangent)
      gradients.forEach((gradient) => assert.is(gradient.dtype, 'f32'))
      const values = Float32Array.from(gradients.flatMap((gradient) => Array.from(gradient.data())))
      states.forEach(disposeState)
      return values
    }),
  )
}

test('gradients in mixed precision are those of f32, and those of f32 the CPU\'s', () => {
  const exact = gradientsOf('f32', 'cpu')
  assert.ok(relativeDistance(gradientsOf('f32', device), exact) < 1e-5)
  // Weights, both convolutions, both norms, the pool and the way back each round to 2^-9: ten roundings.
  const mixed = relativeDistance(gradientsOf('bf16', device), exact)
  assert.ok(mixed > 1e-4 && mixed < 2 * 2 ** -9 * Math.sqrt(10) * 2, `relative error ${mixed}`)
})

test.run()
