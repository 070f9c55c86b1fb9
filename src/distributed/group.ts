/**
 * The processes that train one model together, and what they ask of each other. All of them make the same calls in the same order; a call
 * waits for the slowest. Who is alone (Group.single) computes nothing and waits for nobody.
 */
import { createHash } from 'node:crypto'

import { fail } from '../tensor/errors.js'
import { isRehearsed } from '../tensor/graph.js'
import { native } from '../tensor/native.js'
import { describe, Tensor } from '../tensor/tensor.js'
import { deviceTraits } from '../tensor/traits.js'
import type { Exchange } from './keyOrder.js'
import { pace } from './pace.js'

// The order of native/core/comm.h.
const kinds = ['allReduce', 'allGather', 'exchange', 'broadcast', 'barrier'] as const
type Kind = (typeof kinds)[number]
/** How the tensors of all processes become one. */
export type Reduction = 'sum' | 'mean' | 'max'
const reductions: readonly Reduction[] = ['sum', 'mean', 'max']

/** A collective that has been started. */
export interface Pending<R = void> {
  /** Waits for its end, and gives what came of it. Throws COMM where it failed. */
  join(): R
}

const nothing: Pending = { join: () => undefined }

/** The processes of a run as one of them sees them: itself by its rank, and how many there are. */
export class Group {
  #before: (() => void) | undefined

  /** A process that runs alone. */
  static readonly single = new Group(0, 1, 'cpu')

  /** @internal Groups of more than one process come from openGroup(). */
  constructor(
    readonly rank: number,
    readonly size: number,
    /** Where tensors are that pass without the host: those of the CPU pass always. */
    readonly device: string,
    /** Whether a collective passes beside the work that follows it, and not on the cores that this work has. */
    readonly overlaps = true,
  ) {}

  /** Replaces f32 or f64 tensors, or i32 ones for a sum or largest value, by what all processes' ones give together: one message. */
  allReduce(tensors: readonly Tensor[], reduction: Reduction): void {
    this.startAllReduce(tensors, reduction).join()
  }

  /** Does what allReduce() does beside the work that follows; nothing may use the tensors before it is joined. */
  startAllReduce(tensors: readonly Tensor[], reduction: Reduction): Pending {
    if (this.size === 1 || tensors.length === 0) return nothing
    return this.#start('allReduce', tensors, [reductions.indexOf(reduction)])
  }

  /** The tensors [N, ...] of all processes, one below the other in the order of ranks: [size * N, ...]; `x` itself where there is one. */
  allGather(x: Tensor): Tensor {
    return this.startAllGather([x]).join()[0]!
  }

  /** Whether a step with its collectives can be recorded (src/tensor/graph.ts): those of MPI are calls of the host. */
  get recordable(): boolean {
    return this.size === 1 || !deviceTraits(this.device).hostMemory
  }

