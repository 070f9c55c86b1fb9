/** A graph of ONNX: nodes, constants, inputs and outputs, as the bytes of a model. Format: onnx/onnx.proto (facts only). */
import { bytesField, floatField, intField, varint } from '../files/protobuf.js'

/** The operator set, which ONNX 1.8 of 2020 and all later runtimes know. */
export const operatorSet = 13
/** That of detectors, of ONNX 1.11 of 2022: RoIAlign before it samples half a cell off. */
export const regionOperatorSet = 16
/** The version of the format that came with the operator set. */
const formatVersion = (set: number): number => (set < 15 ? 7 : 8)

/** Numbers of ONNX's element types. */
export const elementTypes = { f32: 1, u8: 2, i64: 7, f64: 11 } as const
type ElementType = keyof typeof elementTypes

/** What an attribute of a node may be; integers are int64, numbers marked as `float` are float32. */
export type Attribute = number | readonly number[] | string | { float: number }

/** The size of an axis, or the name of one that differs from call to call. */
export type Dimension = number | string

// Numbers of the fields of AttributeProto, and of its types.
function attribute(name: string, value: Attribute): Buffer {
  const named = bytesField(1, name)
  if (typeof value === 'string') return Buffer.concat([named, bytesField(4, value), intField(20, 3)])
  if (typeof value === 'number') return Buffer.concat([named, intField(3, value), intField(20, 2)])
  if ('float' in value) return Buffer.concat([named, floatField(2, value.float), intField(20, 1)])
  return Buffer.concat([named, ...value.map((each) => intField(8, each)), intField(20, 7)])
}

function valueInfo(name: string, type: ElementType, dimensions: readonly Dimension[]): Buffer {
  const sizes = dimensions.map((size) => bytesField(1, typeof size === 'number' ? intField(1, size) : bytesField(2, size)))
  const tensor = Buffer.concat([intField(1, elementTypes[type]), bytesField(2, Buffer.concat(sizes))])
  return Buffer.concat([bytesField(1, name), bytesField(2, bytesField(1, tensor))])
}

/** Collects nodes and constants; names of values are made from those of the nodes' types. */
export class OnnxGraph {
  readonly #nodes: Buffer[] = []
  readonly #constants: Buffer[][] = []
  readonly #inputs: Buffer[] = []
  readonly #outputs: Buffer[] = []
  readonly #taken = new Map<string, number>()

  #unique(name: string): string {
    const count = this.#taken.get(name) ?? 0
    this.#taken.set(name, count + 1)
    return count === 0 ? name : `${name}_${count}`
  }

  /** Adds an input and gives its name. */
  input(name: string, type: ElementType, dimensions: readonly Dimension[]): string {
    this.#inputs.push(valueInfo(this.#unique(name), type, dimensions))
    return name
  }

  /** Makes a value an output of the graph, by one more node under `name`. */
  output(name: string, value: string, dimensions: readonly Dimension[], type: ElementType = 'f32'): void {
    this.#taken.set(name, 1)
    this.#nodes.push(this.#encoded('Identity', [value], [name], {}))
    this.#outputs.push(valueInfo(name, type, dimensions))
  }

  /** Adds a node with one output and gives its name. An absent input of several is ''. */
  node(type: string, inputs: readonly string[], attributes: Readonly<Record<string, Attribute>> = {}): string {
    return this.nodes(type, inputs, 1, attributes)[0]!
  }

  /** Adds a node with several outputs and gives their names. */
  nodes(type: string, inputs: readonly string[], count: number, attributes: Readonly<Record<string, Attribute>> = {}): string[] {
    const outputs = Array.from({ length: count }, () => this.#unique(type.toLowerCase()))
    this.#nodes.push(this.#encoded(type, inputs, outputs, attributes))
    return outputs
  }

  #encoded(type: string, inputs: readonly string[], outputs: readonly string[], attributes: Readonly<Record<string, Attribute>>): Buffer {
    return Buffer.concat([
      ...inputs.map((name) => bytesField(1, name)),
      ...outputs.map((name) => bytesField(2, name)),
      bytesField(3, outputs[0]!),
      bytesField(4, type),
      ...Object.entries(attributes).map(([name, value]) => bytesField(5, attribute(name, value))),
    ])
  }

  /** Adds a constant, whose values are kept as they are, and gives its name. */
  constant(name: string, values: Float32Array | Float64Array | BigInt64Array, shape: readonly number[]): string {
    const unique = this.#unique(name)
    const bytes = new Uint8Array(values.buffer, values.byteOffset, values.byteLength)
    const head = Buffer.concat([
      ...shape.map((size) => intField(1, size)),
      intField(2, elementTypes[values instanceof Float32Array ? 'f32' : values instanceof Float64Array ? 'f64' : 'i64']),
      bytesField(8, unique),
    ])
    this.#constants.push([
      head,
      Buffer.concat([varint(9 * 8 + 2), varint(bytes.length)]),
      Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length),
    ])
    return unique
  }

  /** One float, or a list of integers. */
  scalar(value: number): string {
    return this.constant('constant', Float32Array.of(value), [])
  }
  integers(values: readonly number[]): string {
    return this.constant('constant', BigInt64Array.from(values.map(BigInt)), [values.length])
  }

  /** The bytes of a model of this graph, in pieces, with words about it. */
  encode(name: string, producer: string, metadata: Readonly<Record<string, string>>, set = operatorSet): Uint8Array[] {
    const field = (number: number, pieces: readonly Uint8Array[]): Uint8Array[] => {
      const length = pieces.reduce((sum, piece) => sum + piece.length, 0)
      return [Buffer.concat([varint(number * 8 + 2), varint(length)]), ...pieces]
    }
    const graph = [
      ...this.#nodes.map((node) => bytesField(1, node)),
      bytesField(2, name),
      ...this.#constants.flatMap((pieces) => field(5, pieces)),
      ...this.#inputs.map((each) => bytesField(11, each)),
      ...this.#outputs.map((each) => bytesField(12, each)),
    ]
    return [
      intField(1, formatVersion(set)),
      bytesField(2, producer),
      ...field(7, graph),
      bytesField(8, intField(2, set)),
      ...Object.entries(metadata).map(([key, value]) => bytesField(14, Buffer.concat([bytesField(1, key), bytesField(2, value)]))),
    ]
  }
}
