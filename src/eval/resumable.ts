/** What evaluations that take long have in common: a folder of their own, a state in it, and going on where they were cut off. */
import { join } from 'node:path'

import { z } from 'zod'

import { Group } from '../distributed/group.js'
import { together } from '../distributed/together.js'
import type { Backbone } from '../nn/backbone.js'
import { allTensors } from '../nn/module.js'
import { firstIssue } from '../tensor/issues.js'
import { checkSame, claimEvaluation, statePath, untilClaimable, writeEvaluationRecord } from '../run/results.js'
import { type Metrics, readMetrics, RunLog } from '../run/runLog.js'
import { isInterruption } from '../tensor/interruption.js'
import { fail } from '../tensor/errors.js'
import type { Tensor } from '../tensor/tensor.js'
import type { TensorFile } from '../weights/safetensors.js'
import { digestOf, readState, restoreState, saveState } from '../weights/state.js'

/** Where an evaluation that can be continued keeps its state, and whether it goes on with one. */
export interface ResumableOptions {
  /** Working folder: state and metrics. */
  out: string
  /** Goes on from the state in `out`, with a network that has the weights which the evaluation began with: one that it trained has not. */
  resume?: boolean
  overwrite?: boolean
  quiet?: boolean
  /**
   * The processes that share the evaluation, each with the same options: openGroup() gives them, Group.single when absent. Rank 0 alone
   * has the folder.
   */
  group?: Group
}

/** How a kind of evaluation is called. */
interface ResumableKind {
  /** The key of its record in the state file, and what a message calls such an evaluation. */
  key: string
  what: string
  /** What it counts: the name of the position in the record. */
  unit: string
}

/** What an evaluation says of the network that it begins with: its kind, the dtype of its activations, and which weights it has. */
export const identityOf = (backbone: Backbone): Record<'backbone' | 'compute' | 'weights', unknown> => ({
  backbone: backbone.description,
  compute: backbone.compute,
  weights: digestOf(allTensors(backbone.state())),
})

const stateRecord: z.ZodType<Record<string, unknown> & { began: Record<string, unknown>; finished: string[] }> = z.looseObject({
  began: z.record(z.string(), z.unknown()),
  finished: z.array(z.string()).default([]),
})

export class Resumable {
  /** How much is done, in the kind's unit. */
  position = 0
  /** How much of it is in the state on the disk. */
  saved = 0
  /** Names of what was done after the last position, and is in the state as well. */
  readonly finished = new Set<string>()
  readonly #file: TensorFile | undefined
  readonly #lock: ReturnType<typeof claimEvaluation> | undefined
  readonly group: Group
  #log: RunLog | undefined

  /**
   * Claims the folder. With `resume` its state is read, so that one that does not fit is an error before anything is made: `began` is
   * what may not change when the evaluation is continued. Of several processes rank 0 does so, and share() tells the others.
   */
  constructor(
    readonly kind: ResumableKind,
    readonly options: ResumableOptions,
    readonly began: Record<string, unknown>,
  ) {
    this.group = options.group ?? Group.single
    if (this.group.rank > 0) return
    const lock = claimEvaluation(options.out, options)
    try {
      if (options.resume === true) this.#file = this.#read()
      writeEvaluationRecord(options.out, { kind: kind.key, unit: kind.unit, began })
    } catch (error) {
      lock.release()
      throw error
    }
    this.#lock = lock
  }

