/** A run as people and machines read it: its first lines, the live line, and the row of metrics.jsonl. */
import { splitsAsClasses } from '../data/folderSource.js'
import { skippedLines } from '../data/source.js'
import type { Loader } from '../data/loader.js'
import { pixelsOfCrops } from '../data/ring.js'
import { openNvjpeg } from '../data/nvjpeg.js'
import { learningRate } from '../optim/schedule.js'
import type { Config } from '../run/config.js'
import { computeSettings, decodePlace } from '../run/placement.js'
import { duration, type Metrics } from '../run/runLog.js'
import { withCompute } from '../tensor/compute.js'
import { native, type RecordedStep } from '../tensor/native.js'
import { deviceTraits } from '../tensor/traits.js'
import type { Position } from './checkpoint.js'
import type { PlannedRun, Run } from './run.js'
import type { Tuning } from './tuner.js'

/** What is trained on what, and where. */
export function introduction(run: PlannedRun): string[] {
  const { config, group, share, method, built, source, steps, position, resumed, extendedFrom } = run
  const rate = learningRate(config, position.globalStep, steps).toPrecision(3)
  const images = source.items.length
  const { backbone } = built
  const { device, compute } = backbone
  const classes = source.classes === undefined ? '' : ` of ${source.classes.length} classes (labels serve kNN only)`
  const published = compute === 'bf16' ? ' (published runs were f32: --precision f32)' : ''
  const precision = deviceTraits(device).tf32 || compute === 'bf16' ? `; ${config.precision === 'tf32' ? 'tf32' : compute}${published}` : ''
  return [
    `data    ${config.data}: ${images} images${classes}, ${steps} steps of ${config.batchSize} an epoch`,
    ...skippedLines(source).map((line) => `        ${line}`),
    ...splitsAsClasses(source).map((warning) => `warning ${warning}`),
    `model   ${backbone.description}, ${config.imageSize} px`,
    ...(built.introduce?.({ images }) ?? [`method  ${method.name}`]),
    `device  ${device}, ${withCompute(computeSettings(share), () => native.describeDevice(device))}${precision}`,
    ...decoders(config, device),
    ...reducedImages(config, device),
    ...(group.size === 1
      ? []
      : [
          `group   ${group.size} processes by ${native.commLibrary()}: ${share.batchSize} images in ` +
            (share.normGroups === 1 ? 'a group a step' : `${share.normGroups} groups each a step`),
        ]),
    ...(resumed ? [`resume  at epoch ${position.epoch}, step ${position.step}`] : []),
    ...(extendedFrom === undefined
      ? []
      : [`        extended from ${extendedFrom} to ${config.epochs} epochs: the rate goes on as in a run of ${config.epochs}, at ${rate}`]),
  ]
}

/** What decodes the images of a run on a GPU. */
function decoders(config: Config, device: string): string[] {
  if (decodePlace(config, device) !== 'gpu') return []
  return [
    `decode  ${openNvjpeg(device)}; data workers decode what is no baseline JPEG`,
    '        pixels differ from theirs by a few levels of 255',
  ]
}

/** What the decoder of a GPU has refused. */
export function refusedLine(refused: ReadonlyMap<string, string>): string {
  const named = [...refused].slice(0, 3).map(([name, reason]) => `${name} (${reason})`)
  const more = refused.size > 3 ? ' ...' : ''
  return `decode  nvJPEG refuses ${refused.size} of the JPEGs, which data workers decode: ${named.join(', ')}${more}`
}

/** That a GPU does not see all of the pixels of large images, which published runs cut their crops of. */
function reducedImages({ imageSize, mostPixels, ...crops }: Config, device: string): string[] {
  if (!deviceTraits(device).rendersViews) return []
  const most = mostPixels ?? pixelsOfCrops(imageSize, crops)
  return [`images  of more than ${most} pixels are reduced before crops are cut (published runs cut them whole: --most-pixels N)`]
}

/** What can be said before the first step of how long this is: sentences with a remedy. */
export function planWarnings({ config, steps, resumed }: Pick<PlannedRun, 'config' | 'steps' | 'resumed'>): string[] {
  if (resumed) return []
  const total = steps * config.epochs
  const warnings = []
  if (total < fewSteps)
    warnings.push(
      `the run has ${total} steps in all: fewer than ${fewSteps} teach next to nothing; try --epochs ${Math.ceil(fewSteps / steps)} or a ` +
        'smaller --batch-size',
    )
  if (2 * config.warmupSteps > total)
    warnings.push(
      `the warm-up of ${config.warmupSteps} steps is more than half of the run's ${total}: its learning rate is hardly reached; try ` +
        `--warmup-steps ${Math.floor(total / 20)}`,
    )
  return warnings
}

