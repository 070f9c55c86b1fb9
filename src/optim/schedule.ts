/** How the learning rate goes over a run. */
/** How the learning rate goes over a run. */
export interface Schedule {
  lr: number
  schedule: 'cosine' | 'constant'
  /** `epoch` steps once an epoch, as the published configurations do; `step` every step. */
  scheduleBy: 'epoch' | 'step'
  warmupSteps: number
  epochs: number
}

/** lr_t = lr / 2 * (1 + cos(pi * progress)), times (step + 1) / warm-up while warming up. */
export function learningRate(options: Schedule, step: number, stepsPerEpoch: number): number {
  const epoch = Math.floor(step / stepsPerEpoch)
  const progress = options.scheduleBy === 'epoch' ? epoch / options.epochs : step / (options.epochs * stepsPerEpoch)
  const base = options.schedule === 'constant' ? options.lr : 0.5 * options.lr * (1 + Math.cos(Math.PI * progress))
  return base * (step < options.warmupSteps ? (step + 1) / options.warmupSteps : 1)
}
