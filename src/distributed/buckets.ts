/**
 * Gradients averaged over processes, several in a message, while the backward pass goes on (PyTorch DDP: Li et al., 2020,
 * arXiv:2006.15704), or behind it where messages would take its cores.
 * The order in which a pass completes them may depend on the images of a process, but all processes have to send the same messages, and
 * those of synchronised batch norms come between. So what is sent when is a plan that all have in common: that in which rank 0 completed
 * the gradients of the first step.
 */
import { fail } from '../tensor/errors.js'
import type { Tensor } from '../tensor/tensor.js'
import type { Group, Pending } from './group.js'

/** Bytes at which a bucket is sent: large enough for the bandwidth, small enough for several of them to pass beside the pass. */
const bucketBytes = 25 * 2 ** 20

/** That a gradient, by its place among all, was complete when so many other collectives of the step had started. */
interface Completion {
  place: number
  after: number
}

/** What is averaged by one message, by places, and how many other collectives of a step start before it. */
interface Bucket {
  places: number[]
  bytes: number
  after: number
}

/** The messages of every step but the first, and of which tensors they are. */
interface Plan {
  buckets: readonly Bucket[]
  tensors: string
}

/** What a step leaves to be averaged: gradients of what is trained, and other means over the images of a process. */
export interface Averaged {
  gradients: readonly Tensor[]
  observed: readonly Tensor[]
}

/** Both, by their places. */
const tensorsOf = ({ gradients, observed }: Averaged): Tensor[] => [...gradients, ...observed]
const described = (tensors: readonly Tensor[]): string => tensors.map(({ dtype, size }) => `${dtype}[${size}]`).join(' ')

/** Told of a gradient that is complete, by its place; one that is not `reached` is zeros, on which the loss does not depend. */
type Ready = (place: number, gradient: Tensor, reached: boolean) => void

/** The gradients of one step on their way. */
class Step {
  /** Of the gradients on which the loss depends, in their order. */
  readonly completions: Completion[] = []
  /** Collectives of the step that have started and are none of its buckets. */
  others = 0
  readonly #group: Group
  #buckets: readonly Bucket[]
  readonly #known = new Map<number, Tensor>()
  readonly #started: Pending[] = []
  #sending = false

  /** Without buckets nothing leaves before finish(). */
  constructor(group: Group, buckets: readonly Bucket[] = []) {
    this.#group = group
    this.#buckets = buckets
  }

  /** Takes a gradient to which nothing is added any more. Nothing may use it until finish(). */
  readonly ready: Ready = (place, gradient, reached) => {
    this.#known.set(place, gradient)
    if (reached) this.completions.push({ place, after: this.others })
    this.#send()
  }

  /** Called before each collective: what comes before it by the plan leaves. Throws COMM where that is not complete. */
  readonly before = (): void => {
    if (this.#sending) return
    this.#send()
    const missing = this.#due?.places.filter((place) => !this.#known.has(place))
    if (missing !== undefined)
      fail(
        'COMM',
        `gradient ${missing.join(', ')} of a step is not complete before its collective ${this.others + 1}: ` +
          'expected it there, as in the first step',
      )
    this.others += 1
  }

  /** Sends what is left by the plan, and waits for all averages. */
  finish(averaged: Averaged, { buckets, tensors }: Plan): void {
    const all = tensorsOf(averaged)
    if (described(all) !== tensors)
      fail('COMM', `what is averaged of a step is ${described(all)}: expected ${tensors}, as in the first step`)
    for (const [place, tensor] of all.entries()) this.#known.set(place, tensor)
    this.#buckets = buckets
    this.others = Infinity
    this.#send()
    for (const pending of this.#started) pending.join()
  }

  /** The next bucket, if its turn has come. */
  get #due(): Bucket | undefined {
    const next = this.#buckets[this.#started.length]
    return next !== undefined && next.after <= this.others ? next : undefined
  }

  /** Sends the buckets whose turn has come as far as they are whole. */
  #send(): void {
    this.#sending = true
    for (let bucket = this.#due; bucket !== undefined; bucket = this.#due) {
      if (!bucket.places.every((place) => this.#known.has(place))) break
      this.#started.push(
        this.#group.startAllReduce(
          bucket.places.map((place) => this.#known.get(place)!),
          'mean',
        ),
      )
    }
    this.#sending = false
  }
}

/** The gradients of a training whose batches several processes share. */
export class SharedGradients {
  #plan: Plan | undefined

  /** Buckets are sent at `most` bytes. */
  constructor(
    readonly group: Group,
    readonly most = bucketBytes,
  ) {}

  /**
   * What `step` gives, in which tensors of `averagedOf` are the means over all processes; none are where that is undefined, in all of them
   * alike. `step` hands the function that it is given each gradient that is complete, or none; the function is undefined where there is one
   * process. Throws COMM, naming the ranks, where processes have gradients of other sizes: they would be mixed up in silence.
   */
  average<R>(step: (ready: Ready | undefined) => R, averagedOf: (result: R) => Averaged | undefined): R {
    const { group } = this
    if (group.size === 1) return step(undefined)
    const own = new Step(group, group.overlaps ? this.#plan?.buckets : undefined)
    const result = group.preceding(own.before, () => step(own.ready))
    const averaged = averagedOf(result)
    if (averaged === undefined) return result
    // The first step is never one that is recorded.
    this.#plan ??= this.#planned(tensorsOf(averaged), own)
    own.finish(averaged, this.#plan)
    return result
  }

  /** The plan of rank 0, by its first step: what it did not need, and what is no gradient, comes last. */
  #planned(tensors: readonly Tensor[], { completions, others }: Step): Plan {
    const text = described(tensors)
    this.group.agree('what is averaged', text)
    const completed = new Set(completions.map(({ place }) => place))
    const rest = [...tensors.keys()].filter((place) => !completed.has(place)).map((place) => ({ place, after: others }))
    const order = JSON.parse(this.group.said(JSON.stringify([...completions, ...rest]))) as Completion[]
    const buckets: Bucket[] = []
    for (const { place, after } of order) {
      const { dtype, bytes } = tensors[place]!
      const open = buckets.at(-1)
      if (open === undefined || open.bytes >= this.most || tensors[open.places[0]!]!.dtype !== dtype)
        buckets.push({ places: [place], bytes, after })
      else Object.assign(open, { places: [...open.places, place], bytes: open.bytes + bytes, after })
    }
    return { buckets, tensors: text }
  }
}
