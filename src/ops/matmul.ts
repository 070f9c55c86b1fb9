import { defineOp, expectFloats, type Inputs } from '../autograd/op.js'
import { apply } from '../autograd/tape.js'
import { fail } from '../tensor/errors.js'
import { runNative } from '../tensor/native.js'
import { accumulator, describe, type Shape, Tensor } from '../tensor/tensor.js'
import { asDType, batchShape, shapesOf, sumTo } from './broadcast.js'

/** Which operands of matmul are transposed. */
export interface MatmulOptions {
  /** Whether a holds its matrices transposed, as [..., K, M]. False by default. */
  transposeA?: boolean | undefined
  /** Whether b holds its matrices transposed, as [..., N, K]. False by default. */
  transposeB?: boolean | undefined
}

interface Matrices extends Inputs {
  a: Tensor
  b: Tensor
}
interface MatmulAttrs {
  a: Shape
  b: Shape
  transposeA: boolean
  transposeB: boolean
}

/** The product of what a and b hold, transposed where the flags say so, of the dtype that accumulates them where theirs differ. */
function product(a: Tensor, b: Tensor, transposeA: boolean, transposeB: boolean): Tensor {
  const [m, k] = transposeA ? [a.shape.at(-1)!, a.shape.at(-2)!] : [a.shape.at(-2)!, a.shape.at(-1)!]
  const [depth, n] = transposeB ? [b.shape.at(-1)!, b.shape.at(-2)!] : [b.shape.at(-2)!, b.shape.at(-1)!]
  const batches = batchShape({ a, b }, 2)
  if (k !== depth || batches === undefined) {
    const written = (name: string, transposed: boolean, x: Tensor): string => `${name} ${describe(x)}${transposed ? ' transposed' : ''}`
    const received = `${written('a', transposeA, a)} and ${written('b', transposeB, b)}`
    fail('SHAPE', `matmul: expected a [..., M, K] and b [..., K, N] whose leading axes broadcast but received ${received}`)
  }
  const dtype = a.dtype === b.dtype ? a.dtype : accumulator(a.dtype)
  const y = Tensor.empty([...batches, m, n], dtype, a.device)
  runNative('matmul', { y, a: asDType(a, dtype), b: asDType(b, dtype) }, { transposeA, transposeB })
  return y
}

export const matmulOp = defineOp<Matrices, MatmulAttrs>({
  name: 'matmul',
  forward({ a, b }, { transposeA, transposeB }) {
    return { outputs: [product(a, b, transposeA, transposeB)], saved: { a, b } }
  },
  // y = a b: da = dy b^T, db = a^T dy, summed over the axes along which a batch was repeated; where a holds a^T, its gradient is b dy^T,
  // and where b holds b^T, dy^T a.
  backward({ grad, saved, attrs: { transposeA, transposeB, ...shapes }, needs }) {
    const [a, b] = [saved.a!, saved.b!]
    const da = (): Tensor => (transposeA ? product(b, grad, transposeB, true) : product(grad, b, false, !transposeB))
    const db = (): Tensor => (transposeB ? product(grad, a, true, transposeA) : product(a, grad, !transposeA, false))
    return { a: needs.a ? sumTo(da(), shapes.a) : undefined, b: needs.b ? sumTo(db(), shapes.b) : undefined }
  },
})

/**
 * The products of the matrices a [..., M, K] and b [..., K, N]: [..., M, N], of one floating dtype, whose leading axes broadcast. Each may
 * hold its matrices transposed. On GPUs f32 is multiplied exactly, bf16 on tensor cores with sums in f32. Throws SHAPE with both shapes.
 */
export function matmul(a: Tensor, b: Tensor, { transposeA = false, transposeB = false }: MatmulOptions = {}): Tensor {
  expectFloats('matmul', { a, b })
  for (const [name, x] of Object.entries({ a, b }))
    if (x.shape.length < 2) fail('SHAPE', `matmul: expected ${name} of rank 2 or more but received ${describe(x)}`)
  return apply(matmulOp, { a, b }, { ...shapesOf({ a, b }), transposeA, transposeB })[0]!
}
