/** NumPy's broadcasting: shapes are aligned to the right, and an axis of one element is repeated to the other's length. */
import type { Inputs } from '../autograd/op.js'
import { fail } from '../tensor/errors.js'
import { runNative } from '../tensor/native.js'
import { binaryKinds } from '../tensor/nativeOps.js'
import { largest } from '../tensor/numbers.js'
import { accumulator, describe, type DType, expectValue, kindOf, scope, type Shape, Tensor } from '../tensor/tensor.js'

/** A tensor, or a number that stands for a tensor of the other operand's dtype with one value. */
export type Operand = Tensor | number

/** The shape that the tensors' axes before the last `without` broadcast to; undefined where they do not. */
export function batchShape(inputs: Readonly<Record<string, Tensor>>, without = 0): number[] | undefined {
  const shapes = Object.values(inputs).map(({ shape }) => shape.slice(0, shape.length - without))
  const rank = largest(shapes.map((shape) => shape.length))
  const broadcast: number[] = []
  for (let i = 0; i < rank; ++i) {
    const lengths = shapes.map((shape) => shape[i - rank + shape.length] ?? 1)
    const length = lengths.find((d) => d !== 1) ?? 1
    if (lengths.some((d) => d !== 1 && d !== length)) return undefined
    broadcast.push(length)
  }
  return broadcast
}

/** The shape that the tensors broadcast to; throws SHAPE naming all of them. */
export function broadcastShape(op: string, inputs: Readonly<Record<string, Tensor>>): number[] {
  const shape = batchShape(inputs)
  if (shape !== undefined) return shape
  const received = Object.entries(inputs).map(([name, tensor]) => `${name} ${describe(tensor)}`)
  return fail('SHAPE', `${op}: expected shapes that broadcast but received ${received.join(' and ')}`)
}

/** Calls `body` with tensors for the operands, in a scope that frees those that stood for numbers. */
export function withTensors<K extends string, R>(
  op: string,
  operands: Readonly<Record<K, Operand>>,
  body: (tensors: Record<K, Tensor>) => R,
): R {
  for (const [name, operand] of Object.entries<Operand>(operands))
    if (typeof operand !== 'number' && !(operand instanceof Tensor))
      fail('ARGUMENT', `${op}: expected ${name} to be a tensor or a number but received ${kindOf(operand)}`)
  const like = Object.values<Operand>(operands).find((operand) => typeof operand !== 'number')
  if (like === undefined) return fail('ARGUMENT', `${op}: expected at least one tensor but received numbers`)
  for (const [name, operand] of Object.entries<Operand>(operands))
    if (typeof operand === 'number') expectValue(op, name, operand, like.dtype)
  return scope(() =>
    body(
      Object.fromEntries(
        Object.entries<Operand>(operands).map(([name, operand]) => [
          name,
          typeof operand === 'number' ? Tensor.full([], operand, like.dtype, like.device) : operand,
        ]),
      ) as Record<K, Tensor>,
    ),
  )
}

/** y = kind(a, b), of the shape that they broadcast to or of `shape`; where dtypes differ, of the one that accumulates. */
export function binary(kind: keyof typeof binaryKinds, a: Tensor, b: Tensor, shape: Shape = broadcastShape(kind, { a, b })): Tensor {
  const dtype = a.dtype === b.dtype ? a.dtype : accumulator(a.dtype)
  const y = Tensor.empty(shape, dtype, a.device)
  runNative('binary', { y, a: asDType(a, dtype), b: asDType(b, dtype) }, { kind: binaryKinds[kind] })
  return y
}

/** x, or a copy of it where it is of another dtype. */
export const asDType = (x: Tensor, dtype: DType): Tensor => (x.dtype === dtype ? x : x.to(dtype))

/** The sum of x, or its largest values, over the axes along which `shape` has one element, times `scale`. */
export function reduceTo(x: Tensor, shape: Shape, dtype: DType, { maximum = false, scale = 1 } = {}): Tensor {
  const y = Tensor.empty(shape, dtype, x.device)
  runNative('reduce', { y, x }, { maximum, scale })
  return y
}

/** The gradient of a tensor of `shape` from that of what it was broadcast to: the sum over the axes along which it was repeated. */
export function sumTo(grad: Tensor, shape: Shape): Tensor {
  const repeated = grad.shape.length - shape.length
  if (repeated === 0 && shape.every((d, i) => d === grad.shape[i])) return grad.alias()
  const kept = grad.shape.map((_, i) => shape[i - repeated] ?? 1)
  return reduceTo(grad, kept, accumulator(grad.dtype)).alias(shape)
}

/** x times `scale`, repeated to `shape`. */
export const spread = (x: Tensor, shape: Shape, scale = 1): Tensor => binary('mul', x, Tensor.full([], scale, x.dtype, x.device), shape)

/** The shapes of an op's inputs, which its gradients are summed to. */
export const shapesOf = <I extends Inputs>(inputs: I): { [K in keyof I]: Shape } =>
  Object.fromEntries(Object.entries(inputs).map(([name, tensor]) => [name, tensor!.shape])) as { [K in keyof I]: Shape }
