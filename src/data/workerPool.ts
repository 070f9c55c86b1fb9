/** The threads that read images for a Loader, and what is asked of them. */
import { availableParallelism } from 'node:os'
import { Worker } from 'node:worker_threads'

import { DenseclError } from '../tensor/errors.js'
import { unlessInterrupted } from '../tensor/interruption.js'
import type { Item } from './source.js'
import type { ItemAnswer, ItemRequest, Task, TaskResult, WorkerData } from './worker.js'

/** Each is a thread with a heap of its own, of 10 MB and more. */
export const mostWorkers = 256

/** The workers that a number of them stands for: 0 chooses, one less than the cores, 1 to 16. */
export const workersFor = (wanted: number): number => (wanted === 0 ? Math.min(16, Math.max(1, availableParallelism() - 1)) : wanted)

/**
 * Ends a worker after the image that it is at: one that is terminated inside of a native call takes the process with it, where the
 * addon that was called (a decoder's) throws into an environment that is gone.
 */
function ended(worker: Worker): Promise<void> {
  return new Promise((resolve) => {
    const patience = setTimeout(() => void worker.terminate(), 10_000)
    worker.once('exit', () => {
      clearTimeout(patience)
      resolve()
    })
    worker.ref()
    if (worker.threadId === -1) {
      clearTimeout(patience)
      resolve()
    } else worker.postMessage(null)
  })
}

/** Workers that read images of `items`, each what it is asked to. */
export class WorkerPool {
  readonly #workers: Worker[]
  readonly #stop = new SharedArrayBuffer(4)
  readonly #pending = new Map<number, { resolve: (result: TaskResult) => void; reject: (error: Error) => void }>()
  #nextTask = 0
  #failure: Error | undefined

  constructor(count: number, items: readonly Item[], data: Omit<WorkerData, 'stop'>) {
    const workerData: WorkerData = { ...data, stop: this.#stop }
    this.#workers = Array.from({ length: count }, () => {
      const worker = new Worker(new URL('./worker.js', import.meta.url), { workerData })
      worker.on('message', (result: TaskResult | ItemRequest) => {
        if ('wanted' in result) {
          worker.postMessage({ item: items[result.wanted]! } satisfies ItemAnswer)
          return
        }
        const task = this.#pending.get(result.id)
        this.#pending.delete(result.id)
        task?.resolve(result)
      })
      worker.on('error', (error) => this.#fail(error))
      // One that ends by itself, which nothing of ours does, answers nobody.
      worker.on('exit', (code) => {
        if (Atomics.load(new Int32Array(this.#stop), 0) === 0) this.#fail(new Error(`it ended with exit code ${code}`))
      })
      worker.unref()
      return worker
    })
  }

  /** How many there are. */
  get count(): number {
    return this.#workers.length
  }

  /** What a worker makes of a task. Throws DATA when a worker stops. */
  run(worker: number, task: Omit<Task, 'id'>): Promise<TaskResult> {
    return new Promise((resolve, reject) => {
      if (this.#failure !== undefined) return reject(this.#failure)
      const id = this.#nextTask++
      this.#pending.set(id, { resolve, reject })
      this.#workers[worker]!.postMessage({ id, ...task } satisfies Task)
    })
  }

  /** What the workers give: keeps the process alive meanwhile. Throws INTERRUPTED instead when the work is to end. */
  async waitFor<Result>(done: Promise<Result>): Promise<Result> {
    for (const worker of this.#workers) worker.ref()
    const result = await unlessInterrupted(done)
    // Data that is ready resolves without a turn of the event loop: give signals and output theirs.
    await new Promise((resolve) => setImmediate(resolve))
    for (const worker of this.#workers) worker.unref()
    return result
  }

  /** Ends the workers, without what they have not begun. */
  async close(): Promise<void> {
    Atomics.store(new Int32Array(this.#stop), 0, 1)
    await Promise.all(this.#workers.map(ended))
  }

  #fail(error: Error): void {
    // What a worker died of comes before its end.
    this.#failure ??= new DenseclError('DATA', `data: a worker stopped: ${error.message}`)
    for (const { reject } of this.#pending.values()) reject(this.#failure)
    this.#pending.clear()
  }
}