  /** The state of the folder, and the position in it. */
  #read(): TensorFile {
    const { kind, began } = this
    const path = statePath(this.options.out)
    const { file, record } = readState(path, kind.key)
    if (record === undefined) fail('CHECKPOINT', `${path}: is not the state of ${kind.what}`)
    const own: typeof stateRecord = stateRecord.and(z.looseObject({ [kind.unit]: z.int().min(0) }))
    const { data, error } = own.safeParse(record)
    if (error !== undefined) fail('CHECKPOINT', `${path}: its record "${kind.key}" is damaged: ${firstIssue(error)}`)
    // What says no dtype of activations was begun in f32; states of before say nothing of the weights.
    checkSame(path, { compute: 'f32', weights: began.weights, ...data.began }, { compute: 'f32', ...began })
    this.position = this.saved = data[kind.unit] as number
    for (const name of data.finished) this.finished.add(name)
    return file
  }

  /** Gives the folder back. */
  release(): void {
    this.#log?.close()
    this.#lock?.release()
  }

  /** Gives the tensors of the evaluation the values that they had when it was cut off, if it was, and opens its log. */
  restore(tensors: Iterable<[string, Tensor]>): void {
    if (this.#file !== undefined) restoreState(statePath(this.options.out), this.#file, tensors)
    const { out, quiet = false } = this.options
    const speaks = this.group.rank === 0
    // Results are read from its rows.
    this.#log = new RunLog(speaks ? out : undefined, this.position, quiet || !speaks, 'throw')
  }

  /** Begins the evaluation in all of its processes where rank 0 has it, with its tensors. */
  share(tensors: Iterable<[string, Tensor]>): void {
    const { group } = this
    if (group.size === 1) return
    const { position, finished } = JSON.parse(group.said(JSON.stringify({ position: this.position, finished: [...this.finished] }))) as {
      position: number
      finished: string[]
    }
    this.position = this.saved = position
    for (const name of finished) this.finished.add(name)
    group.broadcast([...tensors].map(([, tensor]) => tensor))
  }

  get log(): RunLog {
    return this.#log!
  }

  /** Writes the state. Throws COMM, naming the ranks, where processes do not have the same. */
  save(tensors: Iterable<[string, Tensor]>): void {
    const all = [...tensors]
    this.group.agreeOn('what was learnt', all)
    if (this.group.rank === 0) this.#write(all)
    this.saved = this.position
  }

  #write(tensors: [string, Tensor][]): void {
    const finished = this.finished.size === 0 ? {} : { finished: [...this.finished] }
    saveState(statePath(this.options.out), tensors, this.kind.key, { [this.kind.unit]: this.position, began: this.began, ...finished })
  }

  /** Repeats `round`, which moves the position, until this is at `end`; false as soon as a round says that it was interrupted. */
  async until(end: number, round: () => Promise<boolean>): Promise<boolean> {
    while (this.position < end) if (!(await round())) return false
    return true
  }

  /**
   * Trains to the position `end` and tests there, and on the way after every `every` positions unless that is 0; the last result, or
   * undefined as soon as `train` says that it was interrupted. What was cut off between a state and the test of it is tested first.
   */
  async trainAndTest<Result>(
    { end, every, result }: { end: number; every: number; result: string },
    train: (until: number) => Promise<boolean>,
    test: () => Promise<Result>,
  ): Promise<Result | undefined> {
    let tested: Result | undefined
    if (this.position > 0 && every > 0 && this.position % every === 0 && !this.isLogged(result)) tested = await test()
    const finished = await this.until(end, async () => {
      if (!(await train(every > 0 ? Math.min(end, (Math.floor(this.position / every) + 1) * every) : end))) return false
      tested = await test()
      return true
    })
    return finished ? (tested ?? (await test())) : undefined
  }

  /** Whether the log has a row of the position with the value `key`. */
  isLogged(key: string): boolean {
    return this.rows().some((row) => row.globalStep === this.position && row[key] !== undefined)
  }

  /** The rows of the log. */
  rows(): Metrics[] {
    const own = this.group.rank === 0 ? readMetrics(join(this.options.out, 'metrics.jsonl')) : []
    if (this.group.size === 1) return own
    return JSON.parse(this.group.said(JSON.stringify(own)), (_, value: unknown) => value ?? NaN) as Metrics[]
  }
}

/** An evaluation that may be told to end in the middle. */
interface LongEvaluation<R> {
  /** Before its first step, in all of its processes. */
  share(): void
  execute(): Promise<R>
  /** The result of one that was told to end: what is saved. */
  cutOff(): R
  close(): void
}

/**
 * Runs an evaluation, whose folder `make` claims, to its end, or to where it is told to end, and frees it. All processes of its group
 * call it.
 */
export async function completed<R>(
  make: () => LongEvaluation<R>,
  { out, group = Group.single }: Pick<ResumableOptions, 'out' | 'group'>,
): Promise<R> {
  const run = await together(group, 'the start', async () => {
    // A job that is started again elsewhere may be there before the lock of what was killed counts as nobody's.
    if (group.rank === 0) await untilClaimable(out)
    return make()
  })
  try {
    run.share()
    return await run.execute()
  } catch (error) {
    if (!isInterruption(error)) throw error
    return run.cutOff()
  } finally {
    run.close()
  }
}
