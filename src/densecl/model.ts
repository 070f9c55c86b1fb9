import { allTensors, emptyState, include, type State } from '../nn/module.js'
import { Random } from '../nn/random.js'
import { l2Normalize } from '../ops/similarity.js'
import { fail } from '../tensor/errors.js'
import { runNative } from '../tensor/native.js'
import { type FloatDType, scope, Tensor } from '../tensor/tensor.js'
import { Encoder, type EncoderOptions } from './encoder.js'

/** The last K keys, one a row [K, D], written in a ring at any batch size. */
export class Queue {
  readonly keys: Tensor
  readonly pointer: Tensor

  /** Starts with random unit vectors. */
  constructor(random: Random, length: number, dim: number, dtype: FloatDType) {
    const values = Float64Array.from({ length: length * dim }, () => random.normal())
    this.keys = scope(() => l2Normalize(Tensor.from(values, [length, dim], dtype))).keep()
    this.pointer = Tensor.zeros([1], 'i32').keep()
  }

  /** Writes keys [B, D] over the oldest. */
  enqueue(keys: Tensor): void {
    if (keys.shape.length !== 2 || keys.shape[1] !== this.keys.shape[1] || keys.dtype !== this.keys.dtype) {
      fail('SHAPE', `enqueue: expected keys ${this.keys.dtype}[B,${this.keys.shape[1]}] but received ${keys.dtype}[${keys.shape.join(',')}]`)
    }
    runNative('enqueue', [this.keys, this.pointer, keys])
  }
}

export interface DenseCLOptions extends EncoderOptions {
  queueLength: number
  seed: number
  dtype?: FloatDType
}

/** The trained encoder, its moving average, and the two queues of negatives. */
export class DenseCL {
  readonly query: Encoder
  readonly key: Encoder
  readonly queue: Queue
  readonly denseQueue: Queue
  readonly dtype: FloatDType

  constructor(readonly options: DenseCLOptions) {
    const { seed, queueLength, dtype = 'f32' } = options
    this.dtype = dtype
    this.query = new Encoder({ random: new Random(seed, 1), dtype }, options)
    this.key = new Encoder({ random: new Random(seed, 1), dtype }, options)
    this.queue = new Queue(new Random(seed, 2), queueLength, options.neck.featDim, dtype)
    this.denseQueue = new Queue(new Random(seed, 3), queueLength, options.neck.featDim, dtype)
  }

  /** What is trained, by name: the query encoder's parameters. */
  parameters(): Map<string, Tensor> {
    return this.query.state().parameters
  }

  /** Key parameters become m * key + (1 - m) * query; running statistics are the key encoder's own. */
  updateKeyEncoder(momentum: number): void {
    runNative('ema', [...this.key.state().parameters.values(), ...this.query.state().parameters.values()], [momentum])
  }

  /** Everything, under the names of the original checkpoints (densecl-spec 3.1). */
  state(): State {
    const state = emptyState()
    state.buffers.set('queue', this.queue.keys).set('queue_ptr', this.queue.pointer)
    state.buffers.set('queue2', this.denseQueue.keys).set('queue2_ptr', this.denseQueue.pointer)
    include(state, 'encoder_q', this.query.state())
    include(state, 'encoder_k', this.key.state())
    return state
  }

  dispose(): void {
    for (const [, tensor] of allTensors(this.state())) tensor.dispose()
  }
}
