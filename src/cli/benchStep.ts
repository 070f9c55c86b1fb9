/** `densecl bench step`: the milliseconds of a training step by kernel, on GPUs that are not here. */
import { spawnSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { join } from 'node:path'

import { constants } from '../bench/constants.js'
import { gpus } from '../bench/model.js'
import { environmentRow, writeResult } from '../bench/result.js'
import { detectionCalls, simulatedDevice, stepCalls } from '../bench/step/calls.js'
import { type Cost, Machine } from '../bench/step/machine.js'
import { costsOf, stepTimes } from '../bench/step/predict.js'
import { type FusionLevel, fusionLevels } from '../tensor/compute.js'
import { fail } from '../tensor/errors.js'
import { didYouMean } from '../tensor/hint.js'
import { packageRoot } from '../tensor/addon.js'
import { bulkStoredTile, widestTile } from '../ops/kernels.js'
import { entryOf } from '../run/options.js'
import { type AddBench, batchOf, unknownLayer } from './benchShared.js'
import { examples, heedingSignals } from './command.js'

const levels: readonly string[] = fusionLevels

interface StepFlags {
  batch?: string
  step: string
  kernels: string
  keyPrecision?: string
  widest?: boolean
  bulkStores?: boolean
  json?: boolean
  layer?: string
  save?: string
}

export const addStep: AddBench = (parent, done) => {
  parent
    .command('step')
    .description('the milliseconds of a training step by kernel on an A100, an H100 and an H200, predicted by the model')
    .argument('[level]', `${levels.join(', ')}, of fusion; epilogue when absent`)
    .option('--step <name>', `${Object.keys(steps).join(', ')}: pre-training, or training of a detector`, 'densecl')
    .option('--batch <images>', 'default: the published batch')
    .option('--kernels <state>', 'now, or before the kernels were first reworked', 'now')
    .option('--key-precision <how>', 'fp8: of the key encoder, on an H100 and an H200')
    .option('--widest', 'with tiles of 128x256 where they take less time, as a tuned run would, on an H100 and an H200')
    .option('--bulk-stores', 'the same with forward products whose tiles are stored by bulk copies')
    .option('--layer <word>', 'also the single launches whose kernel or operands hold the word')
    .option('--json', 'print JSON')
    .option('--save <file>', 'write the result as JSON')
    .addHelpText('after', examples([['densecl bench step --layer wgmma', 'each launch of a product too']]))
    .action(heedingSignals(done, (level: string | undefined, flags: StepFlags) => done(benchStep(level, flags))))
}

/** The steps that are predicted: in words, with their published batch, what its members are, and their calls. */
const steps = {
  densecl: {
    what: 'ResNet-50, 224 px',
    batch: 256,
    unit: 'pairs',
    calls: (level: FusionLevel, batch: number, keyPrecision?: 'fp8') => stepCalls({ level, keyPrecision })(batch),
  },
  detection: {
    what: 'Faster R-CNN C4, 800x1333',
    batch: 16,
    unit: 'images',
    calls: (_: FusionLevel, batch: number) => detectionCalls(batch, 'c4'),
  },
  mask: {
    what: 'Mask R-CNN FPN, 800x1344',
    batch: 16,
    unit: 'images',
    calls: (_: FusionLevel, batch: number) => detectionCalls(batch, 'fpn'),
  },
} as const

/** Prints the prediction; the exit code. */
function benchStep(
  given: string | undefined,
  { step, kernels, keyPrecision, widest, bulkStores, json = false, layer, save, ...flags }: StepFlags,
): number {
  const level = given ?? 'epilogue'
  // Tiles that no GPU has timed.
  const untimed = [...(widest === true ? [widestTile] : []), ...(bulkStores === true ? [bulkStoredTile] : [])]
  if (!levels.includes(level))
    fail('CONFIG', `bench step: there is no level ${level}${didYouMean(level, levels)}; levels: ${levels.join(', ')}`)
  const { what, unit, calls: callsOf, batch: published } = entryOf('--step', step, steps)
  const batch = batchOf(flags.batch) ?? published
  if (step !== 'densecl' && given !== undefined) fail('CONFIG', 'bench step: a detector has no levels of fusion')
  if (kernels !== 'now' && kernels !== 'before') fail('CONFIG', `--kernels is ${kernels}: expected now or before`)
  if (keyPrecision !== undefined && (keyPrecision !== 'fp8' || step !== 'densecl'))
    fail('CONFIG', `--key-precision is ${keyPrecision}: expected fp8, of the step densecl`)
  if (simulatedDevice() === undefined) return withSimulation('step')
  const calls = callsOf(level as FusionLevel, batch, keyPrecision)
  const names = Object.keys(gpus).filter((name) => (keyPrecision === undefined && untimed.length === 0) || gpus[name]!.name === 'sm_90')
  const costs = names.map((name) => {
    const machine = new Machine(gpus[name]!, kernels, {}, untimed)
    return calls.flatMap((call) => costsOf(machine, call))
  })
  if (layer !== undefined && !costs.flat().some(holds(layer))) unknownLayer(layer, 'launch')
  const times = costs.map(stepTimes)
  const predicted = Object.fromEntries(names.map((name, i) => [name, times[i]!]))
  const result = {
    ...environmentRow(),
    bench: 'step',
    how: 'model, not measured',
    kernels,
    ...(step === 'densecl' ? { level } : {}),
    ...(keyPrecision === undefined ? {} : { keyPrecision }),
    ...(untimed.length > 0 ? { untimed } : {}),
    step: `${what}, batch ${batch}, ${step === 'densecl' ? 'queue 65536, ' : ''}bf16`,
    predicted,
  }
  if (json) console.log(JSON.stringify(result, undefined, 2))
  else
    console.log(
      [
        ...lines(names, times, { what, batch, unit, level: step === 'densecl' ? level : undefined, kernels, keyPrecision, untimed }),
        ...(layer === undefined ? [] : single(names, costs, layer)),
      ].join('\n'),
    )
  if (save !== undefined) writeResult(save, result)
  return 0
}

/** The same command with the addon whose calls are those of a GPU; its exit code. */
export function withSimulation(bench: string): number {
  const addon = join(packageRoot, 'build-simt', 'Release', 'densecl.node')
  if (process.env.DENSECL_ADDON !== undefined || !existsSync(addon))
    fail('ADDON', `bench ${bench} looks at the calls of a step on simt, which this addon does not have; run: npm run build:simt`)
  const { status } = spawnSync(process.execPath, process.argv.slice(1), { stdio: 'inherit', env: { ...process.env, DENSECL_ADDON: addon } })
  return status ?? 1
}

interface Headline {
  what: string
  batch: number
  unit: string
  level: string | undefined
  kernels: string
  keyPrecision: string | undefined
  untimed: readonly number[]
}

const cell = (value: number, digits = 2): string => value.toFixed(digits).padStart(8)

function lines(
  names: readonly string[],
  times: readonly ReturnType<typeof stepTimes>[],
  { what, batch, unit, level, kernels, keyPrecision, untimed }: Headline,
): string[] {
  const last = times.at(-1)!
  const all = [...new Set([...last.kernels, ...times.flatMap((time) => time.kernels)].map(({ kernel }) => kernel))]
  const settings = [
    ...(level === undefined ? [] : [`level ${level}`]),
    ...(keyPrecision === undefined ? [] : [`keys in ${keyPrecision}`]),
    ...untimed.map((tile) => `tile ${tile}`),
    ...(kernels === 'now' ? [] : ['kernels before']),
  ]
  const head = ['milliseconds', what, `batch ${batch}`, ...settings].join(', ')
  const of = (i: number, kernel: string): number => times[i]!.kernels.find((row) => row.kernel === kernel)?.milliseconds ?? 0
  const total = (value: (time: (typeof times)[number]) => string): string => times.map(value).join('')
  const sumOf = ({ kernels }: (typeof times)[number], what: 'launches' | 'floor' | 'gigabytes'): number =>
    kernels.reduce((sum, kernel) => sum + kernel[what], 0)
  const ramps = (time: (typeof times)[number]): number => (sumOf(time, 'launches') * constants.launch.now) / 1e3
  const sums = [
    String(sumOf(last, 'launches')).padStart(11),
    sumOf(last, 'floor').toFixed(2).padStart(7),
    sumOf(last, 'gigabytes').toFixed(2).padStart(7),
  ]
  return [
    `${head.padEnd(62)}${names.map((name) => name.padStart(8)).join('')}   launches  floor  GB on ${names.at(-1)}, bound`,
    ...all.map((kernel) => {
      const row = last.kernels.find((found) => found.kernel === kernel)
      const rest =
        row === undefined
          ? ''
          : `${String(row.launches).padStart(11)}${row.floor.toFixed(2).padStart(7)}${row.gigabytes.toFixed(2).padStart(7)}  ${row.bound}`
      return `${kernel.padEnd(62)}${names.map((_, i) => cell(of(i, kernel))).join('')}${rest}`
    }),
    `${'step'.padEnd(62)}${total((time) => cell(time.milliseconds, 1))}${sums.join('')}`,
    `${'of which ramps of launches'.padEnd(62)}${total((time) => cell(ramps(time), 1))}`,
    `${`${unit}/s`.padEnd(62)}${total((time) => cell((1000 * batch) / time.milliseconds, 0))}`,
  ]
}

/** Whether the kernel or the operands of a launch hold the word. */
const holds =
  (word: string) =>
  ({ kernel, what }: Cost): boolean =>
    `${kernel} ${what}`.includes(word)

/** The single launches of which that is so. */
function single(names: readonly string[], costs: readonly Cost[][], word: string): string[] {
  return [
    '',
    ...names.flatMap((name, i) => [
      `${name}, microseconds`,
      ...costs[i]!.filter(holds(word)).map(
        ({ kernel, what, microseconds, floor, bound }) =>
          `  ${`${kernel}  ${what}`.padEnd(76)}${microseconds.toFixed(1).padStart(9)}  floor ${floor.toFixed(1).padStart(7)}  ${bound}`,
      ),
    ]),
  ]
}
