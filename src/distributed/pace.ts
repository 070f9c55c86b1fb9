/** How far this process is, in memory that its control thread (src/distributed/controlWorker.ts) reads while the main thread computes. */
import { type Ask, withInterruption } from '../tensor/interruption.js'

/** What a process says of itself. */
export interface Beat {
  /** Steps of the run that it has begun. */
  step: number
  /** Grows with whatever it gets done. */
  moves: number
  /** It waits for other processes. */
  waiting: boolean
}

/** The progress of a process, written by its main thread. */
export class Pace {
  readonly #values: Int32Array

  /** In `memory`, i32 [3], which threads share. */
  constructor(readonly memory = new SharedArrayBuffer(12)) {
    this.#values = new Int32Array(memory)
  }

  /** Something was done. */
  move(): void {
    Atomics.add(this.#values, 1, 1)
  }

  /** Step `step` begins. */
  begin(step: number): void {
    Atomics.store(this.#values, 0, step)
    this.move()
  }

  /** Runs `body`, which waits for other processes. */
  waiting<R>(body: () => R): R {
    this.move()
    Atomics.store(this.#values, 2, 1)
    try {
      return body()
    } finally {
      Atomics.store(this.#values, 2, 0)
      this.move()
    }
  }

  beat(): Beat {
    const [step, moves, waiting] = [0, 1, 2].map((at) => Atomics.load(this.#values, at)) as [number, number, number]
    return { step, moves, waiting: waiting !== 0 }
  }
}

/** The pace of this process. */
export const pace = new Pace()

/** Runs `body`, whose questions whether it is to end, answered by `ask`, tell that it gets on. */
export const withPace = <R>(ask: Ask, body: () => R): R =>
  withInterruption((awaiting) => {
    if (!awaiting) pace.move()
    return ask(awaiting)
  }, body)
