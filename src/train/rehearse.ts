/** A run told beforehand: its schedule, and its time by some steps that are taken and forgotten. */
import type { Views } from '../methods/method.js'
import { learningRate } from '../optim/schedule.js'
import { computeSettings } from '../run/placement.js'
import { duration } from '../run/runLog.js'
import { fail } from '../tensor/errors.js'
import { loaderOf, requestsOf } from './loop.js'
import { introduction, planWarnings } from './progress.js'
import type { PlannedRun } from './run.js'
import { Trainer } from './trainer.js'

/** What is known of a run that was not made. */
export interface DryRun {
  lines: string[]
  /** Steps of the whole run. */
  steps: number
  secondsPerStep: number
  /** Of all steps, without evaluations and pictures. */
  seconds: number
}

/** Steps that are taken before those that are timed: a GPU records its step in the first ones, caches are filled. */
const [untimed, timed] = [2, 3]

/** Takes some steps of a run, whose networks are changed by them, and says what all of it will be. */
export async function rehearse(run: PlannedRun, memory: string): Promise<DryRun> {
  const steps = run.steps * run.config.epochs
  const { secondsPerStep, count } = await timeSteps(run)
  const seconds = steps * secondsPerStep
  const each = `${(1000 * secondsPerStep).toFixed(0)} ms each, data included`
  return {
    lines: [
      ...introduction(run),
      memory,
      ...scheduleLines(run),
      `time    ${steps} steps of ${each} (${count} were timed): about ${duration(seconds)}, evaluations and pictures not counted`,
      ...planWarnings(run).map((warning) => `warning ${warning}`),
    ],
    steps,
    secondsPerStep,
    seconds,
  }
}

async function timeSteps(run: PlannedRun): Promise<{ secondsPerStep: number; count: number }> {
  const loader = loaderOf(run)
  let views: (() => Views) | undefined
  const trainer = new Trainer(run.built, run.optimizer, {
    views: () => views!(),
    graph: run.config.graph,
    compute: computeSettings(run.share),
  })
  let [step, start, end] = [0, performance.now(), 0]
  try {
    for await (const batch of loader.batches(requestsOf(run))) {
      if (step === untimed) start = performance.now()
      views = () => batch.views() as unknown as Views
      // Reading the loss waits for the device.
      const { loss } = trainer.step(step, learningRate(run.config, step, run.steps), batch.crops()).readings
      if (!Number.isFinite(loss.values[0]))
        fail('NAN', `step ${step + 1}: the loss is not a number; try a lower --lr, --warmup-steps, or check the data`)
      step += 1
      end = performance.now()
      if (step === untimed + timed) break
    }
  } finally {
    await loader.close()
    trainer.dispose()
  }
  // A run that is shorter than that is timed whole.
  const count = step > untimed ? step - untimed : step
  return { secondsPerStep: (end - start) / 1000 / count, count }
}

/** The learning rate over the run. */
function scheduleLines({ config, steps }: PlannedRun): string[] {
  const total = steps * config.epochs
  const at = [0, config.warmupSteps, Math.floor(total / 2), total - 1]
  const moments = [...new Set(at)].filter((step) => step < total).sort((a, b) => a - b)
  const rates = moments.map((step) => `${learningRate(config, step, steps).toPrecision(3)} at step ${step}`)
  const warmup = config.warmupSteps === 0 ? '' : ` after ${config.warmupSteps} steps of warm-up`
  return [`rate    ${config.lr} by ${config.optimizer}, ${config.schedule} by ${config.scheduleBy}${warmup}: ${rates.join(', ')}`]
}
