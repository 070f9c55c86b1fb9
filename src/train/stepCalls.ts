/** The native calls of a training step, found by going through one that is not computed. */
import type { BuiltMethod } from '../methods/method.js'
import { isProduct, type NativeCall } from '../ops/timing.js'
import { convolutionKey, type ProductOp, shapeKey, shapeOfCall, takesPrologue, type TuningChoice, withKernels } from '../ops/tuning.js'
import { withCompute } from '../tensor/compute.js'
import { rehearse } from '../tensor/graph.js'
import { mapTensors, native, observe, tensorsOf } from '../tensor/native.js'
import { type DType, itemBytes, sizeOf, Tensor } from '../tensor/tensor.js'

export interface StepCall {
  call: NativeCall
  /** What tells it from others: op, operands, numbers. */
  signature: string
  /** Times a step. */
  count: number
}

export const signatureOf = ({ op, tensors, numbers }: NativeCall): string =>
  `${op}(${written(mapTensors(tensors, ({ dtype, shape }) => `${dtype}[${shape.join(',')}]`))}) ${written(numbers)}`

/** Names and values in an order of their own, without those that are absent. */
const written = (named: Readonly<Record<string, unknown>>): string =>
  Object.entries(named)
    .filter(([, value]) => value !== undefined)
    .map(([name, value]) => `${name} ${String(value)}`)
    .sort()
    .join(' ')

const stepCall = (call: NativeCall, count: number): StepCall => ({ call, signature: signatureOf(call), count })

/**
 * The distinct calls of a step with `choice`, without tiles and splits. Nothing is computed and the model is left as it was, but the
 * memory of a step is taken and given back.
 */
export function stepCalls(method: BuiltMethod, batch: number, imageSize: number, choice: TuningChoice): StepCall[] {
  const calls = new Map<string, StepCall>()
  const { device, compute, inputs } = method.backbone
  const [outer, record] = [observe.op, method.record?.()]
  observe.op = (op, _, tensors, numbers) => {
    const call = stepCall(
      {
        op,
        tensors: mapTensors(tensors, ({ shape, dtype }) => ({ shape: shape!, dtype: dtype as DType })),
        numbers: isProduct(op) ? withKernels(numbers, { tile: 0, splits: 0 }) : numbers,
      },
      1,
    )
    const before = calls.get(call.signature)
    if (before === undefined) calls.set(call.signature, call)
    else before.count += 1
  }
  const views = [0, 1].map(() => Tensor.empty([batch, imageSize, imageSize, inputs], compute, device).keep()) as [Tensor, Tensor]
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
  return { ...made, op, key: shapeKey(shape), convolution: convolutionKey(shape), prologue: takesPrologue(op, tensors) }
}

/** The pass that writes relu(x * scale + shift), for a product that would read it so. */
const normApply = ({ tensors: { x, scale, shift }, numbers: { relu } }: NativeCall): NativeCall => ({
  op: 'normApply',
  tensors: { y: x, x, scale, shift },
  numbers: { relu: relu! },
})

/** The product that reads x as it lies in memory, or dy. */
const plainX = ({ op, tensors, numbers }: NativeCall): NativeCall => ({
  op,
  tensors: { ...tensors, scale: undefined, shift: undefined },
  numbers: { ...numbers, relu: false },
})
const plainDy = ({ op, tensors, numbers }: NativeCall): NativeCall => ({
  op,
  tensors: { ...tensors, gradientX: undefined, gradientMean: undefined, coefficients: undefined },
  numbers,
})

/**
 * The calls that a product with prologues becomes where `forward` says whether convolutions normalise what they read, `backward`
 * whether they do with its gradient: passes that write what a prologue would have made, and the product.
 */
export function alternative({ call, count }: ProductCall, forward: boolean, backward: boolean): StepCall[] {
  const all = (...calls: NativeCall[]): StepCall[] => calls.map((made) => stepCall(made, count))
  if (call.op === 'conv2d') return forward ? all(call) : all(normApply(call), plainX(call))
  if (call.op === 'conv2dBackwardInput') return all(backward ? call : plainDy(call))
  // A weight gradient has its prologues or none of them. x is written already where the forward pass had to.
  if (backward) return all(forward ? call : plainX(call))
  const { dy, scale, gradientX, gradientMean, coefficients } = call.tensors
  const gradient: NativeCall = {
    op: 'normGradient',
    tensors: { dx: dy, dz: dy, x: gradientX, mean: gradientMean, coefficients },
    numbers: {},
  }
  return all(
    ...(gradientX === undefined ? [] : [gradient]),
    ...(forward && scale !== undefined ? [normApply(call)] : []),
    plainX(plainDy(call)),
  )
}

/** A guess of what a call costs, for an order: bytes of its operands, and 200 operations count as one. */
export function expectedCost({ call, count }: StepCall): number {
  const bytes = tensorsOf(call.tensors).reduce((sum, { shape, dtype }) => sum + sizeOf(shape) * itemBytes(dtype), 0)
  if (!isProduct(call.op)) return count * bytes
  const { input, weight, numbers } = shapeOfCall(call.op, call.tensors, call.numbers)
  const operations = (2 * sizeOf(input) * sizeOf(weight)) / input[3]! / (numbers.strideH * numbers.strideW)
  return count * Math.max(bytes, operations / 200)
}
