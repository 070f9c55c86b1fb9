/** From what a tape recorded to a graph of ONNX, whose batch and image sizes are free. */
import { permute } from '../ops/permute.js'
import { fail } from '../tensor/errors.js'
import { scope, type Shape, type Tensor } from '../tensor/tensor.js'
import { type Dimension, OnnxGraph } from './graph.js'
import { rows } from './ops.js'
import type { Trace, TracedOp, TracedTensor } from './trace.js'

/** The name of a value with its axes as the engine has them, or with its channels before its rows and columns. */
export interface Written {
  plain?: string
  first?: string
}

/** A value of the graph; `shape` and `other` are its sizes in two traces, which differ where they follow the image. */
export interface Operand extends Written {
  shape: Shape
  other: Shape
  /** Of what does not depend on the image: its tensor, under the number that it had in the trace. */
  constant?: { id: number; tensor: Tensor }
}

/** Writes a network once, from traces of it on images of two sizes; or several, each on a value of its own, into one graph. */
export class Translation {
  readonly graph = new OnnxGraph()
  readonly #operands = new Map<number, Operand>()
  readonly #constants = new Map<number, string>()
  readonly #names: ReadonlyMap<number, string>

  /** `parameters`: names of tensors by their numbers. */
  constructor(parameters: ReadonlyMap<number, string>) {
    this.#names = parameters
  }

