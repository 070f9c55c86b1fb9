import { noGrad } from '../autograd/tape.js'
import { maximum, minimum } from '../ops/arithmetic.js'
import { calledAs, fail } from '../tensor/errors.js'
import { runNative } from '../tensor/native.js'
import { scope, Tensor } from '../tensor/tensor.js'

/**
 * Gradients whose global norm - of all of them as one vector - is at most `maxNorm` (Pascanu et al., arXiv:1211.5063), and the norm [1]
 * that they had. Sums have a fixed order. Gradients that are not finite stay so; look at the given ones with checkFinite.
 */
export function clipByGlobalNorm(gradients: readonly Tensor[], maxNorm: number): { gradients: Tensor[]; norm: Tensor } {
  const first = gradients[0] ?? fail('ARGUMENT', 'clipByGlobalNorm: expected at least one gradient but received none')
  if (!(maxNorm > 0)) fail('ARGUMENT', `clipByGlobalNorm: expected a positive maxNorm but received ${maxNorm}`)
  return scope(() => {
    const clipped = gradients.map(({ shape, dtype, device }) => Tensor.empty(shape, dtype, device))
    const norm = Tensor.empty([1], first.dtype, first.device)
    runNative('clipByGlobalNorm', { clipped, gradients: [...gradients], norm }, { maxNorm })
    return { gradients: clipped, norm }
  })
}

/** Gradients with every value held from -`limit` to `limit`; what is not a number stays so. */
export function clipByValue(gradients: readonly Tensor[], limit: number): Tensor[] {
  if (!(limit > 0)) fail('ARGUMENT', `clipByValue: expected a positive limit but received ${limit}`)
  const parts = new Set(['maximum', 'minimum'])
  const clip = (gradient: Tensor): Tensor => scope(() => maximum(minimum(gradient, limit), -limit))
  return noGrad(() => gradients.map((gradient) => calledAs('clipByValue', parts, () => clip(gradient))))
}
