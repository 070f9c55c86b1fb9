/**
 * `npm run bench [words...]`: the comparisons with PyTorch on this machine, both sides in turn, and writes bench/results/.
 *   steps  one DenseCL step: ResNet-18 at 64 px and ResNet-50 at 224 px
 *   data   decoding a 500x375 JPEG and rendering its two views
 */
import { spawnSync } from 'node:child_process'
import { join } from 'node:path'

import sharp from 'sharp'

import { mocoV2Augmentation, pixelTensor, randomView, renderView } from '../src/data/augment.js'
import { decode } from '../src/data/decode.js'
import { Random } from '../src/nn/random.js'
import { native, packageRoot } from '../src/tensor/native.js'
import { scope, Tensor } from '../src/tensor/tensor.js'
import { environmentRow, median, writeResult } from './result.js'

interface StepRow {
  seconds: number
  host_seconds?: number
  peak_bytes: number
  torch?: string
}

/** DENSECL_RESULTS: another folder than the repository's. */
const results = (name: string): string => join(process.env.DENSECL_RESULTS ?? join(packageRoot, 'bench', 'results'), `${gpu === undefined ? 'cpu' : 'gpu'}-${name}.json`)

interface StepCase {
  name: string
  batch: number
  flags: string[]
}

const gpu = native.deviceNames().find((name) => name.startsWith('cuda:'))
const gpuCases: StepCase[] = [256, 32].map((batch) => ({
  name: `resnet50-224px-batch${batch}-queue65536-bf16`,
  batch,
  flags: ['--depth', '50', '--image', '224', '--batch', String(batch), '--queue', '65536', '--hidden', '2048', '--steps', '20'],
}))
const cpuCases: StepCase[] = [
  { name: 'resnet18-64px-batch32-queue4096', batch: 32, flags: ['--depth', '18', '--image', '64', '--batch', '32', '--queue', '4096', '--hidden', '512', '--steps', '10'] },
  { name: 'resnet50-224px-batch8-queue4096', batch: 8, flags: ['--depth', '50', '--image', '224', '--batch', '8', '--queue', '4096', '--hidden', '2048', '--steps', '4'] },
]

function runStep(program: string, args: string[]): StepRow {
  const { status, stdout, stderr } = spawnSync(program, args, { encoding: 'utf8' })
  if (status !== 0) throw new Error(stderr)
  return JSON.parse(stdout) as StepRow
}

/** Each side runs `rounds` times in a process of its own, in turn; medians and spread over the rounds. */
function steps(rounds = 3): void {
  const python = process.env.DENSECL_PYTHON ?? '/usr/bin/python3'
  const stepCases = gpu === undefined ? cpuCases : gpuCases
  const ours = join(packageRoot, 'dist', 'bench', 'steps', 'densecl.js')
  const peer = join(packageRoot, 'bench', 'peers', 'densecl.py')
  const hasPeer = spawnSync(python, ['-c', 'import torch, torchvision']).status === 0
  if (!hasPeer) console.log(`PyTorch is not installed for ${python}: only our side is measured`)
  const onGpu = ['--channels-last', '--device', 'cuda', '--amp']
  const peerSides: [string, string[]][] =
    gpu === undefined
      ? [
          ['pytorch nchw', []],
          ['pytorch channels_last', ['--channels-last']],
        ]
      : [
          ['pytorch eager', onGpu],
          ['pytorch compile', [...onGpu, '--compile']],
          ['pytorch compile, reduce-overhead', [...onGpu, '--compile', '--mode', 'reduce-overhead']],
        ]
  const cases = stepCases.map(({ name, batch, flags }) => {
    const sides: Record<string, StepRow[]> = { densecl: [] }
    for (let round = 0; round < rounds; ++round) {
      sides.densecl!.push(runStep(process.execPath, [ours, ...flags, ...(gpu === undefined ? [] : ['--device', gpu])]))
      if (!hasPeer) continue
      for (const [side, more] of peerSides) (sides[side] ??= []).push(runStep(python, [peer, 'step', ...flags, ...more]))
    }
    const rows = Object.entries(sides).map(([side, runs]) => {
      const rates = runs.map((run) => batch / run.seconds)
      const row = { side, pairsPerSecond: median(rates), spread: [Math.min(...rates), Math.max(...rates)], peakMegabytes: Math.round(median(runs.map((run) => run.peak_bytes)) / 2 ** 20), hostMilliseconds: runs[0]!.host_seconds === undefined ? undefined : 1000 * median(runs.map((run) => run.host_seconds!)), torch: runs[0]!.torch }
      console.log(`${name}  ${side.padEnd(22)} ${row.pairsPerSecond.toFixed(2).padStart(7)} pairs/s (${row.spread.map((rate) => rate.toFixed(2)).join(' to ')}), peak ${row.peakMegabytes} MiB`)
      return row
    })
    return { name, rows }
  })
  writeResult(results('steps'), { ...environmentRow(), bench: 'steps', ...(gpu === undefined ? { threads: 2 } : { device: `${gpu}, ${native.describeDevice(gpu)}` }), rounds, cases })
}

/** On one core, as in a data worker. */
async function data(): Promise<void> {
  native.setThreads(1)
  const [width, height] = [500, 375]
  const random = new Random(1)
  // A photograph's spectrum: noise at several scales.
  const noise = await Promise.all(
    [4, 16, 64, 250].map((cells) =>
      sharp(Buffer.from(Uint8Array.from({ length: cells * cells * 3 }, () => random.below(256))), { raw: { width: cells, height: cells, channels: 3 } }).resize(width, height, { kernel: 'cubic' }).raw().toBuffer(),
    ),
  )
  const mixed = Buffer.from(noise[0]!.map((value, i) => 0.45 * value + 0.3 * noise[1]![i]! + 0.17 * noise[2]![i]! + 0.08 * noise[3]![i]!))
  const jpeg = await sharp(mixed, { raw: { width, height, channels: 3 } }).jpeg({ quality: 92 }).toBuffer()
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
  console.log(`500x375 JPEG of ${jpeg.length} bytes: decode ${decodeMs.toFixed(2)} ms, two 224 px views ${viewsMs.toFixed(2)} ms, together ${(1000 / both).toFixed(0)} images/s and core`)
  writeResult(results('data'), { ...environmentRow(), bench: 'data', jpegBytes: jpeg.length, decodeMs, twoViewsMs: viewsMs, imagesPerSecondAndCore: 1000 / both })
}

const words = process.argv.slice(2)
const wanted = (name: string): boolean => words.length === 0 || words.includes(name)
if (wanted('data')) await data()
if (wanted('steps')) steps()