  /** Does what allGather() does to each of `tensors`, in one message, beside the work that follows. */
  startAllGather(tensors: readonly Tensor[]): Pending<readonly Tensor[]> {
    if (this.size === 1) return { join: () => tensors }
    const all = tensors.map((x) => {
      const [rows, ...rest] = x.shape
      if (rows === undefined) return fail('SHAPE', `allGather: expected a tensor with rows but received ${describe(x)}`)
      return Tensor.empty([this.size * rows, ...rest], x.dtype, x.device)
    })
    return giving(all, this.#start('allGather', [...tensors, ...all]))
  }

  /** Rows of `x` sent and received as `exchange` says; all of the result, as large as `x`, is received. `x` itself where there is one. */
  exchange(x: Tensor, exchange: Exchange): Tensor {
    return this.startExchange([x], exchange).join()[0]!
  }

  /** Does what exchange() does to each of `tensors`, which have equally many rows, in one message, beside the work that follows. */
  startExchange(tensors: readonly Tensor[], exchange: Exchange): Pending<readonly Tensor[]> {
    if (this.size === 1) return { join: () => tensors }
    const results = tensors.map((x) => Tensor.empty(x.shape, x.dtype, x.device))
    const numbers = [exchange.sends, exchange.receives].flatMap((messages) => [
      messages.length,
      ...messages.flatMap(({ peer, row, rows }) => [peer, row, rows]),
    ])
    return giving(results, this.#start('exchange', [...tensors, ...results], numbers))
  }

  /** Replaces tensors by those of the process `root`. */
  broadcast(tensors: Iterable<Tensor>, root = 0): void {
    if (this.size > 1) for (const tensor of tensors) this.#start('broadcast', [tensor], [root]).join()
  }

  /** Waits until every process has come here. */
  barrier(): void {
    if (this.size > 1) this.#start('barrier', []).join()
  }

  /** Whether any process says so. */
  any(flag: boolean): boolean {
    return this.size === 1 ? flag : this.#numbers([Number(flag)], 'max')[0] !== 0
  }

  /** The sums of all processes' numbers. */
  sum(values: readonly number[]): number[] {
    return this.size === 1 ? [...values] : this.#numbers(values, 'sum')
  }

  /** What rank 0 says in `text`, in all processes. */
  said(text: string): string {
    return this.texts(this.rank === 0 ? text : '')[0]!
  }

  /** Runs `body`, and `before` ahead of each collective that starts in it, also of those that `before` starts. */
  preceding<R>(before: () => void, body: () => R): R {
    const outer = this.#before
    this.#before = before
    try {
      return body()
    } finally {
      this.#before = outer
    }
  }

  /** What each process says in `text`, in the order of ranks. */
  texts(text: string): string[] {
    if (this.size === 1) return [text]
    const bytes = Buffer.from(text)
    const length = this.#numbers([bytes.length], 'max')[0]!
    const own = Tensor.from(Buffer.concat([bytes], length), [1, length], 'u8', 'cpu').keep()
    const all = this.allGather(own).keep()
    const values = Buffer.from(all.data() as Uint8Array)
    for (const tensor of [own, all]) tensor.dispose()
    return Array.from({ length: this.size }, (_, rank) => values.toString('utf8', rank * length, (rank + 1) * length).replace(/\0+$/, ''))
  }

  #numbers(values: readonly number[], reduction: Reduction): number[] {
    const tensor = Tensor.from(values, [values.length], 'f64', 'cpu').keep()
    try {
      this.allReduce([tensor], reduction)
      return [...tensor.data()]
    } finally {
      tensor.dispose()
    }
  }

  /** Throws COMM, naming the ranks, where tensors of a name have not the same bits in all processes; `what` is what they are. */
  agreeOn(what: string, tensors: Iterable<readonly [string, Tensor]>): void {
    if (this.size > 1) this.agree(what, digest(tensors))
  }

  /** Throws COMM, naming the ranks, where `text` is not the same in all processes; `what` is what it says. */
  agree(what: string, text: string): void {
    if (this.size === 1) return
    const digest = Tensor.from(createHash('sha256').update(text).digest(), [1, 32], 'u8', 'cpu').keep()
    const all = this.allGather(digest).keep()
    const values = Buffer.from(all.data() as Uint8Array)
    for (const tensor of [digest, all]) tensor.dispose()
    const digests = Array.from({ length: this.size }, (_, rank) => values.toString('hex', 32 * rank, 32 * (rank + 1)))
    const count = (digest: string): number => digests.filter((other) => other === digest).length
    const usual = digests.reduce((best, each) => (count(each) > count(best) ? each : best))
    const others = digests.flatMap((each, rank) => (each === usual ? [] : [rank]))
    if (others.length > 0)
      fail('COMM', `${what} of rank ${others.join(', ')} is not that of the others: expected the same in all ${this.size} processes`)
  }

  /** Starts a collective of this process; none in a step that is only looked at, since the others may not do so. */
  #start(kind: Kind, tensors: readonly Tensor[], numbers: readonly number[] = []): Pending {
    if (isRehearsed()) return nothing
    this.#before?.()
    const handles = Float64Array.from(tensors, (tensor) => tensor.handle)
    const ticket = native.startCollective(kinds.indexOf(kind), handles, Float64Array.from(numbers))
    return { join: () => pace.waiting(() => native.joinCollective(ticket)) }
  }
}

const giving = <R>(result: R, pending: Pending): Pending<R> => ({ join: () => (pending.join(), result) })

const digest = (tensors: Iterable<readonly [string, Tensor]>): string => {
  const hash = createHash('sha256')
  for (const [name, tensor] of tensors) hash.update(name).update(tensor.data())
  return hash.digest('hex')
}
