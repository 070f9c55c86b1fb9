import type { OpName } from '../../ops/catalogue.js'
import type { Random } from '../../tensor/random.js'
import { accumulator, type DType, type FloatDType, type Shape, sizeOf, Tensor } from '../../tensor/tensor.js'
import { normal } from '../pool.js'

/** Makes tensors of random values on the device that is benched; the bytes of all of them count as moved once. */
export class Setting {
  bytes = 0
  constructor(
    readonly random: Random,
    readonly dtype: FloatDType,
    readonly batch: number,
  ) {}

  values(shape: Shape, dtype: FloatDType = this.dtype): Tensor {
    const tensor = normal(this.random, shape, dtype)
    this.#count(tensor)
    return tensor
  }
  sums(shape: Shape): Tensor {
    return this.values(shape, accumulator(this.dtype) as FloatDType)
  }
  indices(shape: Shape, below: number): Tensor {
    const tensor = Tensor.from(
      Int32Array.from({ length: sizeOf(shape) }, () => this.random.below(below)),
      shape,
      'i32',
    )
    this.#count(tensor)
    return tensor
  }
  output(shape: Shape, dtype: DType = this.dtype): Tensor {
    const tensor = Tensor.zeros(shape, dtype)
    this.#count(tensor)
    return tensor
  }
  /** A tensor of which only a part is read or written: its bytes are not counted. */
  uncounted(shape: Shape): Tensor {
    return Tensor.zeros(shape, this.dtype)
  }
  #count(tensor: Tensor): void {
    this.bytes += tensor.bytes
  }
}

export interface BenchCase {
  /** Layer and direction. */
  name: string
  flops: (batch: number) => number
  /** Makes the tensors; the result runs the op once on them. */
  prepare: (setting: Setting) => () => void
  /** The same work for the peer (bench/peers/ops.py): its name there and numbers. */
  peer?: { op: string; numbers: (batch: number) => number[] }
}

/** Cases, or why there are none. */
export type BenchCases = readonly BenchCase[] | string

/** Those of a family of ops. */
export type FamilyCases = Partial<Record<OpName, BenchCases>>

/** The result of ResNet-50's layer1. */
export const map = (n: number): Shape => [n, 56, 56, 256]
export const mapSize = 56 * 56 * 256

/** Rows of embeddings of a batch. */
export const embeddings: readonly { name: string; of: (batch: number) => number }[] = [
  { name: 'global', of: (n) => n },
  { name: 'dense', of: (n) => 49 * n },
]
export const queueLength = 65536
