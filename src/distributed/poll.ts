/** A question that several processes put to each other before every step: whether any of them wants the run to end. */
import { Tensor, type TypedArray } from '../tensor/tensor.js'
import { deviceTraits } from '../tensor/traits.js'
import type { Group } from './group.js'
import { pace } from './pace.js'

/** Its calls, of which each process makes as many as the others. */
export class Poll {
  readonly #group: Group
  readonly #flag: Tensor | undefined
  #answer: (() => TypedArray) | undefined

  constructor(group: Group) {
    this.#group = group
    this.#flag = deviceTraits(group.device).hostMemory ? undefined : Tensor.zeros([1], 'i32', group.device).keep()
  }

  /**
   * Whether any process says so; on a GPU whether any said so when this was asked before, since an answer that is waited for would let the
   * device run dry between two steps. All processes ask, and have the same answer.
   */
  ask(flag: boolean): boolean {
    if (this.#flag === undefined) return this.#group.any(flag)
    const answer = this.#settle()
    this.#flag.write(Int32Array.of(Number(flag)))
    this.#group.allReduce([this.#flag], 'max')
    this.#answer = this.#flag.startRead()
    return answer
  }

  /** Takes back the question that is under way, where one is. */
  close(): void {
    this.#settle()
    this.#flag?.dispose()
  }

  #settle(): boolean {
    const answer = this.#answer
    this.#answer = undefined
    return answer !== undefined && pace.waiting(() => answer()[0] !== 0)
  }
}
