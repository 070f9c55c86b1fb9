/** Gradients by finite differences in f64, against the tape's. */
import * as assert from 'uvu/assert'

import { Tape } from '../../src/autograd/tape.js'
import { Random } from '../../src/tensor/random.js'
import { scope, Tensor } from '../../src/tensor/tensor.js'

/**
 * A central difference errs by h^2 / 6 times the third derivative and by eps * |f| / h of rounding, about 1e-10 each for values
 * of order 1 and the first h; sums of up to some thousand of them stay below its tolerance. A difference that straddles a kink
 * (ReLU, a maximum) is tried again closer, with the tolerance that its rounding needs: a wrong gradient fails at each.
 */
const attempts = [
  { h: 1e-5, tolerance: 1e-6 },
  { h: 1e-6, tolerance: 1e-5 },
  { h: 1e-7, tolerance: 1e-4 },
] as const

/** How many elements of an input are probed. */
const probes = 12

/**
 * Checks the gradient of sum(cotangent * f(inputs)) with respect to each of `inputs` (f64) at random elements. `f` is called
 * again with changed values and must depend on nothing else.
 */
export function checkGradients(f: (inputs: Tensor[]) => Tensor, inputs: Tensor[], random: Random): void {
  scope(() => {
    const tape = new Tape().watch(inputs)
    const y = tape.record(() => f(inputs))
    const cotangent = Tensor.from(
      Float64Array.from({ length: y.size }, () => random.normal()),
      y.shape,
      'f64',
    )
    const weights = cotangent.data()
    const value = (): number => scope(() => Array.from(f(inputs).data()).reduce((sum, v, i) => sum + v * weights[i]!, 0))
    const gradients = tape.backward(y, inputs, cotangent)
    inputs.forEach((input, k) => {
      const original = input.data() as Float64Array
      const gradient = gradients[k]!.data()
      const scale = Math.max(1, ...gradient.map(Math.abs))
      for (let p = 0; p < Math.min(probes, original.length); ++p) {
        const at = original.length <= probes ? p : random.below(original.length)
        const probe = (delta: number): number => {
          const changed = original.slice()
          changed[at]! += delta
          input.write(changed)
          return value()
        }
        let numeric = NaN
        const right = attempts.some(({ h, tolerance }) => {
          numeric = (probe(h) - probe(-h)) / (2 * h)
          return Math.abs(numeric - gradient[at]!) <= tolerance * scale
        })
        input.write(original)
        assert.ok(right, `input ${k}[${at}] ${input.shape.join('x')}: the gradient is ${gradient[at]} but differences give ${numeric}`)
      }
    })
  })
}

export function randomTensor(random: Random, shape: readonly number[], options: { dtype?: 'f32' | 'f64'; away?: number } = {}): Tensor {
  const { dtype = 'f64', away = 0 } = options
  // `away` keeps values off 0, where ReLU has a kink that a difference would straddle.
  const draw = (): number => {
    const value = random.normal()
    return value + Math.sign(value) * away
  }
  return Tensor.from(Float64Array.from({ length: shape.reduce((n, d) => n * d, 1) }, draw), shape, dtype)
}

/** Largest difference over the largest magnitude, or over `least`. */
export function relativeDifference(actual: ArrayLike<number>, expected: ArrayLike<number>, least = 1e-30): number {
  assert.is(actual.length, expected.length)
  let difference = 0
  let magnitude = least
  for (let i = 0; i < expected.length; ++i) {
    if (Number.isNaN(actual[i]!) !== Number.isNaN(expected[i]!)) return Infinity
    difference = Math.max(difference, Math.abs(actual[i]! - expected[i]!))
    magnitude = Math.max(magnitude, Math.abs(expected[i]!))
  }
  return difference / magnitude
}

/** The Euclidean distance of two vectors over the length of the second. */
export function relativeDistance(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let [difference, length] = [0, 0]
  for (let i = 0; i < b.length; ++i) {
    difference += (a[i]! - b[i]!) ** 2
    length += b[i]! ** 2
  }
  return Math.sqrt(difference / Math.max(1e-12, length))
}
