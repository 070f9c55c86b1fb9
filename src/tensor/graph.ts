/**
 * A step of device work as one graph: run as it is at first, then recorded with planned memory, then replayed without
 * JavaScript for any op in it. What changes from step to step lies in tensors that are written before run().
 */
import { type ComputeSettings, currentCompute } from './compute.js'
import { fail } from './errors.js'
import { native, type RecordedStep, transfers } from './native.js'
import { kindOf, lastTensor, scope, type Tensor, tensorsIn } from './tensor.js'
import { deviceTraits } from './traits.js'

let effects: (() => void)[] | undefined
let rehearsing = false
/** The device of the graph whose body runs now. */
let running: string | undefined

/** Runs `effect` now or, when this happens in a step that is recorded, after every replay: for counters of the host. */
export function onEveryRun(effect: () => void): void {
  if (rehearsing) return
  if (effects === undefined) effect()
  else effects.push(effect)
}

/** Whether this happens in a step that is looked at, not taken. */
export const isRehearsed = (): boolean => rehearsing

/** Runs `body` without the effects of onEveryRun, and without what other processes would have to share: for a step that is not taken. */
export function rehearse<R>(body: () => R): R {
  const outer = rehearsing
  rehearsing = true
  try {
    return body()
  } finally {
    rehearsing = outer
  }
}

/** Whether ops do the same under both; threads change no result. */
const agree = (one: ComputeSettings, other: ComputeSettings): boolean =>
  (['precision', 'fusion', 'tile', 'kernels'] as const).every((name) => one[name] === other[name])

type State =
  | { kind: 'eager'; runs: number }
  | { kind: 'traced'; step: number }
  | { kind: 'recorded'; step: number; effects: (() => void)[]; plan: RecordedStep }

/**
 * `body` must do the same on the device at every run, must not move data between host and device, and may return tensors.
 * Those of them that it has made belong to the graph: they are valid until the next run(), which overwrites or frees them.
 */
export class Graph<R> {
  #state: State = { kind: 'eager', runs: 0 }
  #result: R | undefined
  /** Tensors of the result that the last run has made. */
  #made: Tensor[] = []
  #compute = currentCompute()
  #records: boolean

  /** With `record` false, and on a device that records nothing, `body` runs every time. */
  constructor(
    readonly device: string,
    /** The work of a run. */
    readonly body: () => R,
    record = true,
  ) {
    if (typeof body !== 'function') fail('ARGUMENT', `graph: expected body to be a function but received ${kindOf(body)}`)
    this.#records = record && deviceTraits(device).recordable
  }

  /** What the recorded step takes; undefined before it is. */
  get plan(): RecordedStep | undefined {
    return this.#state.kind === 'recorded' ? this.#state.plan : undefined
  }

  /**
   * The first run settles what only a first run does, the second is traced, the third recorded; it and all later ones are
   * replays. A run in other settings of compute than the one before it (withCompute) is a first run again. Throws GRAPH when the
   * recorded run differs from the traced one or moves data - on the CPU, where that takes no time, a body that moves data is run as it
   * is instead -, in the body of another graph, and when a tensor that a recorded step was given has been disposed.
   */
  run(): R {
    if (running !== undefined)
      fail('GRAPH', `graph: expected a run on ${this.device} outside of other graphs but received one in the body of one on ${running}`)
    if (!agree(this.#compute, currentCompute())) this.dispose()
    this.#compute = currentCompute()
    const state = this.#state
    if (state.kind === 'recorded') return this.#replayed(state)
    this.#free()
    if (state.kind === 'traced') return this.#recorded(state.step)
    if (this.#records && state.runs > 0) return this.#traced()
    this.#result = this.#unowned()
    state.runs += 1
    return this.#result
  }

  #traced(): R {
    const step = native.startTrace(this.device)
    const before = transfers.count
    const made: (() => void)[] = []
    effects = made
    try {
      this.#result = this.#unowned()
    } catch (error) {
      native.endGraph(step)
      throw error
    } finally {
      effects = undefined
    }
    native.endTrace(step)
    if (transfers.count !== before && deviceTraits(this.device).hostMemory) {
      native.endGraph(step)
      this.#records = false
    } else this.#state = { kind: 'traced', step }
    for (const effect of made) effect()
    return this.#result
  }

  #recorded(step: number): R {
    const made: (() => void)[] = []
    this.#state = { kind: 'eager', runs: 1 }
    try {
      native.startRecording(step)
      effects = made
      this.#result = this.#unowned()
      const plan = native.endRecording(step)
      this.#state = { kind: 'recorded', step, effects: made, plan }
    } catch (error) {
      native.endGraph(step)
      throw error
    } finally {
      effects = undefined
    }
    return this.#replayed(this.#state)
  }

  #replayed({ step, effects }: State & { kind: 'recorded' }): R {
    native.replay(step)
    for (const effect of effects) effect()
    return this.#result as R
  }

  /** body(), with what it has made and returns out of every scope. */
  #unowned(): R {
    const before = lastTensor()
    if (this.#records) running = this.device
    try {
      const result = scope(this.body)
      this.#made = [...new Set<Tensor>(tensorsIn(result))].filter(({ id }) => id > before)
      for (const tensor of this.#made) tensor.keep()
      return result
    } finally {
      running = undefined
    }
  }

  #free(): void {
    for (const tensor of this.#made.splice(0)) if (!tensor.disposed) tensor.dispose()
    this.#result = undefined
  }

  /** Frees the recorded step and what the last run returned. A run after that begins as the first did. */
  dispose(): void {
    this.#free()
    if (this.#state.kind !== 'eager') native.endGraph(this.#state.step)
    this.#state = { kind: 'eager', runs: 0 }
  }
}
