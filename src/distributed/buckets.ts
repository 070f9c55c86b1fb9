/**
 * Gradients averaged over processes while the backward pass goes on: those that are complete are collected, in the order in which the pass
 * completes them, which is the same everywhere, and sent off by the bucket (PyTorch DDP: Li et al., 2020, arXiv:2006.15704).
 */
import type { Tensor } from '../tensor/tensor.js'
import type { Group, Pending } from './group.js'

/** Bytes at which a bucket is sent: large enough for the bandwidth, small enough for several of them to pass beside the pass. */
const bucketBytes = 25 * 2 ** 20

export class Buckets {
  readonly #group: Group
  readonly #most: number
  readonly #ready = new Set<number>()
  readonly #started: Pending[] = []
  readonly #order: string[] = []
  #open: Tensor[] = []
  #bytes = 0

  /** For the gradients of one step. */
  constructor(group: Group, most = bucketBytes) {
    this.#group = group
    this.#most = most
  }

  /** Throws COMM, naming the ranks, where processes averaged in other orders: gradients of one size would be mixed up in silence. */
  agree(): void {
    this.#group.agree('the order of gradients', this.#order.join(' '))
  }

  /** Takes gradient `index`, to which nothing is added any more. Nothing may use it until finish(). */
  readonly ready = (index: number, gradient: Tensor): void => {
    this.#ready.add(index)
    if (this.#open.length > 0 && this.#open[0]!.dtype !== gradient.dtype) this.#send()
    this.#open.push(gradient)
    this.#order.push(`${index}:${gradient.size}`)
    this.#bytes += gradient.bytes
    if (this.#bytes >= this.#most) this.#send()
  }

  /** Waits for all averages. Those of `gradients` that ready() was not told of are averaged now, and so are the numbers of `observed`. */
  finish(gradients: readonly Tensor[], observed: readonly Tensor[]): void {
    for (const [index, gradient] of gradients.entries()) if (!this.#ready.has(index)) this.ready(index, gradient)
    // By the last bucket, which costs no message more.
    for (const [i, tensor] of observed.entries()) this.ready(gradients.length + i, tensor)
    this.#send()
    for (const pending of this.#started) pending.join()
  }

  #send(): void {
    if (this.#open.length > 0) this.#started.push(this.#group.startAllReduce(this.#open, 'mean'))
    this.#open = []
    this.#bytes = 0
  }
}

/** What a step leaves to be averaged: gradients of what is trained, and other means over the images of a process. */
export interface Averaged {
  gradients: readonly Tensor[]
  observed: readonly Tensor[]
}

/** The gradients of a training whose batches several processes share. */
export class SharedGradients {
  /** Whether all processes are known to average them in one order. */
  #agreed = false

  constructor(readonly group: Group) {}

  /**
   * What `step` gives, in which tensors of `averagedOf` are the means over all processes. It hands the function that it is given each
   * gradient that is complete, in the same order in all processes, or none; the function is undefined where there is one process.
   */
  average<R>(step: (ready: Buckets['ready'] | undefined) => R, averagedOf: (result: R) => Averaged): R {
    if (this.group.size === 1) return step(undefined)
    const buckets = new Buckets(this.group)
    const result = step(buckets.ready)
    const { gradients, observed } = averagedOf(result)
    buckets.finish(gradients, observed)
    // The first step is never one that is recorded.
    if (!this.#agreed) buckets.agree()
    this.#agreed = true
    return result
  }
}
