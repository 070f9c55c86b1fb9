/** What a network does to an image, as a list of ops: what a tape records of it. */
import type { Inputs, Op } from '../autograd/op.js'
import { Tape } from '../autograd/tape.js'
import { scope, type Shape, Tensor } from '../tensor/tensor.js'

/** A tensor of a trace; `values` of those that no op of it gave, which are parameters and constants. */
export interface TracedTensor {
  id: number
  shape: Shape
  values?: Tensor
}

/** An op that ran, on which tensors, and the first that it gave. */
export interface TracedOp {
  name: string
  attrs: unknown
  inputs: ReadonlyMap<string, TracedTensor>
  output: TracedTensor
}

/** One run: the tensor of the images, the ops in their order, and the results by name. */
export interface Trace {
  image: TracedTensor
  ops: readonly TracedOp[]
  results: ReadonlyMap<string, TracedTensor>
}

const described = ({ id, shape }: Tensor): TracedTensor => ({ id, shape })

class Tracer extends Tape {
  readonly ops: TracedOp[] = []
  readonly #given: Set<number>
  readonly #held: Tensor[] = []

  constructor(image: Tensor) {
    super()
    this.watch([image])
    this.#given = new Set([image.id])
  }

  override push(op: Op, inputs: Inputs, attrs: unknown, output: Tensor): void {
    const present = Object.entries(inputs).filter((entry): entry is [string, Tensor] => entry[1] !== undefined)
    const traced = present.map(([name, tensor]): [string, TracedTensor] => {
      if (this.#given.has(tensor.id)) return [name, described(tensor)]
      // The scope that it was made in may end before the trace is read.
      const values = tensor.alias().keep()
      this.#held.push(values)
      return [name, { ...described(tensor), values }]
    })
    this.ops.push({ name: op.name, attrs, inputs: new Map(traced), output: described(output) })
    this.#given.add(output.id)
    // Nothing is saved: there will be no gradients.
    super.push(op, inputs, attrs, output, {})
  }

  override dispose(): void {
    for (const tensor of this.#held.splice(0)) tensor.dispose()
    super.dispose()
  }
}

/** Runs `body` on images of zeros [N, H, W, C], and gives what ran to `use`, during whose call the parameters may be read. */
export function traced<R>(
  shape: readonly [number, number, number, number],
  body: (images: Tensor) => ReadonlyMap<string, Tensor>,
  use: (trace: Trace) => R,
): R {
  return scope(() => {
    const images = Tensor.zeros(shape)
    const tape = new Tracer(images)
    try {
      const results = tape.record(() => body(images))
      return use({ image: described(images), ops: tape.ops, results: new Map([...results].map(([name, each]) => [name, described(each)])) })
    } finally {
      tape.dispose()
    }
  })
}