/** Preset quick, the shortest run that is known to teach something, takes 448. */
const fewSteps = 200

/** A step that has been read. */
export interface Progress {
  /** BuiltMethod.describe */
  numbers: Record<string, number>
  at: Position
  lr: number
  /** Images a second, the share of the time that was waited for data, and the seconds that are left. */
  rate: number
  wait: number
  remaining: number
  /** Loader.spent */
  spent: Loader['spent']
}

/**
 * Milliseconds for an image on the average of the run: of a worker, that makes the views or places the pixels that a GPU makes them
 * of, and of uploads as far as the step waited for them.
 */
function dataTimes({ built }: Run, { spent }: Progress): [name: string, milliseconds: number][] {
  const { images, decoding, rendering, uploading } = spent
  const each = (seconds: number): number => (1000 * seconds) / Math.max(1, images)
  return deviceTraits(built.backbone.device).rendersViews
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
const stepTime = ({ config }: Run, { rate, wait }: Progress): number => (1000 * Math.max(0, 1 - wait) * config.batchSize) / rate

/** The fields of the live line, those first that are worth most: a terminal has room for some of them. */
export function progressFields(run: Run, progress: Progress): string[] {
  const { config, method, steps } = run
  const { numbers, at, lr, rate, wait, remaining } = progress
  const { loss, health } = method.logLine?.(numbers) ?? {}
  const times = dataTimes(run, progress).map(([name, ms]) => `${name} ${ms.toFixed(1)} ms`)
  return [
    `eta ${duration(remaining)}`,
    `epoch ${at.epoch + 1}/${config.epochs} step ${at.step}/${steps}`,
    `loss ${numbers.loss!.toFixed(3)}`,
    `${rate.toFixed(0)} images/s`,
    `wait ${(100 * wait).toFixed(0)}%`,
    ...(loss === undefined ? [] : [loss]),
    ...(health === undefined ? [] : [health]),
    `lr ${lr.toPrecision(3)}`,
    `step ${stepTime(run, progress).toFixed(0)} ms`,
    `${times.join(', ')} an image`,
  ]
}

export function metricsRow(run: Run, progress: Progress): Metrics {
  const { numbers, at, lr, rate, wait } = progress
  return {
    globalStep: at.globalStep,
    epoch: at.epoch + at.step / run.steps,
    ...numbers,
    lr,
    imagesPerSecond: rate,
    waitShare: wait,
    stepMilliseconds: stepTime(run, progress),
    ...Object.fromEntries(dataTimes(run, progress).map(([name, ms]) => [`${name}Milliseconds`, ms])),
    memoryPeak: native.memory(run.built.backbone.device).peak,
  }
}

/** What a recorded step takes, beside what it must. */
export function graphLine({ launches, arena, live, total }: RecordedStep, saved: number): string {
  const mebibytes = (bytes: number): string => (bytes / 2 ** 20).toFixed(bytes < 2 ** 24 ? 1 : 0)
  const parts = `at once ${mebibytes(live)}, in all ${mebibytes(total)}, saved for backward ${mebibytes(saved)}`
  return `graph   ${launches} launches a step; ${mebibytes(arena)} MiB for what is made in it (${parts})`
}

/** What tuning chose and what that gained, and what it could not do. */
export function tuningLines({ level, levels, products, table, chosen, timed, known, left, seconds, remarks }: Tuning): string[] {
  const others = levels.filter((other) => other.level !== level).map((other) => `${other.level} ${other.milliseconds.toFixed(2)}`)
  const prologues = products.filter(({ prologue, shape }) => prologue && shape.startsWith('forward')).length
  const what =
    others.length > 0
      ? `convolutions and norms of a step ${table.toFixed(2)} ms by the table at level epilogue`
      : `convolutions of a step ${table.toFixed(2)} ms by the table`
  const calls = `${timed} calls timed in ${seconds.toFixed(1)} s, ${known} known`
  const chose = `level ${level}${others.length === 0 ? '' : ` (${others.join(', ')} ms)`}`
  const through = prologues === 0 ? '' : `, ${prologues} shapes read through a prologue`
  return [
    `tuning  ${calls}: ${what}, ${chosen.toFixed(2)} ms as chosen; ${chose}${through}`,
    ...(left === 0 ? [] : [`tuning  ${left} of ${products.length} products were left to the tables`]),
    ...remarks.map((remark) => `warning tuning: ${remark}`),
  ]
}