  /** Writes all ops of a trace on a value, given as the images [N, C, H, W]; gives the names of the results, and their axes. */
  write(image: string, trace: Trace, other: Trace): Map<string, { value: string; dimensions: Dimension[] }> {
    // Sizes are looked for among the values of this network alone.
    this.#operands.clear()
    this.#operands.set(trace.image.id, { first: image, shape: trace.image.shape, other: other.image.shape })
    const needed = neededOps(trace)
    trace.ops.forEach(({ name, attrs, inputs, output }, i) => {
      if (!needed.has(i)) return
      const twin = other.ops[i]
      if (twin?.name !== name)
        fail('ARGUMENT', `onnx: expected the same ops for every image size but ${name} is not among those of another`)
      expectAlike(name, { attrs, inputs }, twin)
      const operands = new Map([...inputs].map(([key, tensor]) => [key, this.#operands.get(tensor.id) ?? constantOperand(tensor)] as const))
      const row = rows[name] ?? fail('ARGUMENT', `onnx: expected ops among ${Object.keys(rows).join(', ')} but the network has ${name}`)
      const sizes = { shape: output.shape, other: twin.output.shape }
      this.#operands.set(output.id, { ...sizes, ...row({ to: this, op: name, inputs: operands, attrs, output: sizes }) })
    })
    return new Map([...trace.results].map(([name, { id }]) => [name, this.#result(name, this.#operands.get(id))]))
  }

  #result(name: string, operand: Operand | undefined): { value: string; dimensions: Dimension[] } {
    if (operand === undefined) return fail('ARGUMENT', `onnx: the output ${name} does not depend on the image`)
    const { shape, other } = operand
    const order = shape.length === 4 ? [0, 3, 1, 2] : [...shape.keys()]
    const called = ['batch', `${name}_height`, `${name}_width`]
    const dimensions = order.map((axis): Dimension => (axis === 0 || shape[axis] !== other[axis] ? called[axis]! : shape[axis]!))
    return { value: shape.length === 4 ? this.first(operand) : this.plain(operand), dimensions }
  }

  /** The name of a value with its axes in the engine's order. */
  plain(operand: Operand): string {
    const { constant } = operand
    if (constant !== undefined) return this.constant(constant.tensor, { id: constant.id })
    operand.plain ??= this.graph.node('Transpose', [operand.first!], { perm: [0, 2, 3, 1] })
    return operand.plain
  }

  /** The name of a map with its channels first. */
  first(operand: Operand): string {
    operand.first ??= this.graph.node('Transpose', [this.plain(operand)], { perm: [0, 3, 1, 2] })
    return operand.first
  }

  /** The values of a tensor that does not depend on the image. */
  constant(tensor: Tensor, { order, id = tensor.id }: { order?: readonly number[]; id?: number } = {}): string {
    const known = this.#constants.get(id)
    if (known !== undefined) return known
    const name = this.#names.get(id) ?? 'constant'
    const written = scope(() => {
      const ordered = order === undefined ? tensor : permute(tensor, order)
      return this.graph.constant(name, Float32Array.from(ordered.data()), ordered.shape)
    })
    this.#constants.set(id, written)
    return written
  }

  /** The weight [O, KH, KW, I] of a convolution, as [O, I, KH, KW]. */
  kernel({ constant }: Operand): string {
    if (constant === undefined) return fail('ARGUMENT', 'onnx: expected weights of a convolution that do not depend on the image')
    return this.constant(constant.tensor, { order: [0, 3, 1, 2], id: constant.id })
  }

  /** The shape of `output`, made of `input`, as Reshape takes it: 0 for an axis as it was, -1 for one that follows from the others. */
  sizes(input: Operand, output: Operand): string {
    const { shape, other } = output
    const free = [...shape.keys()].filter((axis) => shape[axis] !== other[axis])
    const kept = (axis: number): boolean => shape[axis] === input.shape[axis] && other[axis] === input.other[axis]
    const open = free.filter((axis) => !kept(axis))
    if (open.length <= 1)
      return this.graph.integers([...shape.keys()].map((axis) => (open.includes(axis) ? -1 : free.includes(axis) ? 0 : shape[axis]!)))
    return this.#sizesAs(output, [...shape.keys()])
  }

  /** The sizes [N, C, H, W] of a map that is resized to the rows and columns of `output`. */
  resized(output: Operand): string {
    return this.#sizesAs(output, [0, 3, 1, 2])
  }

  /** The sizes of some axes, those that follow the image taken from a value that has them, or a part of them. */
  #sizesAs({ shape, other }: Operand, axes: readonly number[]): string {
    const { graph } = this
    const parts = axes.map((axis) => {
      if (shape[axis] === other[axis]) return graph.integers([shape[axis]!])
      let nearest: { times: number; operand: Operand; at: number } | undefined
      for (const operand of this.#operands.values())
        for (const [at, size] of operand.shape.entries()) {
          const times = shape[axis]! / size
          if (operand.other[at] === size || !Number.isInteger(times) || times * operand.other[at]! !== other[axis]) continue
          if (times < (nearest?.times ?? Infinity)) nearest = { times, operand, at }
        }
      if (nearest !== undefined) {
        const { times, operand, at } = nearest
        const [name, place] = operand.plain === undefined ? [operand.first!, [0, 2, 3, 1][at]!] : [operand.plain, at]
        const size = graph.node('Slice', [graph.node('Shape', [name]), graph.integers([place]), graph.integers([place + 1])])
        return times === 1 ? size : graph.node('Mul', [size, graph.integers([times])])
      }
      return fail(
        'ARGUMENT',
        `onnx: expected sizes that the image or a map has, or multiples, but received [${shape.join(',')}], whose axis ${axis} is none`,
      )
    })
    return graph.node('Concat', parts, { axis: 0 })
  }
}

function constantOperand({ id, shape, values }: TracedTensor): Operand {
  return { shape, other: shape, ...(values === undefined ? {} : { constant: { id, tensor: values } }) }
}

/**
 * Throws ARGUMENT where an op has other numbers or constants on images of another size: a model has those of one size. Shapes in `attrs`
 * follow the image, and rows do not write them.
 */
function expectAlike(name: string, one: Pick<TracedOp, 'attrs' | 'inputs'>, other: Pick<TracedOp, 'attrs' | 'inputs'>): void {
  const refuse = (what: string, [a, b]: readonly [unknown, unknown]): never =>
    fail('ARGUMENT', `onnx: expected ${what} of ${name} not to depend on the image size but received ${String(a)} and then ${String(b)}`)
  const [numbers, others] = [numbersOf(one.attrs), numbersOf(other.attrs)]
  for (const [key, value] of Object.entries(numbers)) if (value !== others[key]) refuse(`the number ${key}`, [value, others[key]])
  for (const [key, { id, values }] of one.inputs) {
    const twin = other.inputs.get(key)
    if (values === undefined || id === twin?.id) continue
    if (twin?.values === undefined || !isSame(values, twin.values)) refuse(`the constant ${key}`, [wordsOf(values), wordsOf(twin?.values)])
  }
}

/** The windows of an op and the factor of a scale. */
function numbersOf(attrs: unknown): Record<string, unknown> {
  const { numbers, factor } = attrs as { numbers?: Record<string, unknown>; factor?: number | Tensor }
  return { ...numbers, ...(factor === undefined ? {} : { factor: typeof factor === 'number' ? factor : factor.item() }) }
}

const isSame = (a: Tensor, b: Tensor): boolean => {
  if (a.shape.join() !== b.shape.join()) return false
  const [values, others] = [a.data(), b.data()]
  return values.every((value, i) => Object.is(value, others[i]))
}
const wordsOf = (tensor: Tensor | undefined): string =>
  tensor === undefined ? 'none' : tensor.size === 1 ? `${tensor.item()}` : `[${tensor.shape.join(',')}]`

/** The places of the ops that the results depend on. */
function neededOps({ ops, results }: Trace): Set<number> {
  const needed = new Set<number>()
  const wanted = new Set([...results.values()].map(({ id }) => id))
  for (let i = ops.length - 1; i >= 0; --i)
    if (wanted.has(ops[i]!.output.id)) {
      needed.add(i)
      for (const { id } of ops[i]!.inputs.values()) wanted.add(id)
    }
  return needed
}
