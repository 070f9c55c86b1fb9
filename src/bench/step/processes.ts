/**
 * The step of one process among several that are not here: the trainer goes through it on a device that has no values, and notes where its
 * collectives start and are joined among its calls. So what is sent, and when, is what the code does.
 */
import { Group, type Pending } from '../../distributed/group.js'
import type { Exchange } from '../../distributed/keyOrder.js'
import { densecl } from '../../methods/densecl/method.js'
import { resolveConfig } from '../../methods/index.js'
import { resnet } from '../../nn/resnet.js'
import { Sgd } from '../../optim/sgd.js'
import { settingsOf } from '../../run/options.js'
import { native } from '../../tensor/native.js'
import { Tensor, withDevice } from '../../tensor/tensor.js'
import { Trainer } from '../../train/trainer.js'
import { type Call, callsOf, simulation, type StepShape } from './calls.js'

/** A collective in the step of one process. */
export interface CollectiveCall {
  kind: 'allReduce' | 'allGather' | 'exchange'
  /** Before which call it starts, and which waits for its end; as many as there are calls: none. */
  start: number
  join: number
  /** What this process gives: of an exchange also that which it gives itself. */
  bytes: number
  shapes: readonly (readonly number[])[]
  /** What an exchange sends, by rank. */
  sends: readonly { peer: number; bytes: number }[]
}

/** A step of one process among several. */
export interface SharedStep {
  calls: readonly Call[]
  collectives: readonly CollectiveCall[]
}

/** Rank 0 of `size` processes of which there are no others: collectives are noted and not done. */
class RecordingGroup extends Group {
  collectives: CollectiveCall[] = []
  /** Those of the step so far. */
  calls: readonly Call[] = []

  override startAllReduce(tensors: readonly Tensor[]): Pending {
    return this.#noted(this.#note('allReduce', tensors), undefined)
  }

  override startAllGather(tensors: readonly Tensor[]): Pending<readonly Tensor[]> {
    if (this.size === 1) return { join: () => tensors }
    const all = tensors.map((x) => Tensor.empty([this.size * x.shape[0]!, ...x.shape.slice(1)], x.dtype, x.device))
    return this.#noted(this.#note('allGather', tensors), all)
  }

  override startExchange(tensors: readonly Tensor[], { sends }: Exchange): Pending<readonly Tensor[]> {
    const row = tensors.reduce((sum, x) => sum + x.bytes / x.shape[0]!, 0)
    const call = this.#note(
      'exchange',
      tensors,
      sends.map(({ peer, rows }) => ({ peer, bytes: rows * row })),
    )
    return this.#noted(
      call,
      tensors.map((x) => Tensor.empty(x.shape, x.dtype, x.device)),
    )
  }

  override agree(): void {}

  override said(text: string): string {
    return text
  }

  #noted<R>(call: CollectiveCall, result: R): Pending<R> {
    return {
      join: () => {
        call.join = this.calls.length
        return result
      },
    }
  }

  #note(kind: CollectiveCall['kind'], tensors: readonly Tensor[], sends: CollectiveCall['sends'] = []): CollectiveCall {
    const here = this.calls.length
    const bytes = tensors.reduce((sum, tensor) => sum + tensor.bytes, 0)
    const call = { kind, start: here, join: here, bytes, shapes: tensors.map(({ shape }) => [...shape]), sends }
    this.collectives.push(call)
    return call
  }
}

/**
 * The second training step of rank 0, when the optimiser has moved the key encoder, of `batch` images a process. Each process has one group
 * of batch statistics.
 */
export function sharedStep(
  { level, depth = 50, image = 224, queue = 65536, hidden = 2048 }: StepShape,
  batch: number,
  processes: number,
): SharedStep {
  const device = `dry:${simulation()}`
  const group = new RecordingGroup(0, processes, device)
  return withDevice(device, () => {
    const config = resolveConfig(settingsOf({ imageSize: image, queueLength: queue, hidden, batchSize: batch }, 'bench'))
    const method = densecl.build(config, { backbone: resnet({ depth }), compute: 'bf16', group })
    const { parameters, copies } = method.trained()
    const sgd = new Sgd(parameters, config, copies)
    const view = (): Tensor => Tensor.empty([batch, image, image, 3], 'bf16', device)
    const trainer = new Trainer(method, sgd, { graph: false, compute: { fusion: level }, views: () => [view(), view()], group })
    try {
      callsOf(() => trainer.step(0, config.lr))
      const calls: Call[] = []
      Object.assign(group, { collectives: [], calls })
      callsOf(() => trainer.step(1, config.lr), calls)
      return { calls, collectives: group.collectives }
    } finally {
      for (const part of [trainer, sgd, method]) part.dispose()
      native.trimMemory(device)
    }
  })
}
