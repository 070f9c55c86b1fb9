import { type ComputeSettings, currentCompute, withSettings } from '../tensor/compute.js'
import { calledAs, fail } from '../tensor/errors.js'
import { nativeOpNames, runNative } from '../tensor/native.js'
import { accumulator, currentDevice, describe, type DType, scope, Tensor, withDevice } from '../tensor/tensor.js'
import { type Epilogue, expectShape, expectTensor, type Inputs, type Op } from './op.js'

interface Node {
  op: Op
  attrs: unknown
  inputs: { name: string; id: number; tensor: { shape: readonly number[]; dtype: DType } }[]
  needs: Record<string, boolean>
  saved: Record<string, Tensor>
  output: number
  dtype: DType
  /** What the op ran with, and its gradients do. */
  compute: ComputeSettings
}

let active: Tape | undefined

/** Whether a tape records ops on these inputs: then they are those that have gradients. */
export const isRecorded = (inputs: Inputs): boolean => active?.needs(inputs) === true

/**
 * Told of a gradient that is complete, by the place of its target; it may be read and written beside what is left of the pass. One that is
 * not `reached` is zeros: the output does not depend on its target.
 */
export type GradientReady = (place: number, gradient: Tensor, reached: boolean) => void

/**
 * Records the ops that run inside record() on the watched tensors and what depends on them, and computes gradients once.
 * It holds saved tensors under handles of its own, so scopes inside the forward pass may free theirs; each is freed as soon
 * as backward has used it.
 */
export class Tape {
  readonly #nodes: Node[] = []
  readonly #tracked = new Set<number>()
  readonly #saved = new Map<number, number>()
  /** Why there are no gradients to be had any more. */
  #ended: string | undefined

  /** Watches tensors: gradients with respect to them can be asked for. Ops before this are not recorded for them. */
  watch(tensors: Iterable<Tensor>): this {
    for (const tensor of tensors) this.#tracked.add(tensor.id)
    return this
  }

  /** Runs `body` and records its ops; what is recorded inside of another record() goes to the inner tape alone. */
  record<R>(body: () => R): R {
    this.#expectOpen('record')
    const outer = active
    active = this // eslint-disable-line @typescript-eslint/no-this-alias -- the tape of a dynamic scope
    try {
      return body()
    } finally {
      active = outer
    }
  }

