import { fail } from '../tensor/errors.js'
import { accumulator, describe, kindOf, Tensor } from '../tensor/tensor.js'

/** Inputs by name; an optional one may be absent. */
export type Inputs = Record<string, Tensor | undefined>

/** What an op's `forward` gives. */
export interface Recorded {
  /** Output 0 carries the gradient; others (indices, statistics) do not. */
  outputs: Tensor[]
  /** What backward reads, by name. The tape holds these until backward has used them. */
  saved?: Record<string, Tensor>
}

/** The batch norm that made a tensor, as seen by the op that computes the tensor's gradient last. */
export interface NormEpilogue {
  /** What was normalised, of the tensor's shape, and the means of its groups [G, C]. */
  x: Tensor
  mean: Tensor
  groups: number
  /** Where ReLU let values through: y > 0, or x * scale + shift > 0; neither without ReLU. */
  y: Tensor | undefined
  scale: Tensor | undefined
  shift: Tensor | undefined
}

/**
 * What is left to do with the gradient of an input once its last consumer has it, offered to that consumer's backward: it may do
 * it while the values are in registers (docs/fusion.md). An op that knows nothing of it loses nothing: the tape adds, and the norm
 * masks and sums.
 */
export interface Epilogue {
  /** The gradients of the other consumers, to be added. */
  readonly add: Tensor | undefined
  /** The batch norm that the gradient is to be masked and summed for. */
  readonly norm: NormEpilogue | undefined
  /**
   * The op calls it when the returned gradient has `add` in it and, with `sums`, is masked: f32 [G * chunks, 2, C], the sums of dz and of
   * dz (x - mean).
   */
  done(sums?: Tensor): void
}

/** What an op's `backward` is given. */
export interface BackwardContext<I extends Inputs, A> {
  /** Gradient of output 0, of its shape and of its dtype or the one that accumulates it. */
  grad: Tensor
  saved: Record<string, Tensor>
  attrs: A
  /** Inputs whose gradient is wanted. */
  needs: { readonly [K in keyof I]: boolean }
  /** @internal For the inputs whose gradient this op is the last to contribute to. */
  last: { readonly [K in keyof I]?: Epilogue | undefined }
  /** @internal The gradient is masked, and summed, as this op's epilogue() asked for. */
  sums: Tensor | undefined
}

/**
 * One op: arguments checked and computed in `forward`, one gradient per differentiable input from `backward`. An op without
 * gradients says so with the word.
 */
export interface Op<I extends Inputs = Inputs, A = unknown> {
  readonly name: string
  /** Checks and computes; `needsGradient` says whether backward may follow, for what only it needs. */
  forward(inputs: I, attrs: A, needsGradient: boolean): Recorded
  /** @internal What this op would have done to its output's gradient by whoever computes that. */
  readonly epilogue?: (saved: Record<string, Tensor>, attrs: A) => NormEpilogue | undefined
  /** Gives a gradient for each input that `needs` names. */
  readonly backward: 'notDifferentiable' | ((context: BackwardContext<I, A>) => { [K in keyof I]?: Tensor | undefined })
}

/** Gives an op its type; apply() runs it. */
export function defineOp<I extends Inputs, A = Record<string, never>>(op: Op<I, A>): Op<I, A> {
  return op
}

// Argument checks, in one sentence form: op, argument, what was expected, what was received.

export function expectRank(op: string, name: string, tensor: Tensor, rank: number): void {
  if (tensor.shape.length !== rank) fail('SHAPE', `${op}: expected ${name} of rank ${rank} but received ${describe(tensor)}`)
}

export function expectShape(op: string, name: string, tensor: Tensor, shape: readonly number[], why: string): void {
  if (tensor.shape.length !== shape.length || tensor.shape.some((d, i) => d !== shape[i])) {
    fail('SHAPE', `${op}: expected ${name} [${shape.join(',')}] (${why}) but received ${describe(tensor)}`)
  }
}

/** All floating and of one dtype; absent inputs are skipped. `sums` are of the dtype in which the first input is accumulated. */
export function expectFloats(op: string, inputs: Inputs, sums: Inputs = {}): void {
  let first: [string, Tensor] | undefined
  for (const [name, tensor] of [...Object.entries(inputs), ...Object.entries(sums)]) {
    if (tensor === undefined) continue
    expectTensor(op, name, tensor)
    if (tensor.dtype === 'i32' || tensor.dtype === 'u8')
      fail('DTYPE', `${op}: expected ${name} of dtype f32, f64 or bf16 but received ${describe(tensor)}`)
    first ??= [name, tensor]
    const expected = name in sums ? accumulator(first[1].dtype) : first[1].dtype
    if (tensor.dtype !== expected) {
      const what = expected === first[1].dtype ? 'one dtype' : `${name} of dtype ${expected} with a ${first[1].dtype} ${first[0]}`
      fail('DTYPE', `${op}: expected ${what} but received ${first[0]} ${describe(first[1])} and ${name} ${describe(tensor)}`)
    }
  }
}

/**
 * The dtypes of a product: all floating and of one dtype, or the weight of f32 where x is bf16, to which it is rounded; the bias of that
 * of sums.
 */
export function expectFactors(op: string, x: Tensor, weight: Tensor, bias: Tensor | undefined): void {
  expectTensor(op, 'x', x)
  expectTensor(op, 'weight', weight)
  const isRounded = x.dtype === 'bf16' && weight.dtype === 'f32'
  expectFloats(op, isRounded ? { x } : { x, weight }, { bias })
}

export function expectTensor(op: string, name: string, value: unknown): asserts value is Tensor {
  if (!(value instanceof Tensor)) fail('ARGUMENT', `${op}: expected ${name} to be a tensor but received ${kindOf(value)}`)
}

/** No axis after the first `batch` ones is empty. */
export function expectElements(op: string, name: string, tensor: Tensor, batch = 0): void {
  if (tensor.shape.includes(0, batch))
    fail('SHAPE', `${op}: expected ${name} without an empty axis${batch === 0 ? '' : ' but the batch'} but received ${describe(tensor)}`)
}

/** All tensors of one dtype, whichever. */
export function expectOneDType(op: string, inputs: Inputs): void {
  for (const [name, tensor] of Object.entries(inputs)) expectTensor(op, name, tensor)
  const [first, ...others] = Object.entries(inputs).filter((entry): entry is [string, Tensor] => entry[1] !== undefined)
  for (const [name, tensor] of others)
    if (tensor.dtype !== first![1].dtype)
      fail('DTYPE', `${op}: expected one dtype but received ${first![0]} ${describe(first![1])} and ${name} ${describe(tensor)}`)
}

export function expectDType(op: string, name: string, tensor: Tensor, dtype: string): void {
  expectTensor(op, name, tensor)
  if (tensor.dtype !== dtype) fail('DTYPE', `${op}: expected ${name} of dtype ${dtype} but received ${describe(tensor)}`)
}

export function expectInteger(op: string, name: string, value: number, least: number): void {
  if (!Number.isSafeInteger(value) || value < least)
    fail('ARGUMENT', `${op}: expected ${name} to be an integer of at least ${least} but received ${value}`)
}
