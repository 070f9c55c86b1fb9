/** How the learning rate goes over a run. */
/** How the learning rate goes over a run. */
export interface Schedule {
  /** The rate after the warm-up. */
  lr: number
  /** `step` multiplies by `lrDecay` (0.1) at each of `milestones`, in epochs. */
  schedule: 'cosine' | 'constant' | 'step'
  milestones?: readonly number[]
  lrDecay?: number
  /** `epoch` changes the rate once an epoch, as the published configurations do; `step` every step. */
  scheduleBy: 'epoch' | 'step'
  warmupSteps: number
  epochs: number
}

/**
 * The learning rate of a step: lr / 2 * (1 + cos(pi * progress)) for `cosine`, lr * lrDecay^(milestones passed) for `step`; times
 * (step + 1) / warmupSteps while warming up.
 */
export function learningRate(options: Schedule, step: number, stepsPerEpoch: number): number {
  const { lr, schedule, milestones = [], lrDecay = 0.1, scheduleBy, warmupSteps, epochs } = options
  const epoch = Math.floor(step / stepsPerEpoch)
  const progress = Math.min(1, scheduleBy === 'epoch' ? epoch / epochs : step / (epochs * stepsPerEpoch))
  const base =
    schedule === 'constant'
      ? lr
      : schedule === 'step'
        ? lr * lrDecay ** milestones.filter((milestone) => epoch >= milestone).length
        : 0.5 * lr * (1 + Math.cos(Math.PI * progress))
  return base * (step < warmupSteps ? (step + 1) / warmupSteps : 1)
}