  /** @internal */
  needs(inputs: Inputs): boolean {
    return Object.values(inputs).some((tensor) => tensor !== undefined && this.#tracked.has(tensor.id))
  }

  /** @internal What a recording keeps of an op; another kind of tape may keep more. */
  push(op: Op, inputs: Inputs, attrs: unknown, output: Tensor, saved: Record<string, Tensor>): void {
    const present = Object.entries(inputs).filter((entry): entry is [string, Tensor] => entry[1] !== undefined)
    this.#nodes.push({
      op,
      attrs,
      inputs: present.map(([name, tensor]) => ({ name, id: tensor.id, tensor: { shape: tensor.shape, dtype: tensor.dtype } })),
      needs: Object.fromEntries(present.map(([name, tensor]) => [name, this.#tracked.has(tensor.id)])),
      saved: Object.fromEntries(Object.entries(saved).map(([name, tensor]) => [name, tensor.alias().keep()])),
      output: output.id,
      dtype: output.dtype,
      compute: currentCompute(),
    })
    for (const tensor of Object.values(saved)) this.#saved.set(tensor.id, tensor.deferral === undefined ? tensor.bytes : 0)
    this.#tracked.add(output.id)
  }

  /** Bytes of the tensors that were saved for backward. */
  get savedBytes(): number {
    return [...this.#saved.values()].reduce((sum, bytes) => sum + bytes, 0)
  }

  /**
   * Gradients of `output`, weighted by `seed` (ones without it), with respect to each of `targets`, in their order; zeros
   * for a target that `output` does not depend on. The tape has ended then: a second call throws TAPE. `ready` is told of each gradient,
   * by its target's first place in `targets`, as soon as nothing is added to it any more, while the pass goes on: of zeros that no op on
   * the tape could add to before it begins, of others where the last such op has been passed over.
   */
  backward(output: Tensor, targets: readonly Tensor[], seed?: Tensor, ready?: GradientReady): Tensor[] {
    this.#expectOpen('backward')
    expectTensor('backward', 'output', output)
    if (!this.#tracked.has(output.id))
      fail('TAPE', `backward: the tensor ${describe(output)} was not computed from a watched tensor on this tape`)
    for (const [i, target] of targets.entries()) expectTensor('backward', `targets[${i}]`, target)
    if (seed !== undefined) {
      expectTensor('backward', 'seed', seed)
      const dtypes = [output.dtype, accumulator(output.dtype)]
      if (!dtypes.includes(seed.dtype))
        fail('DTYPE', `backward: expected seed of the output's dtype ${output.dtype} but received ${describe(seed)}`)
    }
    if (seed !== undefined) expectShape('backward', 'seed', seed, output.shape, 'the shape of the output')
    const places = new Map(targets.map((target, i) => [target.id, i] as const).reverse())
    const wanted = new Set(places.keys())
    const complete = (ids: Iterable<number>): void => {
      for (const id of ids) {
        if (!wanted.has(id) || !gradients.complete(id)) continue
        const place = places.get(id)!
        const reached = gradients.get(id)
        const gradient = reached ?? gradients.putZeros(targets[place]!)
        ready?.(place, gradient, reached !== undefined)
      }
    }
    this.#ended = 'its gradients have been taken already'
    const gradients = new Gradients(this.#nodes, wanted)
    gradients.put(output.id, (seed === undefined ? Tensor.full(output.shape, 1, output.dtype, output.device) : seed.alias()).keep())
    try {
      complete(wanted)
      for (let node = this.#nodes.pop(); node !== undefined; node = this.#nodes.pop()) {
        try {
          const grad = gradients.get(node.output)
          if (grad === undefined) gradients.skip(node)
          else differentiate(node, grad, gradients)
          complete(new Set(differentiableInputs(node)))
          if (!wanted.has(node.output)) gradients.take(node.output)?.dispose()
        } finally {
          release(node)
        }
      }
      // A target that is named twice has its gradient twice.
      const taken = new Map<number, Tensor>()
      return targets.map((target) => {
        const before = taken.get(target.id)
        const gradient = before?.alias() ?? gradients.take(target.id)!
        taken.set(target.id, gradient)
        return gradient.adopt()
      })
    } finally {
      gradients.dispose()
      this.dispose()
    }
  }

  #expectOpen(what: string): void {
    if (this.#ended !== undefined)
      fail('TAPE', `${what}: expected a tape that has not ended but ${this.#ended}; a new Tape records the ops again`)
  }

  /** Frees what is saved; for a tape whose backward will not run. */
  dispose(): void {
    this.#ended ??= 'it has been disposed'
    for (const node of this.#nodes) release(node)
    this.#nodes.length = 0
  }
}

function release(node: Node): void {
  for (const tensor of Object.values(node.saved)) tensor.dispose()
}

/** The gradients that a backward pass holds, outside of every scope, and who is yet to contribute to each. */
class Gradients {
  readonly #held = new Map<number, Tensor>()
  readonly #sums = new Map<number, Tensor>()
  /** Of tensors to which nothing contributed; no pass goes on from these. */
  readonly #zeros = new Map<number, Tensor>()
  readonly #contributors = new Map<number, number>()
  readonly #producers: Map<number, Node>

  /** Gradients of `wanted` tensors are given to the caller as they are: no epilogue may mask them. */
  constructor(nodes: readonly Node[], wanted: ReadonlySet<number>) {
    this.#producers = new Map(nodes.filter(({ output }) => !wanted.has(output)).map((node) => [node.output, node]))
    for (const node of nodes) for (const id of differentiableInputs(node)) this.#contributors.set(id, (this.#contributors.get(id) ?? 0) + 1)
  }

  get(id: number): Tensor | undefined {
    return this.#held.get(id)
  }

  /** Whether nobody is left to contribute to a gradient. */
  complete(id: number): boolean {
    return (this.#contributors.get(id) ?? 0) === 0
  }

  /** The sums that an epilogue made of a gradient. */
  sums(id: number): Tensor | undefined {
    return this.#sums.get(id)
  }

  put(id: number, gradient: Tensor): void {
    this.#held.set(id, gradient)
  }

  /** Makes zeros the gradient of a tensor to which nothing has contributed. */
  putZeros({ id, shape, dtype, device }: Tensor): Tensor {
    const zeros = Tensor.zeros(shape, accumulator(dtype), device).keep()
    this.#zeros.set(id, zeros)
    return zeros
  }

  /** Gives the gradient away. */
  take(id: number): Tensor | undefined {
    const gradient = this.#held.get(id) ?? this.#zeros.get(id)
    this.#zeros.delete(id)
    this.#held.delete(id)
    this.#sums.get(id)?.dispose()
    this.#sums.delete(id)
    return gradient
  }

  /** A node through which no gradient comes contributes to none. */
  skip(node: Node): void {
    for (const id of differentiableInputs(node)) this.#contributed(id)
  }

  #contributed(id: number): number {
    const left = this.#contributors.get(id)! - 1
    this.#contributors.set(id, left)
    return left
  }

  /** Counts a contribution that the caller is about to make; what is left to do for `id` if it is the last. */
  last(id: number): { epilogue: Epilogue; result: { done: boolean; sums: Tensor | undefined } } | undefined {
    if (this.#contributed(id) > 0) return undefined
    const producer = this.#producers.get(id)
    const result: { done: boolean; sums: Tensor | undefined } = { done: false, sums: undefined }
    const done = (sums?: Tensor): void => {
      result.done = true
      result.sums = sums?.keep()
    }
    return { epilogue: { add: this.#held.get(id), norm: producer?.op.epilogue?.(producer.saved, producer.attrs), done }, result }
  }

  /** Adds a gradient to what is held, or replaces that where an epilogue has added it already. */
  contribute(
    id: number,
    gradient: Tensor,
    { done, sums }: { done: boolean; sums: Tensor | undefined } = { done: false, sums: undefined },
  ): void {
    const before = this.#held.get(id)
    this.#held.set(id, gradient)
    if (sums !== undefined) this.#sums.set(id, sums)
    if (before === undefined) return
    if (!done) {
      // One of two may be of the dtype that accumulates the other's.
      const dtype = before.dtype === gradient.dtype ? gradient.dtype : accumulator(gradient.dtype)
      const sum = Tensor.empty(gradient.shape, dtype, gradient.device).keep()
      scope(() => runNative('add', { y: sum, a: asDType(before, dtype), b: asDType(gradient, dtype) }))
      gradient.dispose()
      this.#held.set(id, sum)
    }
    before.dispose()
  }

  dispose(): void {
    for (const held of [this.#held, this.#sums, this.#zeros]) for (const tensor of held.values()) tensor.dispose()
  }
}

const asDType = (x: Tensor, dtype: DType): Tensor => (x.dtype === dtype ? x : x.to(dtype))

function* differentiableInputs(node: Node): Generator<number> {
  for (const { name, id } of node.inputs) if (node.needs[name]) yield id
}

/** Computes the gradients of a node's inputs and contributes them. */
function differentiate(node: Node, grad: Tensor, gradients: Gradients): void {
  const { op } = node
  if (op.backward === 'notDifferentiable') return fail('TAPE', `${op.name} is not differentiable`)
  const { backward } = op
  const ends = new Map<string, NonNullable<ReturnType<Gradients['last']>>>()
  for (const { name, id } of node.inputs) {
    const end = node.needs[name] ? gradients.last(id) : undefined
    // With one tensor as two inputs, the second contribution is the last but does not know of the first.
    const twice = node.inputs.filter((input) => input.id === id).length > 1
    if (end !== undefined && !twice) ends.set(name, end)
  }
  const last = Object.fromEntries([...ends].map(([name, { epilogue }]) => [name, epilogue]))
  // Weights of bf16 have gradients of f32, which ops that made them from tensors of bf16 do not meet.
  const dtype = Object.keys(node.saved).length === 0 ? grad.dtype : node.dtype
  const context = { saved: node.saved, attrs: node.attrs, needs: node.needs, last, sums: gradients.sums(node.output) }
  const run = (): ReturnType<typeof backward> => backward({ ...context, grad: asDType(grad, dtype) })
  const result = withSettings(node.compute, () => withDevice(grad.device, () => noGrad(() => scope(run))))
  for (const input of node.inputs) {
    const gradient = result[input.name]
    if (!node.needs[input.name]) {
      gradient?.dispose()
      continue
    }
    if (gradient === undefined) return fail('TAPE', `${op.name}: backward gave no gradient for ${input.name}`)
    // Weights of bf16 get their gradients in f32, as they were summed.
    if (
      (gradient.dtype !== input.tensor.dtype && gradient.dtype !== accumulator(input.tensor.dtype)) ||
      gradient.shape.join() !== input.tensor.shape.join()
    ) {
      fail(
        'TAPE',
        `${op.name}: the gradient of ${input.name} is ${describe(gradient)} but the input ` +
          `is ${input.tensor.dtype}[${input.tensor.shape.join(',')}]`,
      )
    }
    gradients.contribute(input.id, gradient.keep(), ends.get(input.name)?.result)
  }
}

/** Runs an op and records it when a gradient may be asked for. */
export function apply<I extends Inputs, A>(op: Op<I, A>, inputs: I, attrs: A): Tensor[] {
  const tape = active
  const needsGradient = op.backward !== 'notDifferentiable' && tape?.needs(inputs) === true
  // What the op made and neither returned nor saved is freed here, also when it fails halfway.
  return withDevice(deviceOf(inputs), () =>
    scope(() => {
      const { outputs, saved } = calledAs(op.name, nativeOpNames, () => op.forward(inputs, attrs, needsGradient))
      if (needsGradient) tape.push(op as unknown as Op, inputs, attrs, outputs[0]!, saved ?? {})
      return outputs
    }),
  )
}

/**
 * The value of `body`, a loss of one element, and its gradients with respect to each of `targets`, in their order:
 * what a tape records and gives, in one call.
 */
export function valueAndGradients(body: () => Tensor, targets: Iterable<Tensor>): { value: Tensor; gradients: Tensor[] } {
  const wanted = [...targets]
  const tape = new Tape().watch(wanted)
  try {
    const value = tape.record(() => scope(body))
    expectTensor('valueAndGradients', 'the loss', value)
    if (value.size !== 1) fail('SHAPE', `valueAndGradients: expected a loss of one element but received ${describe(value)}`)
    return { value, gradients: tape.backward(value, wanted) }
  } finally {
    tape.dispose()
  }
}

/** An op runs where its first input is; the native side refuses tensors of several devices. */
function deviceOf(inputs: Inputs): string {
  for (const tensor of Object.values(inputs)) if (tensor !== undefined) return tensor.device
  return currentDevice()
}

/** Runs `body` without recording: what it computes is a constant to the tape. */
export function noGrad<R>(body: () => R): R {
  const outer = active
  active = undefined
  try {
    return body()
  } finally {
    active = outer
  }
}
