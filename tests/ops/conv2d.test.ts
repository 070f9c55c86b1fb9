/** The three products of a convolution against each other, at sizes around those of the register tiles and of the blocks they work in. */
import fc from 'fast-check'
import * as assert from 'uvu/assert'

import { Tape } from '../../src/autograd/tape.js'
import { conv2d } from '../../src/ops/conv2d.js'
import { Random } from '../../src/tensor/random.js'
import { scope, type Tensor } from '../../src/tensor/tensor.js'
import { randomTensor } from '../support/gradients.js'
import { suite } from '../support/suite.js'

const test = suite('conv2d')

const inner = (a: Tensor, b: Tensor): number => {
  const other = b.data()
  let sum = 0
  a.data().forEach((value, i) => (sum += value * other[i]!))
  return sum
}

test('<dy, conv(x, w)> = <dx, x> = <dw, w>, whatever is left over at the ends of tiles, panels, blocks and chunks', () => {
  const cases = fc.record({
    n: fc.integer({ min: 1, max: 3 }),
    side: fc.constantFrom([1, 1], [5, 19], [8, 12], [1, 97], [14, 14], [29, 30]),
    channels: fc.constantFrom(1, 3, 15, 16, 17, 33, 64, 65, 130),
    outs: fc.constantFrom(1, 5, 6, 7, 12, 13, 33, 65),
    kernel: fc.constantFrom(1, 3),
    stride: fc.integer({ min: 1, max: 2 }),
  })
  fc.assert(
    fc.property(cases, fc.integer(), ({ n, side, channels, outs, kernel, stride }, seed) => {
      scope(() => {
        const random = new Random(seed)
        const x = randomTensor(random, [n, ...side, channels])
        const weight = randomTensor(random, [outs, kernel, kernel, channels])
        const tape = new Tape().watch([x, weight])
        const y = tape.record(() => conv2d(x, weight, undefined, { stride, padding: (kernel - 1) / 2 }))
        const dy = randomTensor(random, y.shape)
        const [dx, dweight] = tape.backward(y, [x, weight], dy) as [Tensor, Tensor]
        const expected = inner(dy, y)
        const bound = 1e-13 * Math.sqrt(inner(dy, dy) * inner(y, y))
        for (const [what, value] of Object.entries({ x: inner(dx, x), weight: inner(dweight, weight) }))
          assert.ok(Math.abs(value - expected) <= bound, `the gradient of ${what}: ${value}, not ${expected}`)
      })
    }),
    { numRuns: 60 },
  )
})

test.run()
