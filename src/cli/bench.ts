import { Peer } from '../bench/peer.js'
import type { BenchCase } from '../bench/cases/benchCase.js'
import { benchCases } from '../bench/cases/index.js'
import { stepCases } from '../bench/cases/step.js'
import { ceilingsOf, floorMilliseconds, measure } from '../bench/measure.js'
import { environmentRow, readResult, type Result, type Row, writeResult } from '../bench/result.js'
import { fail } from '../tensor/errors.js'
import { namedDevice } from '../run/device.js'
import { useDevice } from '../selftest/trust.js'
import { didYouMean } from '../tensor/hint.js'
import { native } from '../tensor/native.js'
import type { FloatDType } from '../tensor/tensor.js'
import { deviceTraits } from '../tensor/traits.js'
import { addCode } from './benchCode.js'
import { addData } from './benchData.js'
import { addGrowth } from './benchGrowth.js'
import { addScale } from './benchScale.js'
import { type AddBench, batchOf, deviceFlag, unknownLayer } from './benchShared.js'
import { addStep } from './benchStep.js'
import { addTune } from './benchTune.js'
import { examples, heedingSignals, type Register } from './command.js'

const all: Record<string, readonly BenchCase[] | string> = { ...benchCases, ...stepCases }

/** What else there is to measure, or to predict. */
const others: readonly AddBench[] = [addData, addTune, addCode, addStep, addScale, addGrowth]

export const register: Register = (program, done) => {
  // Flags behind the name of one of the others are that one's.
  program.enablePositionalOptions()
  const command = program
    .command('bench')
    .enablePositionalOptions()
    .description('time each op at the shapes of ResNet-50 and DenseCL, against the floor of what the machine can do')
    .argument('[ops...]', `some of ${Object.keys(all).join(', ')}; all when absent`)
    .option('--layer <word>', 'only cases whose name holds the word')
    .option(...deviceFlag)
    .option('--precision <dtype>', 'bf16 or f32; default: bf16 on a GPU, f32 on the CPU')
    .option('--batch <images>', 'default: 256 on a GPU, 8 on the CPU')
    .option('--peer [how]', 'the same work in PyTorch, in turn: eager, or compile for torch.compile where ops can be fused')
    .option('--json', 'print JSON')
    .option('--save <file>', 'write the result as JSON, after each row: what was measured stays when the command is stopped')
    .option('--compare <file>', 'show what changed since a saved result')
    .addHelpText(
      'after',
      examples([
        ['densecl bench conv2d --layer layer3 --peer', 'the convolutions of stage 3 beside PyTorch'],
        ['densecl bench --save before.json', 'everything, kept'],
        ['densecl bench batchNorm --compare before.json', 'what a change did'],
      ]),
    )
    .action(
      heedingSignals(done, async (ops: string[], flags: Flags) => {
        for (const op of ops)
          if (!Object.hasOwn(all, op)) {
            const known = [...Object.keys(all), ...command.commands.map((own) => own.name())]
            fail('CONFIG', `bench: there is no op ${op}${didYouMean(op, known)}; densecl bench --help lists them`)
          }
        const before = flags.compare === undefined ? undefined : readResult(flags.compare)
        const result = await run(ops, flags, flags.json !== true, before)
        if (flags.json === true) console.log(JSON.stringify(result, undefined, 2))
        if (flags.save !== undefined) writeResult(flags.save, result)
        done(0)
      }),
    )
    .hook('preSubcommand', (_, other) => {
      const early = command.options.find((option) => command.getOptionValueSource(option.attributeName()) === 'cli')
      if (early !== undefined) fail('CONFIG', `bench: expected ${early.long} behind ${other.name()}, if it takes that`)
    })
  for (const add of others) add(command, done)
}

interface Flags {
  layer?: string
  device: string
  precision?: string
  batch?: string
  peer?: boolean | string
  json?: boolean
  save?: string
  compare?: string
}

/** Times of another machine, precision or batch say nothing about a change. */
function checkComparable(path: string, before: Result, now: Pick<Result, 'device' | 'dtype' | 'batch'>): void {
  for (const key of ['device', 'dtype', 'batch'] as const) {
    if (before[key] !== now[key]) fail('CONFIG', `--compare ${path}: its ${key} is ${before[key]} but this one is ${now[key]}`)
  }
}

