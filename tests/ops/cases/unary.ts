import fc from 'fast-check'

import * as functions from '../../../src/ops/unary.js'
import type { UnaryName } from '../../../src/ops/unary.js'
import { sizeOf, Tensor } from '../../../src/tensor/tensor.js'
import { define, image, integer, type OpCase, shapeOf } from './opCase.js'

/** Where a function and its derivative are smooth: draws of a normal distribution as they are, off 0, or above 0. */
const domains: Readonly<Record<UnaryName, 'all' | 'away' | 'positive'>> = {
  abs: 'away',
  exp: 'all',
  gelu: 'all',
  log: 'positive',
  reciprocal: 'away',
  sigmoid: 'all',
  silu: 'all',
  sqrt: 'positive',
  square: 'all',
  tanh: 'all',
}

const unaryCase = (name: UnaryName): OpCase =>
  define<{ shape: number[]; spread: number }>({
    parameters: fc.record({ shape: image.map(shapeOf), spread: fc.constantFrom(1, 3) }),
    large: fc.record({ shape: fc.array(integer(2000, 6000), { minLength: 1, maxLength: 1 }), spread: fc.constantFrom(1, 3) }),
    inputs({ shape, spread }, random) {
      const draw = (): number => {
        const value = spread * random.normal()
        if (domains[name] === 'all') return value
        return domains[name] === 'away' ? value + Math.sign(value) * 0.3 : Math.abs(value) + 0.1
      }
      return [Tensor.from(Float64Array.from({ length: sizeOf(shape) }, draw), shape, 'f64')]
    },
    run: (_, [x]) => functions[name](x!),
    magnitude: () => 1,
    gradientMagnitude: () => 1,
    // The argument itself is rounded: e^x errs by x epsilon.
    accumulates: ({ spread }) => 4 + 5 * spread,
  })

export const unaryCases = Object.fromEntries((Object.keys(domains) as UnaryName[]).map((name) => [name, unaryCase(name)])) as Record<
  UnaryName,
  OpCase
>
