/** Maps in E4M3 on the CPU, whose products are those of bf16, and where there are none. */
import * as assert from 'uvu/assert'

import { Tape } from '../../src/autograd/tape.js'
import { evaluation } from '../../src/nn/layers.js'
import { batchNorm } from '../../src/ops/batchNorm.js'
import { Random } from '../../src/tensor/random.js'
import { scope, Tensor } from '../../src/tensor/tensor.js'
import { suite, throwsError } from '../support/suite.js'
import { checkConvolutions, checkJoins, checkNetwork, draw, stages } from './e4m3.js'

const test = suite('maps in E4M3 on the CPU')

test('convolutions are those of the rounded operands in f32', () => checkConvolutions('cpu'))
test('norms and joins are the rounding of those in f32', () => checkJoins('cpu', ['none', 'bf16', 'e4m3']))
test("a network keeps in E4M3 what its convolutions of 128 channels read, and its last map is near bf16's", () => checkNetwork('cpu'))

test('maps stay as they are where gradients are wanted, and where a norm takes running statistics', () => {
  const mode = { train: true, groups: 2 } as const
  assert.equal(stages('cpu', { ...mode, maps: 'e4m3' }, true), stages('cpu', mode, true))
  assert.equal(stages('cpu', { ...evaluation, ...{ maps: 'e4m3' } }), stages('cpu', evaluation))
})

test('nothing that has a gradient is joined with a map in E4M3', () => {
  scope(() => {
    const random = new Random(1)
    const [x, residual] = [draw(random, [2, 3, 3, 128], 'bf16'), draw(random, [2, 3, 3, 128], 'e4m3')]
    const vector = (): Tensor => draw(random, [128], 'f32')
    const weight = vector()
    const norm = (): Tensor => batchNorm(x, weight, vector(), vector(), vector(), { train: true, residual })
    assert.is(norm().dtype, 'bf16')
    throwsError(() => new Tape().watch([weight]).record(norm), 'DTYPE', /^batchNorm: expected .*residual/, /e4m3/)
  })
})

test.run()
