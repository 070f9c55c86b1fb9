import { apply } from '../autograd/tape.js'
import { defineOp, expectFloats, expectShape, type Inputs } from '../autograd/op.js'
import { fail } from '../tensor/errors.js'
import { runNative } from '../tensor/native.js'
import { accumulator, describe, Tensor } from '../tensor/tensor.js'

interface LayerNormInputs extends Inputs {
  x: Tensor
  weight: Tensor | undefined
  bias: Tensor | undefined
}

export const layerNormOp = defineOp<LayerNormInputs, { eps: number }>({
  name: 'layerNorm',
  // y = (x - mean) * invstd * weight + bias, with invstd = 1 / sqrt(variance + eps), of each row
  forward({ x, weight, bias }, { eps }) {
    const y = Tensor.empty(x.shape, x.dtype)
    const [mean, invstd] = [0, 1].map(() => Tensor.empty(x.shape.slice(0, -1), accumulator(x.dtype))) as [Tensor, Tensor]
    runNative('layerNorm', { y, mean, invstd, x, weight, bias }, { eps })
    return { outputs: [y], saved: { x, mean, invstd, ...(weight === undefined ? {} : { weight }) } }
  },
  // With xhat = (x - mean) * invstd and g = dy * weight:
  //   dx = invstd (g - mean(g) - xhat mean(g xhat)), dweight = sum over rows of dy xhat, dbias = sum over rows of dy
  backward({ grad, saved, needs }) {
    const { x, weight, mean, invstd } = saved as Record<'x' | 'mean' | 'invstd', Tensor> & { weight?: Tensor }
    const vector = (wanted: boolean | undefined): Tensor | undefined =>
      wanted === true ? Tensor.empty([x.shape.at(-1)!], accumulator(x.dtype)) : undefined
    const dx = needs.x ? Tensor.empty(x.shape, x.dtype) : undefined
    const [dweight, dbias] = [vector(needs.weight), vector(needs.bias)]
    runNative('layerNormBackward', { dx, dweight, dbias, dy: grad, x, weight, mean, invstd })
    return { x: dx, weight: dweight, bias: dbias }
  },
})

/**
 * Layer norm of x [..., C] over its last axis (J. L. Ba, J. R. Kiros, G. E. Hinton, arXiv:1607.06450): each row minus its mean, over the
 * square root of its variance (the mean squared deviation) plus `eps`, times `weight` [C] plus `bias` [C] where they are given.
 */
export function layerNorm(x: Tensor, weight?: Tensor, bias?: Tensor, { eps = 1e-5 } = {}): Tensor {
  expectFloats('layerNorm', { x }, { weight, bias })
  if ((x.shape.at(-1) ?? 0) === 0)
    fail('SHAPE', `layerNorm: expected x of rank 1 or more with one channel or more but received ${describe(x)}`)
  for (const [name, tensor] of Object.entries({ weight, bias }))
    if (tensor !== undefined) expectShape('layerNorm', name, tensor, [x.shape.at(-1)!], 'the channels of x')
  return apply(layerNormOp, { x, weight, bias }, { eps })[0]!
}
