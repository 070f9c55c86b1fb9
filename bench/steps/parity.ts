/**
 * Trains the same run twice - here and in PyTorch, from the same weights on the same views in the same order - and compares
 * the mean losses of each epoch and kNN at the end. Usage: parity.js RESULT.json key=value... (as densecl pretrain takes them)
 */
import { spawn } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

import { openSource } from '../../src/data/sources.js'
import { stepsPerEpoch } from '../../src/data/sampler.js'
import { knnAccuracy } from '../../src/eval/knn.js'
import { packageRoot } from '../../src/tensor/addon.js'
import { densecl } from '../../src/methods/densecl/method.js'
import { optionsOf, resolveConfig } from '../../src/methods/index.js'
import { keyValue } from '../../src/run/options.js'
import { pretrain } from '../../src/train/pretrain.js'
import { readMetrics } from '../../src/run/runLog.js'
import { importBackbone } from '../../src/weights/import.js'
import { environmentRow, writeResult } from '../../src/bench/result.js'

const [resultPath, ...settings] = process.argv.slice(2)
if (resultPath === undefined) throw new Error('usage: parity.js RESULT.json key=value...')
const config = resolveConfig(settings.map((text) => keyValue(optionsOf(densecl), text)))
const folder = mkdtempSync(join(tmpdir(), 'densecl-parity-'))
try {
  const out = join(folder, 'run')
  const every = { ...config, logEvery: 1, checkpointEvery: config.epochs }
  await pretrain({ config: every, out, quiet: true, interrupted: () => true }) // leaves the checkpoint of step 0
  const theirs = await peer(join(out, 'checkpoints', 'last.safetensors'))
  const started = performance.now()
  const { knnBefore, knnAfter } = await pretrain({ config: every, out, quiet: true, resume: true })
  const seconds = (performance.now() - started) / 1000
  const { items } = await openSource(config.data)
  const steps = stepsPerEpoch(items.length, config.batchSize)
  const rows = readMetrics(join(out, 'metrics.jsonl')).filter((row) => row.loss !== undefined)
  const mean = (epoch: number, key: string): number =>
    rows.slice((epoch - 1) * steps, epoch * steps).reduce((sum, row) => sum + row[key]! / steps, 0)
  const epochs = theirs.epochs.map((row) => {
    const ours = { lossGlobal: mean(row.epoch, 'lossGlobal'), lossDense: mean(row.epoch, 'lossDense') }
    const difference = Math.abs(ours.lossGlobal + ours.lossDense - row.lossGlobal - row.lossDense) / (row.lossGlobal + row.lossDense)
    console.log(
      `epoch ${row.epoch}  ours ${ours.lossGlobal.toFixed(4)} + ${ours.lossDense.toFixed(4)}  ` +
        `PyTorch ${row.lossGlobal.toFixed(4)} + ${row.lossDense.toFixed(4)}  sum differs by ${(100 * difference).toFixed(2)} %`,
    )
    return { epoch: row.epoch, ours, pytorch: { lossGlobal: row.lossGlobal, lossDense: row.lossDense }, difference }
  })
  console.log(
    `kNN before ${percent(knnBefore)}, ours ${percent(knnAfter)}, PyTorch ${percent(theirs.knn)}; ${seconds.toFixed(0)} s ` +
      `against ${theirs.seconds.toFixed(0)} s`,
  )
  writeResult(resultPath, {
    ...environmentRow(),
    bench: 'parity',
    config,
    epochs,
    knn: { before: knnBefore, ours: knnAfter, pytorch: theirs.knn },
    seconds: { ours: seconds, pytorch: theirs.seconds },
  })
} finally {
  rmSync(folder, { recursive: true, force: true })
}

function percent(share: number | undefined): string {
  return share === undefined ? '-' : `${(100 * share).toFixed(1)} %`
}

interface PeerEpoch {
  epoch: number
  lossGlobal: number
  lossDense: number
  seconds: number
}

/** PyTorch on the piped views; its backbone is evaluated by our kNN. */
async function peer(checkpoint: string): Promise<{ epochs: PeerEpoch[]; seconds: number; knn: number | undefined }> {
  const source = await openSource(config.data)
  const backbonePath = join(folder, 'pytorch.safetensors')
  const views = spawn(process.execPath, [join(packageRoot, 'dist', 'bench', 'steps', 'views.js'), ...settings], {
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  const python = spawn(
    '/usr/bin/python3',
    [join(packageRoot, 'bench', 'peers', 'densecl.py'), 'train', checkpoint, backbonePath, '--images', String(source.items.length)],
    { stdio: ['pipe', 'pipe', 'inherit'] },
  )
  views.stdout.pipe(python.stdin)
  let output = ''
  python.stdout.on('data', (data: Buffer) => (output += data.toString()))
  const code = await new Promise((resolve) => python.on('close', resolve))
  if (code !== 0) throw new Error(`the peer failed with code ${String(code)}`)
  const epochs = output
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as PeerEpoch)
  const { backbone } = importBackbone(backbonePath)
  const held = config.knnData === null ? undefined : await openSource(config.knnData, { split: 'val' })
  const knn =
    held === undefined ? undefined : await knnAccuracy(backbone, source.items, held.items, { imageSize: config.imageSize, k: config.knnK })
  return { epochs, seconds: epochs.at(-1)!.seconds, knn }
}
