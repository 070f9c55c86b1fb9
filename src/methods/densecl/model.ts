import { disposeState, emptyState, include, type State } from '../../nn/module.js'
import { Random } from '../../tensor/random.js'
import { l2Normalize } from '../../ops/similarity.js'
import type { EmaTarget } from '../../optim/optimizer.js'
import { fail } from '../../tensor/errors.js'
import { runNative } from '../../tensor/native.js'
import { numbersOf } from '../../tensor/numbers.js'
import { accumulator, type FloatDType, scope, Tensor } from '../../tensor/tensor.js'
import { Encoder, type EncoderOptions } from './encoder.js'

/** The last K keys, one a row [K, D], written in a ring at any batch size. */
export class Queue {
  readonly keys: Tensor
  readonly pointer: Tensor

  /** Starts with random unit vectors. */
  constructor(random: Random, length: number, dim: number, dtype: FloatDType) {
    const values = (): Float64Array => numbersOf(`a queue [${length},${dim}]`, length * dim, () => random.normal())
    this.keys = scope(() => {
      const unit = l2Normalize(Tensor.drawn(values, [length, dim], accumulator(dtype)))
      return unit.dtype === dtype ? unit : unit.to(dtype)
    }).keep()
    this.pointer = Tensor.zeros([1], 'i32').keep()
  }

  /** Writes keys [B, D] over the oldest. */
  enqueue(keys: Tensor): void {
    if (keys.shape.length !== 2 || keys.shape[1] !== this.keys.shape[1] || keys.dtype !== this.keys.dtype) {
      fail(
        'SHAPE',
        `enqueue: expected keys ${this.keys.dtype}[B,${this.keys.shape[1]}] but received ${keys.dtype}[${keys.shape.join(',')}]`,
      )
    }
    runNative('enqueue', { queue: this.keys, pointer: this.pointer, keys })
  }
}

/** A permutation of the key batch, i32 [1, N], and its inverse. */
export type KeyOrder = Record<'shuffle' | 'unshuffle', Tensor>

/** What a DenseCL model is built with. */
export interface DenseCLOptions extends EncoderOptions {
  queueLength: number
  seed: number
  /** The dtype of parameters: f32, or f64 on the CPU. */
  dtype?: FloatDType
  /** The dtype of activations, embeddings and queues: bf16 for mixed precision, `dtype` when absent. */
  compute?: FloatDType
}

/** The trained encoder, its moving average, and the two queues of negatives, on the device that is current when it is made. */
export class DenseCL {
  readonly query: Encoder
  readonly key: Encoder
  readonly queue: Queue
  readonly denseQueue: Queue
  readonly compute: FloatDType
  readonly device: string
  /** The optimiser has moved the key encoder already, for the next step. */
  keyAhead = false
  /** What a step reads on the device: the weights of both losses. */
  readonly lossWeights: { global: Tensor; dense: Tensor }
  #keyOrder: KeyOrder | undefined

  constructor(readonly options: DenseCLOptions) {
    const { seed, queueLength, dtype = 'f32', compute = dtype } = options
    this.compute = compute
    this.query = new Encoder({ random: new Random(seed, 1), dtype, compute }, options)
    this.key = new Encoder({ random: new Random(seed, 1), dtype, compute }, options)
    this.queue = new Queue(new Random(seed, 2), queueLength, options.neck.featDim, compute)
    this.denseQueue = new Queue(new Random(seed, 3), queueLength, options.neck.featDim, compute)
    this.device = this.queue.keys.device
    this.lossWeights = { global: Tensor.zeros([1], dtype).keep(), dense: Tensor.zeros([1], dtype).keep() }
  }

  /** What is trained, by name: the query encoder's parameters. */
  parameters(): Map<string, Tensor> {
    return this.query.state().parameters
  }

  /** Writes what the next step reads on the device: the weights of the losses, and the order of the key batch if there is one. */
  prepare({ denseWeight, keyOrder }: { denseWeight: number; keyOrder?: ArrayLike<number> | undefined }): void {
    for (const [tensor, weight] of [
      [this.lossWeights.global, 1 - denseWeight],
      [this.lossWeights.dense, denseWeight],
    ] as const) {
      tensor.write(tensor.dtype === 'f64' ? Float64Array.of(weight) : Float32Array.of(weight))
    }
    if (keyOrder?.length !== this.#keyOrder?.shuffle.size) {
      for (const tensor of Object.values(this.#keyOrder ?? {})) tensor.dispose()
      const order = (): Tensor => Tensor.empty([1, keyOrder!.length], 'i32', this.device).keep()
      this.#keyOrder = keyOrder === undefined ? undefined : { shuffle: order(), unshuffle: order() }
    }
    if (keyOrder === undefined) return
    const inverse = new Int32Array(keyOrder.length)
    for (let i = 0; i < keyOrder.length; ++i) inverse[keyOrder[i]!] = i
    this.#keyOrder!.shuffle.write(Int32Array.from(keyOrder))
    this.#keyOrder!.unshuffle.write(inverse)
  }

  /** The permutation that prepare() set, i32 [1, N]: `shuffle` orders the key batch before the key encoder, `unshuffle` undoes it after. */
  get keyOrder(): KeyOrder | undefined {
    return this.#keyOrder
  }

  /**
   * Key parameters become m * key + (1 - m) * query; running statistics are the key encoder's own. Nothing happens when the
   * optimiser has done it.
   */
  updateKeyEncoder(momentum: number): void {
    if (!this.keyAhead) {
      const [key, query] = [this.key.state(), this.query.state()]
      const names = [...key.parameters.keys()]
      runNative(
        'ema',
        {
          averages: [...key.parameters.values()],
          sources: names.map((name) => query.parameters.get(name)!),
          copies: names.map((name) => key.copies.get(name)),
        },
        { momentum },
      )
    }
    this.keyAhead = false
  }

  /** The key encoder as the EMA target that Sgd.step moves after the parameters, as the next step would at its beginning. */
  emaTarget(momentum: number): EmaTarget {
    const { parameters, copies } = this.key.state()
    this.keyAhead = true
    return { parameters, copies, momentum }
  }

  /** Every tensor of the model, under the names of the original checkpoints (docs/method.md, Names of tensors). */
  state(): State {
    const state = emptyState()
    state.buffers.set('queue', this.queue.keys).set('queue_ptr', this.queue.pointer)
    state.buffers.set('queue2', this.denseQueue.keys).set('queue2_ptr', this.denseQueue.pointer)
    include(state, 'encoder_q', this.query.state())
    include(state, 'encoder_k', this.key.state())
    return state
  }

  /** Frees every tensor of the model. */
  dispose(): void {
    disposeState(this.state())
    for (const tensor of [...Object.values(this.lossWeights), ...Object.values(this.#keyOrder ?? {})]) tensor.dispose()
  }
}
