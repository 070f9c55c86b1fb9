import { Option } from 'commander'

import { Peer } from '../bench/peer.js'
import type { BenchCase } from '../bench/cases/benchCase.js'
import { benchCases } from '../bench/cases/index.js'
import { stepCases } from '../bench/cases/step.js'
import { ceilingsOf, floorMilliseconds, measure } from '../bench/measure.js'
import { environmentRow, readResult, type Result, type Row, writeResult } from '../bench/result.js'
import { fail } from '../tensor/errors.js'
import { namedDevice } from '../run/device.js'
import { decodePlace } from '../run/placement.js'
import { useDevice } from '../selftest/trust.js'
import { didYouMean } from '../tensor/hint.js'
import { native } from '../tensor/native.js'
import type { FloatDType } from '../tensor/tensor.js'
import { deviceTraits } from '../tensor/traits.js'
import { benchCode } from './benchCode.js'
import { benchData, dataLine } from './benchData.js'
import { benchGrowth, growthHelp } from './benchGrowth.js'
import { benchScale, mostImages } from './benchScale.js'
import { benchStep } from './benchStep.js'
import { saveTable, tune, tuneLine } from './benchTune.js'
import { examples, heedingSignals, numberFlag, type Register } from './command.js'

const all: Record<string, readonly BenchCase[] | string> = { ...benchCases, ...stepCases }

export const register: Register = (program, done) => {
  program
    .command('bench')
    .description('time each op at the shapes of ResNet-50 and DenseCL, against the floor of what the machine can do')
    .argument(
      '[ops...]',
      `some of ${Object.keys(all).join(', ')}; all when absent; data, for the loading of images; tune, for the tiles of ` +
        'convolutions; code, for what the compiler made of each kernel; step, for what a training step takes on GPUs by the model; ' +
        'scale, for what one takes on up to 512 of them; growth, for how time and memory grow with work',
    )
    .option('--layer <word>', 'only cases whose name holds the word')
    .option('--device <name>', 'cpu or cuda:N; auto takes a GPU where there is one', 'auto')
    .option('--precision <dtype>', 'bf16 or f32; default: bf16 on a GPU, f32 on the CPU')
    .option('--batch <images>', 'default: 256 on a GPU, 8 on the CPU')
    .option('--peer [how]', 'the same work in PyTorch, in turn: eager, or compile for torch.compile where ops can be fused')
    .option('--json', 'print JSON')
    .option(
      '--save <file>',
      'write the result as JSON, after each row: what was measured stays when the command is stopped; of `bench tune`, the table',
    )
    .option('--compare <file>', 'show what changed since a saved result')
    .optionsGroup('bench tune:')
    .option('--model <architecture>', 'sm_80, sm_86, sm_89 or sm_90 by the model instead of a GPU')
    .optionsGroup('bench code:')
    .option('--architecture <name>', 'sm_80, sm_86, sm_89 or sm_90a', 'sm_90a')
    .optionsGroup('bench step:')
    .option('--step <name>', 'densecl, or detection (Faster R-CNN, C4, 800x1333 px)', 'densecl')
    .option('--kernels <state>', 'now, or before the kernels were first reworked', 'now')
    .option('--key-precision <how>', 'fp8: of the key encoder, on an H100 and an H200')
    .option('--widest', 'with tiles of 128x256 where they take less time, as a tuned run would, on an H100 and an H200')
    .optionsGroup('bench growth:')
    .option('--most <size>', 'leaves larger sizes out')
    .optionsGroup('bench data:')
    .option('--data <source>', 'anything that pretrain --data takes', 'scenes')
    .addOption(new Option('--decode <where>', 'what decodes JPEGs: workers, or the GPU with nvJPEG').choices(['cpu', 'gpu']).default('cpu'))
    .option('--image-size <pixels>', 'side of the views', '224')
    .option('--workers <counts>', 'numbers of worker threads to try, 0 is what training takes', '0')
    .option('--seconds <time>', 'how long each is measured', '10')
    .addHelpText('after', `\nAxes of bench growth, and their sizes:${growthHelp}`)
    .addHelpText(
      'after',
      examples([
        ['densecl bench conv2d --layer layer3 --peer', 'the convolutions of stage 3 beside PyTorch'],
        ['densecl bench --save before.json', 'everything, kept'],
        ['densecl bench batchNorm --compare before.json', 'what a change did'],
        ['densecl bench tune', 'writes the table of tiles of this GPU'],
        ['densecl bench code conv2dHopper', 'registers, spills and loops of its kernels, from the machine code'],
        ['densecl bench code --compare bench/results/code-sm_90a.json', 'what grew; exit code 1 where a loop doubled'],
        ['densecl bench step', 'milliseconds by kernel for A100, H100 and H200, predicted'],
        ['densecl bench scale --batch 64', 'a step of 64 images a GPU on 1, 8, 64 and 512 GPUs, predicted'],
        ['densecl bench growth rows start --most 100000', 'opening a list and starting a run, by the images of the list'],
        ['densecl bench data --data photos --workers 1,2,4', 'where loading spends its time'],
      ]),
    )
    .action(
      heedingSignals(done, async (ops: string[], flags: Flags) => {
        if (ops.includes('data')) {
          if (ops.length > 1) fail('CONFIG', `bench data: expected no other op beside data but received ${ops.join(' ')}`)
          const result = await benchLoading(flags)
          if (flags.json === true) console.log(JSON.stringify(result, undefined, 2))
          if (flags.save !== undefined) writeResult(flags.save, result)
          done(0)
          return
        }
        if (ops.includes('tune')) {
          if (ops.length > 1) fail('CONFIG', `bench tune: expected no other op beside tune but received ${ops.join(' ')}`)
          const device = flags.model === undefined ? await useDevice(namedDevice(flags.device)) : 'cpu'
          const batch = flags.batch === undefined ? 256 : numberFlag('batch', flags.batch, { least: 1, whole: true })
          const table = tune(
            {
              device,
              batch,
              ...(flags.model === undefined ? {} : { model: flags.model }),
              ...(flags.layer === undefined ? {} : { layer: flags.layer }),
            },
            (row, soFar) => {
              if (flags.json !== true) console.log(tuneLine(row))
              if (flags.save !== undefined) saveTable(soFar, flags.save)
            },
          )
          if (flags.json === true) console.log(JSON.stringify(table, undefined, 2))
          else console.log(flags.layer === undefined ? `written to ${saveTable(table)}` : 'not written: --layer leaves shapes out')
          done(0)
          return
        }
        if (ops[0] === 'code') {
          done(
            await benchCode(ops.slice(1), {
              architecture: flags.architecture,
              json: flags.json === true,
              save: flags.save,
              compare: flags.compare,
            }),
          )
          return
        }
        if (ops[0] === 'step') {
          const { kernels, keyPrecision, widest = false, step, layer, save } = flags
          const batch = flags.batch === undefined ? undefined : numberFlag('batch', flags.batch, { least: 1, whole: true })
          done(benchStep(ops.slice(1), { batch, step, kernels, keyPrecision, widest, json: flags.json === true, layer, save }))
          return
        }
        if (ops[0] === 'growth') {
          const most = flags.most === undefined ? Infinity : numberFlag('most', flags.most, { least: 1, whole: true })
          done(benchGrowth(ops.slice(1), { most, json: flags.json === true, save: flags.save }))
          return
        }
        if (ops.includes('scale')) {
          if (ops.length > 1) fail('CONFIG', `bench scale: expected no other op beside scale but received ${ops.join(' ')}`)
          const batch =
            flags.batch === undefined ? undefined : numberFlag('batch', flags.batch, { least: 1, most: mostImages, whole: true })
          done(benchScale({ batch, json: flags.json === true, save: flags.save }))
          return
        }
        for (const op of ops)
          if (!Object.hasOwn(all, op))
            fail('CONFIG', `bench: there is no op ${op}${didYouMean(op, Object.keys(all))}; densecl bench --help lists them`)
        const before = flags.compare === undefined ? undefined : readResult(flags.compare)
        const result = await run(ops, flags, flags.json !== true, before)
        if (flags.json === true) console.log(JSON.stringify(result, undefined, 2))
        if (flags.save !== undefined) writeResult(flags.save, result)
        done(0)
      }),
    )
}

