/** Ops on a device against the CPU in f64, from the same (rounded) inputs: values and gradients. */
import fc from 'fast-check'
import * as assert from 'uvu/assert'

import { Tape } from '../../src/autograd/tape.js'
import { catalogue, type OpName } from '../../src/ops/catalogue.js'
import { currentCompute } from '../../src/tensor/compute.js'
import { Random } from '../../src/tensor/random.js'
import { type FloatDType, scope, Tensor, withDevice } from '../../src/tensor/tensor.js'
import { opCases } from '../ops/cases/index.js'
import type { OpCase } from '../ops/cases/opCase.js'
import { relativeDifference } from './gradients.js'

export const seeds = fc.integer({ min: 0, max: 2 ** 30 })

/** Value and gradients of the op, with inputs as given and the cotangent in the dtype of the value. */
export function evaluate(
  opCase: OpCase,
  p: unknown,
  inputs: Tensor[],
  differentiable: number,
  cotangent: (y: Tensor) => ArrayLike<number>,
): ArrayLike<number>[] {
  const watched = inputs.slice(0, differentiable)
  const tape = new Tape().watch(watched)
  const y = tape.record(() => opCase.run(p, inputs))
  const values = [y.data()]
  if (differentiable === 0) return values
  const weights = Tensor.from(cotangent(y), y.shape, y.dtype, y.device)
  return [...values, ...tape.backward(y, watched, weights).map((gradient) => gradient.data())]
}

export const roundedTo = (input: Tensor, dtype: FloatDType): Tensor => (dtype === 'bf16' ? input.to('f32').to('bf16') : input.to(dtype))

/** The largest error of value and gradients on `device` over what their precision explains; more than 1 is a mistake. */
function excess(device: string, name: OpName, opCase: OpCase, p: unknown, seed: number, dtype: FloatDType): number {
  return scope(() => {
    const inputs = opCase.inputs(p, new Random(seed))
    const differentiable = catalogue[name].backward === 'notDifferentiable' ? 0 : (opCase.differentiable ?? inputs.length)
    const rounded = inputs.map((input, i) => roundedTo(input, opCase.sums?.includes(i) === true ? 'f32' : dtype))
    // The cotangent too is rounded once, for both.
    const cotangent = (y: Tensor): ArrayLike<number> => {
      const random = new Random(seed, 1)
      return Tensor.from(
        Float32Array.from({ length: y.size }, () => random.normal()),
        y.shape,
        dtype,
        'cpu',
      ).data()
    }
    const actual = withDevice(device, () =>
      evaluate(
        opCase,
        p,
        rounded.map((input) => input.to(input.dtype, device)),
        differentiable,
        cotangent,
      ),
    )
    const expected = evaluate(
      opCase,
      p,
      rounded.map((input) => Tensor.from(Float64Array.from(input.data()), input.shape, 'f64')),
      differentiable,
      cotangent,
    )
    const errors = actual.map((values, i) => {
      // A gradient sums over the outputs that an input reaches, which are not more than all.
      const terms = opCase.accumulates(p) + (i === 0 ? 0 : expected[0]!.length)
      const exact = 8 * terms * 2 ** -23
      // bf16 rounds results to 2^-9, and the few intermediate values that are stored; sums are f32 all the same.
      const bound = dtype === 'bf16' ? exact + 2 ** -6 : currentCompute().precision === 'tf32' ? exact + 2 ** -8 : exact
      return relativeDifference(values, expected[i]!, i === 0 ? opCase.magnitude?.(p) : (opCase.gradientMagnitude?.(p) ?? 1e-3)) / bound
    })
    return Math.max(...errors)
  })
}

/** Checks an op on `device` in each of `dtypes`, at `numRuns` draws of `parameters`. */
export function checkAgreement(
  device: string,
  name: OpName,
  parameters: fc.Arbitrary<unknown>,
  numRuns: number,
  dtypes: readonly FloatDType[],
): void {
  for (const dtype of dtypes) {
    fc.assert(
      fc.property(parameters, seeds, (p, seed) => {
        const worst = excess(device, name, opCases[name], p, seed, dtype)
        assert.ok(worst <= 1, `${dtype}: the error is ${worst} times what rounding explains`)
      }),
      { numRuns },
    )
  }
}
