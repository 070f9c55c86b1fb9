import { Group, type Pending } from '../../distributed/group.js'
import { type Exchange, returning } from '../../distributed/keyOrder.js'
import { noGrad } from '../../autograd/tape.js'
import { disposeState, emptyState, include, type State } from '../../nn/module.js'
import { div, maximum } from '../../ops/arithmetic.js'
import { scale } from '../../ops/elementwise.js'
import { Random } from '../../tensor/random.js'
import { l2Normalize, permuteBatch } from '../../ops/similarity.js'
import type { EmaTarget } from '../../optim/optimizer.js'
import { fail } from '../../tensor/errors.js'
import { runNative } from '../../tensor/native.js'
import { numbersOf } from '../../tensor/numbers.js'
import { accumulator, currentDevice, type FloatDType, scope, Tensor } from '../../tensor/tensor.js'
import { deviceTraits } from '../../tensor/traits.js'
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

/** The order in which the key batch passes the key encoder, with the way to the processes that encode it. */
export interface KeyOrder {
  /** Starts to send key images [N, ...]: joined, those that this process encodes. */
  send: (view: Tensor) => Pending<Tensor>
  /** What came of the images that were sent, each [N, ...], for this process's own in their own order. */
  bringBack: (outputs: readonly Tensor[]) => Tensor[]
}

/** What of the positions of a step is known before it, on the device. */
export interface Partners {
  /** The key position of each query position, i32 [N, P]; -1 for none. */
  index: Tensor
  /** Each query position that has one, by its own index, i32 [N, P]; -1 for the others. */
  counted: Tensor
}

/**
 * What the losses of a step are multiplied by, and what positions without a partner add to the dense one, which is taken off again: scalars
 * on the device.
 */
export type LossWeights = Record<'global' | 'dense' | 'inImage' | 'uncounted', Tensor>

/** What a step is prepared with (DenseCL.prepare). */
export interface Prepared {
  /** lambda: the loss is (1 - lambda) * global + lambda * dense. */
  denseWeight: number
  /** The share of the dense loss against the positions of the same picture; none where absent. */
  inImage?: number
  /** The order in which the key batch passes the key encoder, undone after it (shuffle-BN); absent for its own order. */
  keyOrder?: ArrayLike<number> | undefined
  /** Where the images go then, if several processes share the batch. */
  keyExchange?: Exchange | undefined
  /** Key positions [N, P] of the query positions, -1 for none; absent where the most similar ones are looked for. */
  partners?: { index: Int32Array; images: number } | undefined
  /** Positions of each key map [N, keys] that go into the dense queue; absent for the pooled embedding. */
  keyPicks?: { index: Int32Array; images: number } | undefined
}

/** What a DenseCL model is built with. */
export interface DenseCLOptions extends EncoderOptions {
  queueLength: number
  /** Keys of the dense queue; queueLength when absent. */
  denseQueueLength?: number
  seed: number
  /** The dtype of parameters: f32, or f64 on the CPU. */
  dtype?: FloatDType
  /** The dtype of activations, embeddings and queues: bf16 for mixed precision, `dtype` when absent. */
  compute?: FloatDType
  /** The processes that share every batch; Group.single when absent. */
  group?: Group
}

/** The trained encoder, its moving average, and the two queues of negatives, on the device that is current when it is made. */
export class DenseCL {
  readonly query: Encoder
  readonly key: Encoder
  readonly queue: Queue
  readonly denseQueue: Queue
  readonly compute: FloatDType
  readonly device: string
  /** The processes that share every batch: the queues get the keys of all of them. */
  readonly group: Group
  /** The optimiser has moved the key encoder already, for the next step. */
  keyAhead = false
  /** Those of the dense loss are divided by the positions that count in the whole batch where several processes know their own alone. */
  readonly #lossWeights: LossWeights
  /** How many positions have a partner: of this process, and while a step goes on of all. */
  readonly #counted: Tensor
  readonly #inputs = new Map<string, Tensor>()
  #keyExchange: Exchange | undefined

  constructor(readonly options: DenseCLOptions) {
    const { seed, queueLength, denseQueueLength = queueLength, dtype = 'f32', compute = dtype, group = Group.single } = options
    this.group = group
    this.compute = compute
    // On a GPU the optimiser writes copies along; a launch for each weight would take longer than they are worth.
    const keepsCopies = !deviceTraits(currentDevice()).hostMemory
    const encoder = (): Encoder => new Encoder({ random: new Random(seed, 1), dtype, compute, keepsCopies }, options)
    this.query = encoder()
    this.key = encoder()
    this.queue = new Queue(new Random(seed, 2), queueLength, options.neck.featDim, compute)
    this.denseQueue = new Queue(new Random(seed, 3), denseQueueLength, options.neck.featDim, compute)
    this.device = this.queue.keys.device
    const weight = (): Tensor => Tensor.zeros([1], dtype).keep()
    this.#lossWeights = { global: weight(), dense: weight(), inImage: weight(), uncounted: weight() }
    this.#counted = weight()
  }

  /** What is trained, by name: the query encoder's parameters. */
  parameters(): Map<string, Tensor> {
    return this.query.state().parameters
  }