async function benchLoading(flags: Flags): Promise<Record<string, unknown>> {
  const device = await useDevice(namedDevice(flags.device))
  const options = {
    data: flags.data,
    device,
    decode: decodePlace({ decode: flags.decode, channels: 3 }, device),
    imageSize: numberFlag('image-size', flags.imageSize, { least: 32, whole: true }),
    batch: flags.batch === undefined ? 64 : numberFlag('batch', flags.batch, { least: 1, whole: true }),
    workers: flags.workers.split(',').map((text) => numberFlag('workers', text, { least: 0, whole: true })),
    seconds: numberFlag('seconds', flags.seconds, { least: 0.1 }),
  }
  const rows = await benchData(options, (row) => flags.json !== true && console.log(dataLine(row)))
  return { ...environmentRow(), bench: 'loading', ...options, rows }
}

interface Flags {
  architecture: string
  kernels: string
  keyPrecision?: string
  widest?: boolean
  step: string
  model?: string
  most?: string
  data: string
  decode: 'cpu' | 'gpu'
  imageSize: string
  workers: string
  seconds: string
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
  const batch = flags.batch === undefined ? (usual === 'bf16' ? 256 : 8) : numberFlag('batch', flags.batch, { least: 1, whole: true })
  const what = { device: `${device}, ${native.describeDevice(device)}`, dtype, batch }
  if (before !== undefined) checkComparable(flags.compare!, before, what)
  const ceilings = ceilingsOf(device, dtype)
  const how = flags.peer === true ? 'eager' : flags.peer
  if (how !== undefined && how !== false && how !== 'eager' && how !== 'compile')
    fail('CONFIG', `--peer is ${how}: expected eager or compile`)
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
    for (const [op, cases] of Object.entries(all)) {
      if (typeof cases === 'string' || (ops.length > 0 && !ops.includes(op))) continue
      for (const benchCase of cases) {
        if (flags.layer !== undefined && !benchCase.name.includes(flags.layer)) continue
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
  if (rows.length === 0) fail('CONFIG', `bench: no case has ${flags.layer ?? ops.join(', ')} in its name`)
  return result
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
