/**
 * `npm run bench [words...]`: the comparisons with PyTorch on this machine, both sides in turn, and writes bench/results/.
 *   steps  one DenseCL step: ResNet-50 at 224 px, on the CPU ResNet-18 at 64 px too; on a GPU ours times its kernels first; --device,
 *          --sides densecl,eager,compile,reduce-overhead (on the CPU densecl,densecl-bf16,nchw,channels_last,channels_last-bf16),
 *          --rounds, --rows FILE (a JSON line as each comes), --seconds a process; DENSECL_PYTHON names the Python of the peer
 *   detection  one training step of a detector (Faster R-CNN, C4), with the flags of steps
 *   segmentation  one training step of a segmenting network (FCN, stride 8), with the flags of steps
 *   inference  features of a ResNet-50 at 224 px, also beside onnxruntime on the CPU, with the flags of steps
 *   data   decoding a 500x375 JPEG and rendering its two views
 */
import { spawn, spawnSync } from 'node:child_process'
import { rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { parseArgs } from 'node:util'

import sharp from 'sharp'

import { mocoV2Augmentation, pixelTensor, randomView, renderView } from '../src/data/augment.js'
import { decode } from '../src/data/decode.js'
import { Random } from '../src/tensor/random.js'
import { packageRoot } from '../src/tensor/addon.js'
import { native, resolveDevice } from '../src/tensor/native.js'
import { scope, Tensor } from '../src/tensor/tensor.js'
import { type DeviceKind, deviceTraits } from '../src/tensor/traits.js'
import { appendRow, environmentRow, median, writeResult } from '../src/bench/result.js'

const usage =
  'bench [steps] [detection] [segmentation] [inference] [data] [--device NAME] [--sides LIST] [--rounds N] [--rows FILE] [--seconds N]'
function refuse(problem: string): never {
  console.error(`densecl: ${problem}\n  usage: ${usage}`)
  process.exit(2)
}

function parsed() {
  try {
    const options = {
      device: { type: 'string' },
      sides: { type: 'string' },
      rounds: { type: 'string', default: '3' },
      rows: { type: 'string' },
      seconds: { type: 'string', default: '600' },
    } as const
    return parseArgs({ options, allowPositionals: true })
  } catch (error) {
    return refuse(error instanceof Error ? error.message : String(error))
  }
}
const { values: flags, positionals: words } = parsed()
const whole = (name: 'rounds' | 'seconds'): number =>
  /^[1-9]\d*$/.test(flags[name]) ? Number(flags[name]) : refuse(`--${name} is ${flags[name]}: expected a whole number of at least 1`)

const names = native.deviceNames()
/** Of the steps: a GPU where there is one. A device that was asked for and is not there is an error: no other one speaks for it. */
const device = flags.device ?? resolveDevice('auto')
if (!names.includes(device)) refuse(`--device is ${device}: expected one of ${names.join(', ')}`)
const traits = deviceTraits(device)
const { kind } = traits

/** DENSECL_RESULTS: another folder than the repository's. */
const results = (name: string): string => join(process.env.DENSECL_RESULTS ?? join(packageRoot, 'bench', 'results'), `${name}.json`)

/** Sizes of one model; those of `batches` run one after the other in one process. */
interface StepCase {
  name: (batch: number) => string
  batches: number[]
  flags: string[]
}
const stepCases: Record<DeviceKind, StepCase[]> = {
  cuda: [
    {
      name: (batch) => `resnet50-224px-batch${batch}-queue65536-bf16`,
      batches: [256, 32],
      flags: '--depth 50 --image 224 --queue 65536 --hidden 2048 --steps 20'.split(' '),
    },
  ],
  cpu: [
    {
      name: (batch) => `resnet18-64px-batch${batch}-queue4096`,
      batches: [32],
      flags: '--depth 18 --image 64 --queue 4096 --hidden 512 --steps 10'.split(' '),
    },
    {
      name: (batch) => `resnet50-224px-batch${batch}-queue4096`,
      batches: [8],
      flags: '--depth 50 --image 224 --queue 4096 --hidden 2048 --steps 4'.split(' '),
    },
  ],
  // To rehearse: its times say nothing.
  simt: [
    {
      name: (batch) => `resnet18-32px-batch${batch}-queue64`,
      batches: [4, 2],
      flags: '--depth 18 --base 8 --image 32 --queue 64 --hidden 32 --steps 1'.split(' '),
    },
  ],
}

const detectionCases: Record<DeviceKind, StepCase[]> = {
  cuda: [
    {
      name: (batch) => `resnet50-800x1333-batch${batch}`,
      batches: [16],
      flags: '--depth 50 --height 800 --width 1333 --steps 10'.split(' '),
    },
  ],
  cpu: [
    {
      name: (batch) => `resnet18-224x288-batch${batch}-64regions`,
      batches: [4],
      flags: '--depth 18 --height 224 --width 288 --regions 64 --steps 4'.split(' '),
    },
    {
      name: (batch) => `resnet50-800x1333-batch${batch}`,
      batches: [2],
      flags: '--depth 50 --height 800 --width 1333 --steps 1'.split(' '),
    },
  ],
  simt: [
    {
      name: (batch) => `resnet18-64x96-batch${batch}-8regions`,
      batches: [2],
      flags: '--depth 18 --height 64 --width 96 --regions 8 --steps 1'.split(' '),
    },
  ],
}

const segmentationCases: Record<DeviceKind, StepCase[]> = {
  cuda: [{ name: (batch) => `resnet50-512px-batch${batch}`, batches: [16], flags: '--depth 50 --image 512 --steps 10'.split(' ') }],
  cpu: [
    { name: (batch) => `resnet18-160px-batch${batch}`, batches: [8], flags: '--depth 18 --image 160 --steps 4'.split(' ') },
    { name: (batch) => `resnet50-512px-batch${batch}`, batches: [2], flags: '--depth 50 --image 512 --steps 1'.split(' ') },
  ],
  simt: [{ name: (batch) => `resnet18-32px-batch${batch}`, batches: [2], flags: '--depth 18 --image 32 --steps 1'.split(' ') }],
}

const inferenceCases: Record<DeviceKind, StepCase[]> = {
  cuda: [{ name: (batch) => `resnet50-224px-batch${batch}`, batches: [1, 32, 256], flags: '--depth 50 --image 224 --steps 50'.split(' ') }],
  cpu: [{ name: (batch) => `resnet50-224px-batch${batch}`, batches: [1, 32], flags: '--depth 50 --image 224 --steps 10'.split(' ') }],
  simt: [{ name: (batch) => `resnet18-32px-batch${batch}`, batches: [1, 2], flags: '--depth 18 --image 32 --steps 1'.split(' ') }],
}

/** What is compared: whose program prints rows, how its sizes are counted, and of which sizes. */
interface StepBench {
  program: string
  /** Whether our side can time its kernels first, as a run on a GPU does. */
  tunes: boolean
  peer: [script: string, ...command: string[]]
  unit: 'pairs' | 'images'
  /** Whether the peer has a compiled form: a detector's step falls apart into many graphs. */
  compiled: boolean
  cases: Record<DeviceKind, StepCase[]>
  /** Sides beside the usual ones. */
  more?: Partial<Record<DeviceKind, Record<string, string[]>>>
}
/** Where the network is that onnxruntime reads. */
const onnxModel = join(tmpdir(), `densecl-${process.pid}.onnx`)

const stepBenches = {
  steps: { program: 'densecl.js', tunes: true, peer: ['densecl.py', 'step'], unit: 'pairs', compiled: true, cases: stepCases },
  detection: { program: 'detection.js', tunes: false, peer: ['detection.py'], unit: 'images', compiled: false, cases: detectionCases },
  segmentation: {
    program: 'segmentation.js',
    tunes: false,
    peer: ['segmentation.py'],
    unit: 'images',
    compiled: true,
    cases: segmentationCases,
  },
  inference: {
    program: 'inference.js',
    tunes: false,
    peer: ['inference.py'],
    unit: 'images',
    compiled: true,
    cases: inferenceCases,
    more: {
      cpu: {
        compile: ['--channels-last', '--compile'],
        'compile-bf16': ['--channels-last', '--compile', '--amp'],
        onnxruntime: ['--onnx', onnxModel],
      },
    },
  },
} as const satisfies Record<string, StepBench>

/** What PyTorch runs beside ours, by the word of --sides: in the precision and on the device of ours, on the CPU beside `simt`. */
const onGpu = ['--channels-last', '--device', 'cuda', '--amp']
const peerFlags: Record<DeviceKind, Record<string, string[]>> = {
  cuda: { eager: onGpu, compile: [...onGpu, '--compile'], 'reduce-overhead': [...onGpu, '--compile', '--mode', 'reduce-overhead'] },
  cpu: { nchw: [], channels_last: ['--channels-last'], 'channels_last-bf16': ['--channels-last', '--amp'] },
  simt: { eager: ['--channels-last', '--amp'], compile: ['--channels-last', '--amp', '--compile', '--backend', 'aot_eager'] },
}

const ourFlags: Record<DeviceKind, Record<string, string[]>> = {
  cuda: { densecl: [] },
  cpu: { densecl: [], 'densecl-bf16': ['--precision', 'bf16'] },
  simt: { densecl: [] },
}

interface StepRow {
  case: string
  side: string
  round: number
  batch?: number
  seconds?: number
  run_seconds?: number
  fastest?: number
  host_seconds?: number
  peak_bytes?: number
  torch?: string
  /** Why there are no numbers, or none further. */
  error?: string
}

/** Runs one side, gives each line that it prints as it comes, and at the end why it stopped early. */
async function runSide(program: string, args: string[], onLine: (line: string) => void): Promise<{ error?: string; notes: string[] }> {
  const child = spawn(program, args, { stdio: ['ignore', 'pipe', 'pipe'] })
  const limit = whole('seconds')
  let [complaints, late] = ['', false]
  const timer = setTimeout(() => {
    late = true
    child.kill('SIGKILL') // a kernel that never ends leaves no time for anything gentler
  }, 1000 * limit)
  child.stderr.on('data', (data: Buffer) => (complaints += data.toString()))
  const lines = createInterface({ input: child.stdout })
  lines.on('line', onLine)
  const failed = await new Promise<string | undefined>((resolve) => {
    child.on('error', (error) => resolve(error.message))
    child.on('close', (code, signal) =>
      resolve(late ? `killed after ${limit} s` : code === 0 ? undefined : `${signal ?? `exit code ${code}`}: ${lastLines(complaints)}`),
    )
  })
  clearTimeout(timer)
  return {
    ...(failed === undefined ? {} : { error: failed }),
    notes: complaints.split('\n').filter((line) => /skipping cudagraphs|graph break/i.test(line)),
  }
}
/** What a program said of its failure: the error's own line where a stack follows it. */
function lastLines(text: string): string {
  const lines = text
    .trim()
    .split('\n')
    .filter((line) => !/^\s+at |^Node\.js|^\s*$/.test(line))
  return (lines.findLast((line) => /Error|densecl/.test(line)) ?? lines.at(-1) ?? 'no message').slice(0, 300)
}

/** Each side runs in a process of its own, in turn, round after round; a row is kept as it comes, and a side that fails is one too. */
async function steps(bench: keyof typeof stepBenches): Promise<void> {
  const { program, tunes, peer: peerProgram, unit, compiled, cases, more = {} }: StepBench = stepBenches[bench]
  const tuned = tunes && traits.asynchronous
  const python = process.env.DENSECL_PYTHON ?? '/usr/bin/python3'
  const has = ([, own]: [string, string[]]): boolean => compiled || !own.includes('--compile')
  const [ours, usual] = [ourFlags, peerFlags].map((all) => Object.fromEntries(Object.entries(all[kind]).filter(has))) as [
    Record<string, string[]>,
    Record<string, string[]>,
  ]
  const peers = { ...usual, ...more[kind] }
  const possible = [...Object.keys(ours), ...Object.keys(peers)]
  const hasPeer = spawnSync(python, ['-c', 'import torch, torchvision']).status === 0
  if (!hasPeer && flags.sides === undefined) console.log(`PyTorch is not installed for ${python}: only our side is measured`)
  const sides = flags.sides?.split(',') ?? (hasPeer ? possible : Object.keys(ours))
  for (const side of sides) if (!possible.includes(side)) refuse(`--sides has ${side}: expected some of ${possible.join(', ')}`)
  const rounds = whole('rounds')
  if (sides.includes('onnxruntime'))
    spawnSync(process.execPath, [join(packageRoot, 'dist', 'bench', 'steps', program), '--onnx', onnxModel], { stdio: 'inherit' })
  const own = [join(packageRoot, 'dist', 'bench', 'steps', program), '--device', device, ...(tuned ? ['--tune', 'true'] : [])]
  const [script, ...command] = peerProgram
  const peer = [join(packageRoot, 'bench', 'peers', script), ...command]
  console.log(`${device}, ${native.describeDevice(device)}: ${sides.join(', ')}, ${rounds} rounds`)
  const rows: StepRow[] = []
  const keep = (row: StepRow): void => {
    rows.push(row)
    if (flags.rows !== undefined) appendRow(flags.rows, { ...row })
    const { seconds, run_seconds: run, batch } = row
    const measured = (): string =>
      `${(1000 * seconds!).toFixed(2)} ms a step, ${(1000 * run!).toFixed(2)} without waiting, ` +
      `${(batch! / seconds!).toFixed(2)} ${unit}/s, peak ${(row.peak_bytes! / 2 ** 20).toFixed(0)} MiB`
    console.log(`${row.case}  ${row.side.padEnd(16)} ${row.error ?? measured()}`)
  }
  for (let round = 1; round <= rounds; ++round) {
    for (const side of sides) {
      for (const { name, batches, flags: sizes } of cases[kind]) {
        const pending = [...batches]
        const args = side in ours ? [...own, ...ours[side]!] : [...peer, ...peers[side]!]
        const { error, notes } = await runSide(
          side in ours ? process.execPath : python,
          [...args, ...sizes, '--batch', batches.join(',')],
          (line) => {
            const row = JSON.parse(line) as Omit<StepRow, 'case' | 'side' | 'round'> & { batch: number }
            pending.splice(pending.indexOf(row.batch), 1)
            keep({ case: name(row.batch), side, round, ...row })
          },
        )
        if (error !== undefined || pending.length > 0)
          keep({ case: pending.map(name).join(' '), side, round, error: error ?? 'ended without a row' })
        for (const note of new Set(notes)) console.log(`    ${note}`)
      }
      writeResult(
        results(`${kind}-${bench}`),
        {
          ...environmentRow(),
          bench,
          ...(traits.hostMemory ? { threads: 2 } : { device: `${device}, ${native.describeDevice(device)}` }),
          rounds: round,
          cases: summary(rows, unit),
        },
        true,
      )
    }
  }
  rmSync(onnxModel, { force: true })
  console.log(`written: ${results(`${kind}-${bench}`)}`)
  if (rows.some(({ error }) => error !== undefined)) process.exitCode = 1
}

/** Medians and spread over the rounds, a case at a time. */
function summary(rows: readonly StepRow[], unit: StepBench['unit']): Record<string, unknown>[] {
  const cases = [...new Set(rows.map((row) => row.case))]
  return cases.map((name) => {
    const here = rows.filter((row) => row.case === name)
    const sides = [...new Set(here.map(({ side }) => side))]
    return {
      name,
      rows: sides.map((side) => {
        const errors = here.filter((row) => row.side === side && row.error !== undefined).map(({ error }) => error)
        const runs = here.filter((row) => row.side === side && row.error === undefined)
        if (runs.length === 0) return { side, errors }
        const rates = runs.map((run) => run.batch! / run.seconds!)
        return {
          side,
          [`${unit}PerSecond`]: median(rates),
          spread: [Math.min(...rates), Math.max(...rates)],
          [`${unit}PerSecondFastest`]: Math.max(...runs.map((run) => run.batch! / run.fastest!)),
          [`${unit}PerSecondWithoutWaiting`]: median(runs.map((run) => run.batch! / run.run_seconds!)),
          peakMegabytes: Math.round(median(runs.map((run) => run.peak_bytes!)) / 2 ** 20),
          hostMilliseconds: 1000 * median(runs.map((run) => run.host_seconds!)),
          torch: runs[0]!.torch,
          ...(errors.length === 0 ? {} : { errors }),
        }
      }),
    }
  })
}

/** On one core, as in a data worker. */
async function data(): Promise<void> {
  native.setThreads(1)
  const [width, height] = [500, 375]
  const random = new Random(1)
  // A photograph's spectrum: noise at several scales.
  const noise = await Promise.all(
    [4, 16, 64, 250].map((cells) =>
      sharp(Buffer.from(Uint8Array.from({ length: cells * cells * 3 }, () => random.below(256))), {
        raw: { width: cells, height: cells, channels: 3 },
      })
        .resize(width, height, { kernel: 'cubic' })
        .raw()
        .toBuffer(),
    ),
  )
  const mixed = Buffer.from(noise[0]!.map((value, i) => 0.45 * value + 0.3 * noise[1]![i]! + 0.17 * noise[2]![i]! + 0.08 * noise[3]![i]!))
  const jpeg = await sharp(mixed, { raw: { width, height, channels: 3 } })
    .jpeg({ quality: 92 })
    .toBuffer()
  const time = async (body: () => unknown): Promise<number> => {
    const times: number[] = []
    for (let i = 0; i < 120; ++i) {
      const start = performance.now()
      await body()
      times.push(performance.now() - start)
    }
    return median(times.slice(20))
  }
  const pixels = await decode(jpeg, 'bench')
  const views = (): void =>
    scope(() => {
      const source = pixelTensor(pixels)
      const out = Tensor.empty([2, 224, 224, 3])
      for (const view of [0, 1]) renderView(out, view, source, randomView(random, width, height, mocoV2Augmentation))
    })
  const decodeMs = await time(() => decode(jpeg, 'bench'))
  const viewsMs = await time(views)
  const both = await time(async () => {
    await decode(jpeg, 'bench')
    views()
  })
  console.log(
    `500x375 JPEG of ${jpeg.length} bytes: decode ${decodeMs.toFixed(2)} ms, two 224 px views ${viewsMs.toFixed(2)} ms, ` +
      `together ${(1000 / both).toFixed(0)} images/s and core`,
  )
  writeResult(results('cpu-data'), {
    ...environmentRow(),
    bench: 'data',
    jpegBytes: jpeg.length,
    decodeMs,
    twoViewsMs: viewsMs,
    imagesPerSecondAndCore: 1000 / both,
  })
}

const benches: Record<string, () => Promise<void>> = {
  data,
  steps: () => steps('steps'),
  detection: () => steps('detection'),
  segmentation: () => steps('segmentation'),
  inference: () => steps('inference'),
}
for (const word of words)
  if (benches[word] === undefined) refuse(`there is no bench ${word}: expected some of ${Object.keys(benches).join(', ')}`)
for (const [word, bench] of Object.entries(benches)) if (words.length === 0 || words.includes(word)) await bench()