  /** Writes what the next step reads on the device. */
  prepare({ denseWeight, inImage = 0, keyOrder, keyExchange, partners, keyPicks }: Prepared): void {
    const counted = partners?.index.map((partner, at) => (partner < 0 ? -1 : at % (partners.index.length / partners.images)))
    const without = counted?.reduce((count, own) => count + Number(own < 0), 0) ?? 0
    const all = counted?.length ?? 1
    const own = all - without
    // The mean over the processes of what each finds is the mean over the positions that count in the whole batch.
    const divisor = counted === undefined || this.group.size === 1 ? own : 1 / this.group.size
    // Where no position has a partner there is nothing to learn from: the loss is 0.
    const weight = divisor === 0 ? 0 : denseWeight / divisor
    const queued = weight * (1 - inImage)
    write(this.#counted, own)
    write(this.#lossWeights.global, 1 - denseWeight)
    write(this.#lossWeights.dense, queued * all)
    write(this.#lossWeights.inImage, weight * inImage * own)
    write(this.#lossWeights.uncounted, queued * without * Math.log(this.denseQueue.keys.shape[0]! + 1))

    this.#keyExchange = keyExchange
    this.#write('shuffle', keyOrder, 1)
    this.#write('unshuffle', keyOrder === undefined ? undefined : inverse(keyOrder), 1)
    // Of an empty set of positions a mean is none: one that weighs nothing stands in.
    this.#write(
      'index',
      without === all ? partners?.index.map((partner, at) => (at === 0 ? 0 : partner)) : partners?.index,
      partners?.images,
    )
    this.#write('counted', counted, partners?.images)
    this.#write('keyPicks', keyPicks?.index, keyPicks?.images)
  }

  /** Keeps `values` as an input of the steps, i32 [rows, ...]; at the same address as long as their number is the same. */
  #write(name: string, values: ArrayLike<number> | undefined, rows = 1): void {
    const known = this.#inputs.get(name)
    const wanted = values?.length ?? 0
    if (known?.size !== wanted) {
      known?.dispose()
      this.#inputs.delete(name)
    }
    if (values === undefined) return
    const shape = [rows, wanted / rows]
    const tensor = this.#inputs.get(name) ?? Tensor.empty(shape, 'i32', this.device).keep()
    this.#inputs.set(name, tensor)
    tensor.write(Int32Array.from(values))
  }

  /** The permutation that prepare() set, i32 [1, N]: `shuffle` orders the key batch before the key encoder, `unshuffle` undoes it after. */
  get keyOrder(): KeyOrder | undefined {
    const [shuffle, unshuffle] = [this.#inputs.get('shuffle'), this.#inputs.get('unshuffle')]
    if (shuffle === undefined || unshuffle === undefined) return undefined
    const exchange = this.#keyExchange
    const inOwnOrder = (x: Tensor): Tensor => permuteBatch(x, unshuffle)
    if (exchange === undefined)
      return { send: (view) => ({ join: () => permuteBatch(view, shuffle) }), bringBack: (outputs) => outputs.map(inOwnOrder) }
    return {
      send: (view) => {
        const shuffled = permuteBatch(view, shuffle)
        const pending = this.group.startExchange([shuffled], exchange)
        // What is sent is held until it is joined.
        shuffled.dispose()
        return { join: () => pending.join()[0]!.adopt() }
      },
      bringBack: (outputs) => this.group.startExchange(outputs, returning(exchange)).join().map(inOwnOrder),
    }
  }

  /** The partners that prepare() set. */
  get partners(): Partners | undefined {
    const [index, counted] = [this.#inputs.get('index'), this.#inputs.get('counted')]
    return index === undefined || counted === undefined ? undefined : { index, counted }
  }

  /**
   * @internal Starts to count the positions of all processes that have a partner. Joined: what the losses weigh, and the share of positions
   * that count where prepare() set partners.
   */
  startLossWeights(): Pending<LossWeights & { shown?: Tensor }> {
    const { partners } = this
    if (partners === undefined) return { join: () => this.#lossWeights }
    const positions = partners.index.size * this.group.size
    const summed = this.group.startAllReduce([this.#counted], 'sum')
    return {
      join: () =>
        noGrad(() => {
          summed.join()
          const shown = scale(this.#counted, 1 / positions)
          if (this.group.size === 1) return { ...this.#lossWeights, shown }
          const count = maximum(this.#counted, 1)
          const { global, dense, inImage, uncounted } = this.#lossWeights
          return { global, dense: div(dense, count), inImage: div(inImage, count), uncounted: div(uncounted, count), shown }
        }),
    }
  }

  /** The positions of each key map that go into the dense queue, i32 [N, keys], where prepare() set them. */
  get keyPicks(): Tensor | undefined {
    return this.#inputs.get('keyPicks')
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
    for (const tensor of [...Object.values(this.#lossWeights), this.#counted, ...this.#inputs.values()]) tensor.dispose()
  }
}

const write = (scalar: Tensor, value: number): void =>
  scalar.write(scalar.dtype === 'f64' ? Float64Array.of(value) : Float32Array.of(value))

function inverse(order: ArrayLike<number>): Int32Array {
  const places = new Int32Array(order.length)
  for (let i = 0; i < order.length; ++i) places[order[i]!] = i
  return places
}
