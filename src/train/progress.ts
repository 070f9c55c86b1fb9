/** A step of a run as people and machines read it: the live line, the row of metrics.jsonl, and the plot at the end. */
import type { Loader } from '../data/loader.js'
import { chanceLoss } from '../methods/densecl/health.js'
import type { StepResult } from '../methods/densecl/step.js'
import { linePlot } from '../report/plot.js'
import { native, type RecordedStep } from '../tensor/native.js'
import { deviceTraits } from '../tensor/traits.js'
import type { Position } from './checkpoint.js'
import type { Config } from '../run/config.js'
import { duration, type Metrics } from '../run/runLog.js'
import type { Tuning } from './tuner.js'

export interface Progress {
  result: StepResult
  at: Position
  lr: number
  /** Images a second, the share of the time that was waited for data, and the seconds that are left. */
  rate: number
  wait: number
  remaining: number
  /** Loader.spent */
  spent: Loader['spent']
  device: string
  /** Of an epoch. */
  steps: number
  config: Config
}

/**
 * Milliseconds for an image on the average of the run: of a worker, that makes the views or places the pixels that a GPU makes them
 * of, and of uploads as far as the step waited for them.
 */
function dataTimes({ spent: { images, decoding, rendering, uploading }, device }: Progress): [name: string, milliseconds: number][] {
  const each = (seconds: number): number => (1000 * seconds) / Math.max(1, images)
  return deviceTraits(device).rendersViews
    ? [
        ['decode', each(decoding)],
        ['place', each(rendering)],
        ['upload', each(uploading)],
      ]
    : [
        ['decode', each(decoding)],
        ['augment', each(rendering)],
      ]
}

/** Milliseconds of a step without what it waited for data: compute, and on a GPU augmentation. */
const stepTime = ({ rate, wait, config }: Progress): number => (1000 * Math.max(0, 1 - wait) * config.batchSize) / rate

export function progressLine(progress: Progress): string {
  const {
    result: { losses, health },
    at: { epoch, step },
    lr,
    rate,
    wait,
    remaining,
    steps,
    config,
  } = progress
  return [
    `epoch ${epoch + 1}/${config.epochs} step ${step}/${steps}`,
    `loss ${losses.total.toFixed(3)} (global ${losses.single.toFixed(3)} dense ${losses.dense.toFixed(3)})`,
    `lr ${lr.toPrecision(3)}`,
    `${rate.toFixed(0)} images/s`,
    `wait ${(100 * wait).toFixed(0)}% (${dataTimes(progress)
      .map(([name, ms]) => `${name} ${ms.toFixed(1)} ms`)
      .join(', ')} an image)`,
    `step ${stepTime(progress).toFixed(0)} ms`,
    `eta ${duration(remaining)}`,
    `acc ${(100 * health.global.accuracy).toFixed(0)}/${(100 * health.dense.accuracy).toFixed(0)}% spread ${health.spread.toFixed(2)} same ${(100 * health.samePosition).toFixed(0)}%`,
  ].join('  ')
}

export function metricsRow(progress: Progress): Metrics {
  const {
    result: { losses, health },
    at: { epoch, step, globalStep },
    lr,
    rate,
    wait,
    device,
    steps,
    config,
  } = progress
  return {
    globalStep,
    epoch: epoch + step / steps,
    loss: losses.total,
    lossGlobal: losses.single,
    lossDense: losses.dense,
    lr,
    imagesPerSecond: rate,
    waitShare: wait,
    stepMilliseconds: stepTime(progress),
    ...Object.fromEntries(dataTimes(progress).map(([name, ms]) => [`${name}Milliseconds`, ms])),
    queueFill: Math.min(1, (globalStep * config.batchSize) / config.queueLength),
    positiveGlobal: health.global.positive,
    negativeGlobal: health.global.negative,
    accuracyGlobal: health.global.accuracy,
    positiveDense: health.dense.positive,
    negativeDense: health.dense.negative,
    accuracyDense: health.dense.accuracy,
    spread: health.spread,
    samePosition: health.samePosition,
    distinctMatches: health.distinct,
    memoryPeak: native.memory(device).peak,
  }
}

/** What a recorded step takes, beside what it must. */
export function graphLine({ launches, arena, live, total }: RecordedStep, saved: number): string {
  const mebibytes = (bytes: number): string => (bytes / 2 ** 20).toFixed(bytes < 2 ** 24 ? 1 : 0)
  return `graph   ${launches} launches a step; ${mebibytes(arena)} MiB for what is made in it (at once ${mebibytes(live)}, in all ${mebibytes(total)}, saved for backward ${mebibytes(saved)})`
}

export function lossPlot(rows: Metrics[], config: Config): string {
  const series = (name: string, key: string, colour: string) => ({
    name,
    colour,
    points: rows.filter((row) => row[key] !== undefined).map((row) => ({ x: row.epoch!, y: row[key]! })),
  })
  return linePlot([series('total', 'loss', '#222'), series('global', 'lossGlobal', '#1f77b4'), series('dense', 'lossDense', '#d62728')], {
    title: 'Pre-training loss',
    xLabel: 'epoch',
    yLabel: 'weighted loss',
    levels: [{ y: chanceLoss(config.queueLength), name: 'guessing' }],
  })
}

/** What tuning chose and what that gained, and what it could not do. */
export function tuningLines({ level, levels, products, table, chosen, timed, known, left, seconds, remarks }: Tuning): string[] {
  const others = levels.filter((other) => other.level !== level).map((other) => `${other.level} ${other.milliseconds.toFixed(2)}`)
  const prologues = products.filter(({ prologue, shape }) => prologue && shape.startsWith('forward')).length
  const what =
    others.length > 0
      ? `convolutions and norms of a step ${table.toFixed(2)} ms by the table at level epilogue`
      : `convolutions of a step ${table.toFixed(2)} ms by the table`
  return [
    `tuning  ${timed} calls timed in ${seconds.toFixed(1)} s, ${known} known: ${what}, ${chosen.toFixed(2)} ms as chosen; level ${level}${others.length === 0 ? '' : ` (${others.join(', ')} ms)`}${prologues === 0 ? '' : `, ${prologues} shapes read through a prologue`}`,
    ...(left === 0 ? [] : [`tuning  ${left} of ${products.length} products were left to the tables`]),
    ...remarks.map((remark) => `warning tuning: ${remark}`),
  ]
}
