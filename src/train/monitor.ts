/** What is seen of a run while it trains: steps are read from the device, checked, printed and written down, and time is kept. */
import type { Loader } from '../data/loader.js'
import { pace } from '../distributed/pace.js'
import type { StepResult } from '../methods/method.js'
import { files } from '../run/runFolder.js'
import { fail } from '../tensor/errors.js'
import type { Tensor, TypedArray } from '../tensor/tensor.js'
import { deviceTraits } from '../tensor/traits.js'
import type { Position } from './checkpoint.js'
import { metricsRow, type Progress, progressFields } from './progress.js'
import type { Run } from './run.js'

/** Steps below a collapse check's bound that end a run. */
const patience = 50

interface StepTaken {
  result: StepResult
  /** Not 0 once a loss or gradient was not finite. */
  foundInf: Tensor
  lr: number
  /** Seconds that the step waited for its batch. */
  waited: number
}

/** A step whose numbers are on their way to the host, and where the run was then. */
interface Due {
  result: StepResult
  foundInf: () => TypedArray
  lr: number
  /** How many steps it stands for. */
  steps: number
  logged: boolean
  at: Position
  /** Seconds that this thread waited for data since the last line. */
  waited: number
}

export class Monitor {
  /** The numbers of the step that was read last. */
  numbers: Record<string, number> | undefined
  readonly #run: Run
  readonly #spent: () => Loader['spent']
  #due: Due | undefined
  /** Steps since the last one that is read, itself included. */
  #unread = 0
  #collapsed = 0
  /** Steps that each number of Method.cautions has been above its bound; Infinity once that was said. */
  readonly #above = new Map<string, number>()
  /** When the run and the current line began, in milliseconds and in steps, and the seconds waited for data since. */
  readonly #clock: { start: number; done: number; since: number; sinceStep: number; waited: number }

  constructor(run: Run, spent: () => Loader['spent']) {
    this.#run = run
    this.#spent = spent
    const [now, { globalStep }] = [performance.now(), run.position]
    this.#clock = { start: now, done: globalStep, since: now, sinceStep: globalStep, waited: 0 }
  }

  /**
   * To be told of every step, with the run's position after it. Reading waits for the device: a step is read when a line is due, on a
   * GPU while that computes the next step. The CPU has finished anyway.
   */
  stepTaken({ result, foundInf, lr, waited }: StepTaken): void {
    const { config, position, steps, built } = this.#run
    const { hostMemory, asynchronous } = deviceTraits(built.backbone.device)
    // The step before is read now that this one keeps the device busy.
    this.readDue()
    this.#clock.waited += waited
    this.#unread += 1
    const last = position.step === steps
    const logged = position.globalStep % config.logEvery === 0 || last
    if (hostMemory || logged) {
      this.#due = {
        result: result.startRead(),
        foundInf: foundInf.startRead(),
        lr,
        steps: this.#unread,
        logged,
        at: { ...position },
        waited: this.#clock.waited,
      }
      this.#unread = 0
    }
    if (!asynchronous || last) this.readDue()
  }

  /** Looks at the step that is on its way to the host, if there is one, and prints and writes its line. */
  readDue(): void {
    if (this.#due === undefined) return
    const { result, foundInf, lr, steps, logged, at, waited } = this.#due
    this.#due = undefined
    // A device that waits for those of other processes keeps this one waiting.
    const [readings, inf] = pace.waiting(() => [result.readings, foundInf()[0]] as const)
    const numbers = this.#run.built.describe(readings, at.globalStep)
    if (inf !== 0) this.#notFinite(numbers, lr, steps, at)
    this.#checkCollapse(numbers, steps, at)
    this.#caution(numbers, steps, at)
    this.numbers = numbers
    const progress = this.#progress(numbers, lr, at, waited)
    this.#run.log.progress(progressFields(this.#run, progress), logged)
    if (!logged) return
    this.#run.log.metrics(metricsRow(this.#run, progress))
    const { waited: total } = this.#clock
    Object.assign(this.#clock, { since: performance.now(), sinceStep: at.globalStep, waited: total - waited })
  }

  /** The step has been read, so the device has finished it: this is the time of its steps, not of their launches. */
  #progress(numbers: Record<string, number>, lr: number, at: Position, waited: number): Progress {
    const { config, steps } = this.#run
    const { start, done, since, sinceStep } = this.#clock
    const seconds = (performance.now() - since) / 1000
    const remaining = ((performance.now() - start) / 1000 / (at.globalStep - done)) * (config.epochs * steps - at.globalStep)
    const rate = ((at.globalStep - sinceStep) * config.batchSize) / seconds
    return { numbers, at, lr, rate, wait: waited / seconds, remaining, spent: this.#spent() }
  }

  /** Runs `body` outside of the time that rates are taken over. */
  async pauseClock(body: () => Promise<void>): Promise<void> {
    const paused = performance.now()
    await body()
    this.#clock.start += performance.now() - paused
    this.#clock.since += performance.now() - paused
  }

  /** Stops with a diagnosis; the last checkpoint is the one before the trouble. `steps` is how many the numbers stand for. */
  #notFinite(numbers: Record<string, number>, lr: number, steps: number, { globalStep }: Position): never {
    const terms = Object.entries(this.#run.method.terms ?? {}).flatMap(([name, key]) => (Number.isFinite(numbers[key]) ? [] : [name]))
    const what = Number.isFinite(numbers.loss) ? 'a gradient' : `the ${terms.join(' and the ')}${terms.length === 0 ? '' : ' '}loss`
    const when = steps === 1 ? `step ${globalStep}` : `steps ${globalStep - steps + 1} to ${globalStep}`
    return fail(
      'NAN',
      `${when}: ${what} is not a number at learning rate ${lr.toPrecision(3)}; try a lower --lr (a tenth), ` +
        `--warmup-steps, or check the data. The last checkpoint, ${files(this.#run.out).last}, is from before`,
    )
  }

  #checkCollapse(numbers: Record<string, number>, steps: number, { globalStep }: Position): void {
    const { collapse } = this.#run.method
    if (collapse === undefined) return
    const value = numbers[collapse.key]!
    this.#collapsed = value < collapse.least ? this.#collapsed + steps : 0
    if (!this.#run.config.stopOnCollapse || this.#collapsed < patience) return
    fail(
      'COLLAPSE',
      `step ${globalStep}: ${collapse.means} for ${this.#collapsed} steps (${collapse.key} ${value.toFixed(4)} where ` +
        `about 1 is healthy); try ${collapse.remedy}. --stop-on-collapse false goes on`,
    )
  }

  #caution(numbers: Record<string, number>, steps: number, { globalStep }: Position): void {
    for (const { key, most, means, remedy } of this.#run.method.cautions ?? []) {
      const above = numbers[key]! > most ? (this.#above.get(key) ?? 0) + steps : this.#above.get(key) === Infinity ? Infinity : 0
      this.#above.set(key, above)
      if (above < patience || above === Infinity) continue
      this.#above.set(key, Infinity)
      this.#run.log.warn(`step ${globalStep}: ${means}; try ${remedy}`)
    }
  }
}
