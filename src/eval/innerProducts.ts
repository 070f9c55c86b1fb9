/**
 * Inner products of feature rows, 1 added for the bias of a linear classifier, kept on the device as a matrix of centred features and
 * what the centre adds: features after a ReLU share a large common part, which in f32 would drown the rest.
 *
 *     x_i . x_j + 1 = c_i . c_j + c_i . m + c_j . m + m . m + 1,   c = x - m
 */
import { linear } from '../ops/linear.js'
import { withCompute } from '../tensor/compute.js'
import { scope, Tensor } from '../tensor/tensor.js'

/** Features of images, one row each. */
export interface FeatureSet {
  /** [n, dim], row-major */
  values: Float32Array
  dim: number
}

/** Rows divided by (their length + 1e-5), in place, summed in f64: the normalisation of the VOC07 benchmarks. */
export function normaliseRows({ values, dim }: FeatureSet): void {
  for (let row = 0; row < values.length; row += dim) {
    let sum = 0
    for (let i = row; i < row + dim; ++i) sum += values[i]! * values[i]!
    const length = Math.sqrt(sum) + 1e-5
    for (let i = row; i < row + dim; ++i) values[i]! /= length
  }
}

function meanRow({ values, dim }: FeatureSet): Float64Array {
  const mean = new Float64Array(dim)
  const weight = dim / values.length
  for (let row = 0; row < values.length; row += dim) for (let c = 0; c < dim; ++c) mean[c]! += weight * values[row + c]!
  return mean
}

/** Subtracts `mean` from every row in place; the inner product of each with it. */
function centre({ values, dim }: FeatureSet, mean: Float64Array): Float64Array {
  return Float64Array.from({ length: values.length / dim }, (_, row) => {
    let product = 0
    for (let c = 0; c < dim; ++c) {
      const at = row * dim + c
      values[at] = values[at]! - mean[c]!
      product += values[at] * mean[c]!
    }
    return product
  })
}

/** a b^T in whole f32, whatever convolutions are computed in: a classifier's small differences would be lost. */
const product = (a: Tensor, b: Tensor): Tensor => withCompute({ precision: 'f32' }, () => linear(a, b))

/** Inner products + 1 of each row of one set with each row, an example, of another. */
export class InnerProducts {
  private constructor(
    /** c_i . c_j, [rows, examples] */
    readonly matrix: Tensor,
    /** c_i . m of rows and of examples, and m . m + 1 */
    readonly rowParts: Float64Array,
    readonly exampleParts: Float64Array,
    readonly constant: number,
  ) {}

  /** Inner products of examples with themselves and of other rows with the examples; the values of both sets are centred in place. */
  static of(examples: FeatureSet, others: FeatureSet): { gram: InnerProducts; cross: InnerProducts } {
    const { dim } = examples
    const mean = meanRow(examples)
    const parts = centre(examples, mean)
    const otherParts = centre(others, mean)
    const constant = mean.reduce((sum, value) => sum + value * value, 1)
    const tensor = ({ values }: FeatureSet): Tensor => Tensor.from(values, [values.length / dim, dim])
    const [gram, cross] = scope(() => {
      const known = tensor(examples)
      return [product(known, known), product(tensor(others), known)].map((matrix) => matrix.keep())
    }) as [Tensor, Tensor]
    return { gram: new InnerProducts(gram, parts, parts, constant), cross: new InnerProducts(cross, otherParts, parts, constant) }
  }

  get examples(): number {
    return this.matrix.shape[1]!
  }

  /** The weighted sums, for each vector of weights of the examples, of inner products of every row. */
  times(vectors: readonly Float64Array[]): Float64Array[] {
    const [rows, n] = this.matrix.shape as [number, number]
    const packed = new Float32Array(vectors.length * n)
    vectors.forEach((vector, i) => packed.set(vector, i * n))
    const { device } = this.matrix
    const products = scope(() => product(Tensor.from(packed, [vectors.length, n], 'f32', device), this.matrix).data())
    return vectors.map((vector, i) => {
      let [sum, weighted] = [0, 0]
      for (let j = 0; j < n; ++j) {
        sum += vector[j]!
        weighted += vector[j]! * this.exampleParts[j]!
      }
      const shift = weighted + this.constant * sum
      return Float64Array.from({ length: rows }, (_, r) => products[i * rows + r]! + this.rowParts[r]! * sum + shift)
    })
  }

  /** Frees what lies on the device. */
  dispose(): void {
    this.matrix.dispose()
  }
}