async function run(ops: string[], flags: Flags, show: boolean, before: Result | undefined): Promise<Result> {
  const device = await useDevice(namedDevice(flags.device))
  const { dtypes, simulated, usualDType } = deviceTraits(device)
  const usual = simulated ? 'f32' : usualDType
  const possible = (['f32', 'bf16'] as const).filter((dtype) => dtypes.includes(dtype))
  const precision = flags.precision ?? usual
  if (!(possible as readonly string[]).includes(precision))
    fail('CONFIG', `--precision is ${precision}: expected ${possible.join(' or ')} on ${device}`)
  const dtype = precision as FloatDType
  const batch = batchOf(flags.batch) ?? (usual === 'bf16' ? 256 : 8)
  const what = { device: `${device}, ${native.describeDevice(device)}`, dtype, batch }
  if (before !== undefined) checkComparable(flags.compare!, before, what)
  const how = flags.peer === true ? 'eager' : flags.peer
  if (how !== undefined && how !== false && how !== 'eager' && how !== 'compile')
    fail('CONFIG', `--peer is ${how}: expected eager or compile`)
  const wanted = casesOf(ops, flags.layer)
  const ceilings = ceilingsOf(device, dtype)
  const peer = typeof how === 'string' ? await Peer.start(device, how === 'compile') : undefined
  if (show) {
    console.log(`${what.device}; ${dtype}, batch ${batch}${peer === undefined ? '' : `; PyTorch ${peer.version}`}`)
    console.log(`ceilings ${ceilings.gigabytesPerSecond.toFixed(0)} GB/s, ${ceilings.teraflops.toFixed(2)} TFLOP/s (${ceilings.how})`)
    const more = [peer === undefined ? '' : '   peer ms  faster', before === undefined ? '' : '  before ms  change']
    console.log(`${'case'.padEnd(58)}        ms      GB/s  TFLOP/s  floor  peak MiB${more.join('')}`)
  }
  const rows: Row[] = []
  const result = {
    ...environmentRow(),
    bench: 'ops',
    ...what,
    ceilings,
    ...(peer === undefined ? {} : { torch: peer.version, peer: how as string }),
    rows,
  }
  try {
    for (const [op, cases] of wanted) {
      for (const benchCase of cases) {
        const measured = measure(benchCase, device, dtype, batch)
        native.trimMemory(device)
        const { milliseconds, spread, noise, bytes, flops, peakBytes } = measured
        const theirs = await peerTime(peer, benchCase, batch, dtype)
        const row: Row = {
          op,
          name: benchCase.name,
          milliseconds,
          spread,
          noise,
          gigabytesPerSecond: bytes / milliseconds / 1e6,
          teraflops: flops / milliseconds / 1e9,
          floor: floorMilliseconds(measured, ceilings) / milliseconds,
          peakMegabytes: Math.round(peakBytes / 2 ** 20),
          ...(theirs === undefined
            ? {}
            : {
                peerMilliseconds: theirs.milliseconds,
                ...(theirs.peakMegabytes === undefined ? {} : { peerPeakMegabytes: Math.round(theirs.peakMegabytes) }),
              }),
        }
        rows.push(row)
        if (flags.save !== undefined) writeResult(flags.save, result, true)
        if (show) console.log(line(row, peer !== undefined, before))
      }
    }
  } finally {
    peer?.stop()
  }
  if (show) for (const remark of remarks(rows, before)) console.log(remark)
  return result
}

/** The cases of some ops, all when there are none, whose names hold the word. Throws CONFIG where there is none. */
function casesOf(ops: readonly string[], layer = ''): [op: string, cases: readonly BenchCase[]][] {
  const cases = Object.entries(all).flatMap(([op, own]): [string, readonly BenchCase[]][] =>
    typeof own === 'string' || (ops.length > 0 && !ops.includes(op)) ? [] : [[op, own.filter(({ name }) => name.includes(layer))]],
  )
  if (cases.length === 0) {
    const reasons = ops.map((op) => `${op}: ${all[op] as string}`)
    fail('CONFIG', `bench: there is nothing to measure of ${reasons.join('; ')}`)
  }
  if (layer !== '' && cases.every(([, own]) => own.length === 0)) unknownLayer(layer, 'case')
  return cases
}

async function peerTime(peer: Peer | undefined, { peer: work }: BenchCase, batch: number, dtype: FloatDType): ReturnType<Peer['measure']> {
  return work === undefined || peer === undefined ? undefined : peer.measure(work.op, work.numbers(batch), dtype)
}

/** Times of which the middle half lies further apart than this share of the median say little. */
const mostNoise = 0.1
const isNoisy = ({ noise = 0 }: Row): boolean => noise > mostNoise

/** What the marks of rows mean, where there are any. */
function remarks(rows: readonly Row[], before: Result | undefined): string[] {
  const noisy = rows.filter(isNoisy).length
  const percent = 100 * mostNoise
  return [
    ...(noisy === 0
      ? []
      : [
          `~ ${noisy} of ${rows.length} rows: the middle half of the times lies more than ${percent} % of their median apart, ` +
            'as when other programs run; measure again on a quiet machine',
        ]),
    ...(before === undefined ? [] : ['~ behind a change: no larger than the noise of both measurements']),
    ...(rows.some(({ floor }) => floor > 1.05) ? ['floor above 100%: data stays in caches, which no ceiling counts'] : []),
  ]
}

function line(row: Row, withPeer: boolean, before: Result | undefined): string {
  const { op, name, milliseconds, gigabytesPerSecond, teraflops, floor, peakMegabytes, peerMilliseconds } = row
  const peer = !withPeer
    ? ''
    : peerMilliseconds === undefined
      ? '         -       -'
      : `${peerMilliseconds.toFixed(3).padStart(10)}  ${(peerMilliseconds / milliseconds).toFixed(2).padStart(5)}x`
  const old = before?.rows.find((other) => other.op === op && other.name === name)
  const change = before === undefined ? '' : old === undefined ? '          -       -' : changeFrom(old, row)
  const cells = [
    `${op} ${name}`.padEnd(58),
    `${milliseconds.toFixed(3).padStart(9)}${isNoisy(row) ? '~' : ' '}`,
    gigabytesPerSecond.toFixed(1).padStart(8),
    teraflops.toFixed(2).padStart(8),
    `${(100 * floor).toFixed(0)}%`.padStart(6),
    String(peakMegabytes).padStart(9),
  ]
  return `${cells.join(' ')}${peer}${change}`
}

function changeFrom({ milliseconds: before, noise: noiseBefore = 0 }: Row, { milliseconds: now, noise = 0 }: Row): string {
  const percent = `${now <= before ? '' : '+'}${((100 * now) / before - 100).toFixed(0)}%`
  const unsure = Math.abs(now - before) <= noise * now + noiseBefore * before
  return `${before.toFixed(3).padStart(11)} ${percent.padStart(7)}${unsure ? '~' : ''}`
}
