/** The native calls of a training step, found by going through one that is not computed. */
import type { BuiltMethod } from '../methods/method.js'
import { isProduct, type NativeCall } from '../ops/timing.js'
import {
  convolutionKey,
  type ProductOp,
  productOps,
  shapeKey,
  shapeOfCall,
  splitsNumber,
  tileNumber,
  type TuningChoice,
} from '../ops/tuning.js'
import { withCompute } from '../tensor/compute.js'
import { rehearse } from '../tensor/graph.js'
import { native, observe } from '../tensor/native.js'
import { type DType, sizeOf, Tensor } from '../tensor/tensor.js'

export interface StepCall {
  call: NativeCall
  /** What tells it from others: op, operands, numbers. */
  signature: string
  /** Times a step. */
  count: number
}

export const signatureOf = ({ op, tensors, numbers }: NativeCall): string =>
  `${op}(${tensors.map((tensor) => (tensor === undefined ? '-' : `${tensor.dtype}[${tensor.shape.join(',')}]`)).join(' ')}) ${numbers.join(' ')}`

const stepCall = (call: NativeCall, count: number): StepCall => ({ call, signature: signatureOf(call), count })

/**
 * The distinct calls of a step with `choice`, without tiles and splits. Nothing is computed and the model is left as it was, but the
 * memory of a step is taken and given back.
 */
export function stepCalls(method: BuiltMethod, batch: number, imageSize: number, choice: TuningChoice): StepCall[] {
  const calls = new Map<string, StepCall>()
  const { device, compute } = method.backbone
  const [outer, record] = [observe.op, method.record?.()]
  observe.op = (op, _, tensors, numbers) => {
    const call = stepCall(
      {
        op,
        tensors: tensors.map((tensor) => (tensor === undefined ? undefined : { shape: tensor.shape!, dtype: tensor.dtype as DType })),
        numbers: unchosen(op, numbers),
      },
      1,
    )
    const before = calls.get(call.signature)
    if (before === undefined) calls.set(call.signature, call)
    else before.count += 1
  }
  const views = [0, 1].map(() => Tensor.empty([batch, imageSize, imageSize, 3], compute, device).keep()) as [Tensor, Tensor]
  try {
    rehearse(() => withCompute(choice, () => method.step(views).dispose()))
  } finally {
    if (outer === undefined) delete observe.op
    else observe.op = outer
    if (record !== undefined) method.restore?.(record)
    for (const view of views) view.dispose()
    native.trimMemory(device)
  }
  return [...calls.values()]
}

const unchosen = (op: string, numbers: readonly number[]): number[] =>
  !isProduct(op) ? [...numbers] : numbers.slice(0, splitsNumber).map((number, i) => (i === tileNumber ? 0 : number))

export interface ProductCall extends StepCall {
  op: ProductOp
  /** shapeKey and convolutionKey. */
  key: string
  convolution: string
  prologue: boolean
}

/** The call as a product of a convolution; undefined for other ops. */
export function productCall(made: StepCall): ProductCall | undefined {
  const { op, tensors, numbers } = made.call
  if (!isProduct(op)) return undefined
  const shape = shapeOfCall(op, tensors, numbers)
  return { ...made, op, key: shapeKey(shape), convolution: convolutionKey(shape), prologue: tensors[productOps[op].prologue] !== undefined }
}

type Operands = NativeCall['tensors']
const without = (tensors: Operands, from: number, to: number): Operands =>
  tensors.map((tensor, i) => (i >= from && i < to ? undefined : tensor))
const numbered = (numbers: readonly number[], values: Record<number, number>): number[] => numbers.map((number, i) => values[i] ?? number)

/** The pass that writes relu(x * scale + shift), for operands x and scale. */
const normApply = (x: Operands[number], scale: Operands[number], relu: number): NativeCall => ({
  op: 'normApply',
  tensors: [x, x, scale, scale],
  numbers: [scale!.shape[0]!, relu],
})

/**
 * The calls that a product with prologues becomes where `forward` says whether convolutions normalise what they read, `backward`
 * whether they do with its gradient: passes that write what a prologue would have made, and the product.
 */
export function alternative({ call, count }: ProductCall, forward: boolean, backward: boolean): StepCall[] {
  const { op, tensors, numbers } = call
  if (op === 'conv2d') {
    if (forward) return [stepCall(call, count)]
    return [
      normApply(tensors[1], tensors[5], numbers[9]!),
      { op, tensors: without(tensors, 5, 7), numbers: numbered(numbers, { 8: 1, 9: 0 }) },
    ].map((made) => stepCall(made, count))
  }
  if (op === 'conv2dBackwardInput')
    return [stepCall(backward ? call : { op, tensors: without(tensors, 10, 13), numbers: numbered(numbers, { 9: 1 }) }, count)]
  // A weight gradient has prologues for both operands or none. x is written already where the forward pass had to.
  const plainX = (from: Operands, of: readonly number[]): { tensors: Operands; numbers: number[] } => ({
    tensors: without(from, 3, 5),
    numbers: numbered(of, { 9: 0 }),
  })
  if (backward) return [stepCall(forward ? call : { op, ...plainX(tensors, numbers) }, count)]
  const written: NativeCall[] = [
    { op: 'normGradient', tensors: [tensors[1], tensors[1], tensors[5], tensors[6], tensors[7]], numbers: [numbers[8]!] },
  ]
  if (forward && tensors[3] !== undefined) written.push(normApply(tensors[2], tensors[3], numbers[9]!))
  const plain = plainX(without(tensors, 5, 8), numbered(numbers, { 8: 1 }))
  return [...written, { op, ...plain }].map((made) => stepCall(made, count))
}

/** A guess of what a call costs, for an order: bytes of its operands, and 200 operations count as one. */
export function expectedCost({ call, count }: StepCall): number {
  const bytes = call.tensors.reduce(
    (sum, tensor) => sum + (tensor === undefined ? 0 : sizeOf(tensor.shape) * (tensor.dtype === 'bf16' ? 2 : 4)),
    0,
  )
  if (!isProduct(call.op)) return count * bytes
  const { input, weight, numbers } = shapeOfCall(call.op, call.tensors, call.numbers)
  const operations = (2 * sizeOf(input) * sizeOf(weight)) / input[3]! / (numbers[0]! * numbers[1]!)
  return count * Math.max(bytes, operations / 200)
}
