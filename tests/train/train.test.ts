import { spawn, spawnSync } from 'node:child_process'
import { copyFileSync, existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

import sharp from 'sharp'
import * as assert from 'uvu/assert'
import { parse } from 'yaml'

import { learningRate } from '../../src/optim/schedule.js'
import type { DenseCLConfig } from '../../src/methods/densecl/options.js'
import { resolveConfig } from '../../src/methods/index.js'
import { crc32c } from '../../src/run/events.js'
import { pretrain, type PretrainOptions } from '../../src/train/pretrain.js'
import { readMetrics } from '../../src/run/runLog.js'
import { encodeSafetensors, readSafetensors, type StoredTensor, storedValues } from '../../src/weights/safetensors.js'
import { canMount } from '../support/mount.js'
import { cli, hasSignals, noSignals, rejectsError, runCli, suite, testWhere, withFolder } from '../support/suite.js'

const test = suite('train')

const tiny = {
  data: 'scenes:40',
  knnData: 'scenes:20',
  imageSize: 32,
  batchSize: 8,
  epochs: 2,
  depth: 18,
  baseChannels: 4,
  featDim: 8,
  queueLength: 20,
  normGroups: 2,
  lr: 0.05,
  logEvery: 1,
  workers: 1,
  checkpointEvery: 1,
}
const configure = (more: Partial<DenseCLConfig> = {}): DenseCLConfig =>
  resolveConfig(Object.entries({ ...tiny, ...more }).map(([key, value]) => ({ key, value, from: 'test' })))
const run = (out: string, more: Partial<PretrainOptions> & { set?: Partial<DenseCLConfig> } = {}) => {
  const { set, ...options } = more
  return pretrain({ config: configure(set), out, quiet: true, pictures: false, ...options })
}
const position = (out: string): { epoch: number; step: number; globalStep: number } =>
  (
    JSON.parse(readSafetensors(join(out, 'checkpoints', 'last.safetensors')).metadata.densecl!) as {
      position: { epoch: number; step: number; globalStep: number }
    }
  ).position
const last = (out: string): Map<string, StoredTensor> => readSafetensors(join(out, 'checkpoints', 'last.safetensors')).tensors

/** How many records the TensorBoard events of a run have; each is framed by its length and the masked CRCs. */
function eventRecords(out: string): number {
  const name = readdirSync(out).find((file) => file.startsWith('events.out.tfevents.'))!
  const events = readFileSync(join(out, name))
  const mask = (bytes: Uint8Array): number => ((((crc32c(bytes) >>> 15) | (crc32c(bytes) << 17)) >>> 0) + 0xa282ead8) >>> 0
  let records = 0
  for (let at = 0; at < events.length; records += 1) {
    const length = Number(events.readBigUInt64LE(at))
    assert.is(events.readUInt32LE(at + 8), mask(events.subarray(at, at + 8)))
    assert.is(events.readUInt32LE(at + 12 + length), mask(events.subarray(at + 12, at + 12 + length)))
    at += 16 + length
  }
  return records
}

test('groups of batch norms that are left open are a number in what a run writes, and when it goes on', async () => {
  await withFolder(async (folder) => {
    const out = join(folder, 'run')
    const part = (epochs: number, normGroups: number | null, resume: boolean) => run(out, { resume, set: { epochs, normGroups } })
    await part(1, null, false)
    assert.is((parse(readFileSync(join(out, 'config.yaml'), 'utf8')) as DenseCLConfig).normGroups, 1)
    await rejectsError(() => part(2, 2, true), 'CONFIG', /normGroups was 1 and is now 2/)
    assert.is((await part(2, null, true)).globalStep, 10)
  })
})

test('a run leaves configuration, environment, metrics, events, checkpoints, backbone and pictures, whole', async () => {
  await withFolder(async (folder) => {
    const out = join(folder, 'run')
    const result = await run(out, { pictures: true })
    assert.is(result.globalStep, 10)
    assert.ok(result.knnBefore! >= 0 && result.knnAfter! <= 1)
    const names = readdirSync(out)
    for (const name of [
      'config.yaml',
      'environment.json',
      'metrics.jsonl',
      'report.json',
      'backbone.safetensors',
      'losses.svg',
      'losses.png',
      'matches.png',
    ])
      assert.ok(names.includes(name), name)
    assert.not.ok(
      readdirSync(out, { recursive: true }).some((name) => String(name).includes('.tmp-')),
      'nothing is left half made',
    )
    // The matches of the run are those after its last epoch.
    const matches = (name: string): string => readFileSync(join(out, `${name}.svg`), 'utf8')
    assert.is(matches('matches'), matches('pictures/epoch_00002-matches'))
    assert.not.equal(matches('matches'), matches('pictures/epoch_00000-matches'))
    assert.equal(readdirSync(join(out, 'checkpoints')).sort(), ['epoch_00001.safetensors', 'epoch_00002.safetensors', 'last.safetensors'])
    assert.is((parse(readFileSync(join(out, 'config.yaml'), 'utf8')) as DenseCLConfig).lr, 0.05)
    const rows = readMetrics(join(out, 'metrics.jsonl')).filter((row) => row.loss !== undefined)
    assert.is(rows.length, 10)
    rows.forEach((row, i) => {
      assert.is(row.globalStep, i + 1)
      assert.ok(Math.abs(row.loss! - row.lossGlobal! - row.lossDense!) < 1e-5)
      assert.is(row.queueFill, Math.min(1, (8 * (i + 1)) / 20))
    })
    assert.is(eventRecords(out), 1 + 10 + 2)
    await rejectsError(() => run(out), 'RUN', /holds a run already/, /--resume/, /--overwrite/)
    await rejectsError(() => run(out, { overwrite: true, set: { batchSize: 64 } }), 'CONFIG', /batchSize/)
    assert.ok(existsSync(join(out, 'checkpoints', 'last.safetensors')), 'a mistake does not cost the run that was to be replaced')
    await run(out, { overwrite: true, set: { epochs: 1 } })
    assert.is(readMetrics(join(out, 'metrics.jsonl')).at(-1)!.globalStep, 5)
  })
})

test('a run that was killed before its first checkpoint is begun by the same command, and by no other', async () => {
  await withFolder(async (folder) => {
    const [whole, out] = [join(folder, 'whole'), join(folder, 'run')]
    await run(whole, { set: { epochs: 1 } })
    assert.not.ok(existsSync(join(whole, 'matches.png')), 'a run without pictures')
    // Its configuration is the first of what a run writes.
    mkdirSync(out)
    copyFileSync(join(whole, 'config.yaml'), join(out, 'config.yaml'))
    await rejectsError(() => run(out), 'RUN', /holds a run already/)
    await run(out, { set: { epochs: 1 } })
    assert.equal(last(out), last(whole))
    await rejectsError(() => run(out, { set: { epochs: 1 } }), 'RUN', /holds a run already/)
  })
})

test('CRC-32C of the standard check string', () => assert.is(crc32c(Buffer.from('123456789')), 0xe3069283))

/** Runs the command and kills it with `signal` when it has printed `steps` lines of progress. */
async function killed(args: string[], signal: NodeJS.Signals, steps: number): Promise<number | null> {
  const child = spawn(process.execPath, [cli, ...args])
  let seen = 0
  child.stdout.on('data', (data: Buffer) => {
    seen += data
      .toString()
      .split('\n')
      .filter((line) => line.startsWith('eta')).length
    // Once: a second interrupt leaves without saving.
    if (seen >= steps && !child.killed) child.kill(signal)
  })
  return new Promise((resolve) => child.on('close', (code) => resolve(code)))
}

const flags = (set: Partial<DenseCLConfig>): string[] =>
  Object.entries({ ...tiny, ...set }).map(([key, value]) => `${key}=${JSON.stringify(value)}`)

test('after kill -9 in the middle of an epoch, resume gives bit for bit the weights of the uninterrupted run', async () => {
  await withFolder(async (folder) => {
    const [whole, broken] = [join(folder, 'whole'), join(folder, 'broken')]
    await run(whole, { set: { epochs: 3 } })
    // An epoch has 5 steps: checkpoints in the middle of epochs, and at the end of each alone.
    for (const [checkpointSteps, at] of [
      [3, 2],
      [3, 5],
      [5, 7],
    ] as const) {
      const set = { checkpointSteps, epochs: 3 }
      const code = await killed(['pretrain', '--out', broken, '--overwrite', ...flags(set)], 'SIGKILL', at)
      assert.is(code, null, 'it was killed, not finished')
      // The row of a step is written before its checkpoint, so the kill may have come between those of the last row.
      const rows = readMetrics(join(broken, 'metrics.jsonl')).filter((row) => row.loss !== undefined).length
      const { epoch, step, globalStep } = position(broken)
      assert.ok(rows >= at - 1, `${rows} rows at the kill`)
      assert.ok(globalStep >= Math.floor((rows - 1) / checkpointSteps) * checkpointSteps, `${globalStep} saved of ${rows} steps`)
      assert.is(globalStep, 5 * epoch + step)
      // By a command once: the process costs more than what it trains.
      if (at === 2) {
        const resumed = runCli(['pretrain', '--out', broken, '--resume'])
        assert.is(resumed.code, 0, resumed.err)
        assert.ok(resumed.out.includes(`resume  at epoch ${epoch}, step ${step}\n`), resumed.out)
      } else await run(broken, { resume: true, set })
      const [a, b] = [last(whole), last(broken)]
      assert.equal([...b.keys()], [...a.keys()])
      for (const [name, tensor] of a) assert.ok(Buffer.compare(tensor.bytes, b.get(name)!.bytes) === 0, name)
      const losses = (out: string): (number | undefined)[] => readMetrics(join(out, 'metrics.jsonl')).map((row) => row.loss)
      assert.equal(losses(broken), losses(whole))
    }
  })
})

test('a damaged line of metrics.jsonl costs that line, and a kill after the last kNN doubles no row', async () => {
  await withFolder(async (folder) => {
    const out = join(folder, 'run')
    await run(out)
    const path = join(out, 'metrics.jsonl')
    const lines = readFileSync(path, 'utf8').trimEnd().split('\n')
    assert.is(lines.length, 12)
    const damaged = lines.with(4, lines[4]!.slice(0, 40)).with(6, 'null')
    writeFileSync(path, `${damaged.join('\n')}\n${lines[0]!.slice(0, 20)}`)
    await run(out, { resume: true })
    assert.equal(
      readMetrics(path),
      lines.filter((_, i) => i !== 4 && i !== 6).map((line) => JSON.parse(line) as Record<string, number>),
    )
  })
})

test('a bit of a checkpoint that is not as it was written is found on resume; one without a checksum is taken', async () => {
  await withFolder(async (folder) => {
    const out = join(folder, 'run')
    await run(out, { set: { epochs: 1 } })
    const path = join(out, 'checkpoints', 'last.safetensors')
    const bytes = readFileSync(path)
    const resume = () => run(out, { resume: true, set: { epochs: 1 } })
    const start = 8 + Number(bytes.readBigUInt64LE())
    const globalStep = bytes.indexOf('globalStep') + 'globalStep\\":'.length
    assert.is(String.fromCharCode(bytes[globalStep]!), '5')
    for (const at of [start, start + Math.floor((bytes.length - start) / 2), bytes.length - 1, globalStep]) {
      const flipped = Buffer.from(bytes)
      flipped[at]! ^= 1
      writeFileSync(path, flipped)
      await rejectsError(resume, 'FORMAT', /last\.safetensors: is damaged/)
    }
    const { tensors, metadata } = readSafetensors(path)
    const { sha256, ...older } = metadata
    assert.match(sha256!, /^[0-9a-f]{64}$/)
    writeFileSync(
      path,
      Buffer.concat(encodeSafetensors({ tensors, metadata: { ...older, densecl: older.densecl!.replace(/Step":\d/, 'Step":5') } })),
    )
    assert.is((await resume()).globalStep, 5)
  })
})

testWhere(hasSignals, noSignals, test, 'Ctrl-C saves and leaves with code 130; resume goes on from there', async () => {
  await withFolder(async (folder) => {
    const out = join(folder, 'run')
    const code = await killed(['pretrain', '--out', out, ...flags({ epochs: 40 })], 'SIGINT', 3)
    assert.is(code, 130)
    const { globalStep } = position(out)
    assert.ok(globalStep >= 3)
    const resumed = await run(out, { resume: true, set: { epochs: 40 }, interrupted: () => true })
    assert.ok(resumed.interrupted)
    assert.is(resumed.globalStep, globalStep)
  })
})

test('resume refuses other settings, other data, and a checkpoint cut at every 1,000th byte', async () => {
  await withFolder(async (folder) => {
    const out = join(folder, 'run')
    await run(out, { set: { epochs: 1 } })
    await rejectsError(() => run(out, { resume: true, set: { epochs: 1, lr: 0.1 } }), 'CONFIG', /lr was 0\.05 and is now 0\.1/)
    await rejectsError(() => run(out, { resume: true, set: { epochs: 1, data: 'scenes:48' } }), 'DATA', /48 images/, /40/)
    await rejectsError(() => run(join(folder, 'none'), { resume: true }), 'CHECKPOINT', /no checkpoint/)
    const path = join(out, 'checkpoints', 'last.safetensors')
    const bytes = readFileSync(path)
    for (let cut = 0; cut < bytes.length; cut += 1000) {
      writeFileSync(path, bytes.subarray(0, cut))
      await rejectsError(() => run(out, { resume: true, set: { epochs: 1 } }), 'FORMAT', /last\.safetensors/)
    }
  })
})

test('a loss that is not a number stops with a diagnosis and leaves the checkpoint from before', async () => {
  await withFolder(async (folder) => {
    const out = join(folder, 'run')
    await rejectsError(() => run(out, { set: { lr: 1e30 } }), 'NAN', /loss is not a number/, /learning rate/, /last\.safetensors/)
    for (const [name, tensor] of last(out)) assert.ok(storedValues(tensor).every(Number.isFinite), name)
  })
})

test('collapse stops with a diagnosis', async () => {
  await withFolder(async (folder) => {
    // With weight decay near 1 / lr every weight dies and all embeddings become the bias.
    await rejectsError(
      () => run(join(folder, 'run'), { set: { epochs: 40, lr: 0.1, weightDecay: 5, momentum: 0 } }),
      'COLLAPSE',
      /same vector/,
      /spread/,
    )
  })
})

test('batches larger than the data, and empty or single-image folders, are errors with the numbers', async () => {
  await withFolder(async (folder) => {
    await rejectsError(() => run(join(folder, 'a'), { set: { batchSize: 64 } }), 'CONFIG', /batchSize is 64/, /40 images/)
    mkdirSync(join(folder, 'one'))
    await rejectsError(() => run(join(folder, 'b'), { set: { data: join(folder, 'one') } }), 'DATA', /no image/)
    writeFileSync(
      join(folder, 'one', 'a.png'),
      await sharp({ create: { width: 9, height: 9, channels: 3, background: '#888' } })
        .png()
        .toBuffer(),
    )
    await rejectsError(() => run(join(folder, 'c'), { set: { data: join(folder, 'one') } }), 'CONFIG', /1 images/)
  })
})

test('a queue longer than the data, or than half of it, warns and offers a length that does not', async () => {
  await withFolder((folder) => {
    // All that is said before the first step.
    for (const [queueLength, said] of [
      [64, /warning the queue of 64 is longer than the data set of 40: .*--queue-length 16/],
      [32, /warning the queue of 32 is more than half of the data set of 40: .*--queue-length 16/],
      [16, undefined],
    ] as const) {
      const out = join(folder, `run${queueLength}`)
      const { code, out: text } = runCli(['pretrain', '--dry-run', '--out', out, ...flags({ queueLength, epochs: 1 })])
      assert.is(code, 0)
      if (said === undefined) assert.not.match(text, /warning the queue/)
      else assert.match(text, said)
    }
  })
})

testWhere(canMount, 'a small disk needs root and mount namespaces', test, 'a full disk loses nothing', async () => {
  await withFolder((folder) => {
    // A tmpfs in a mount namespace of its own: one checkpoint of 0.6 MiB fits, a second beside it does not.
    const script = `
mount -t tmpfs -o size=1000k none ${folder} || exit 1
${process.execPath} ${cli} pretrain --out ${folder}/run ${flags({}).join(' ')} 2>&1
echo "code $?"
${process.execPath} -e "
  const file = require('fs').readFileSync('${folder}/run/checkpoints/last.safetensors')
  const header = JSON.parse(file.toString('utf8', 8, 8 + Number(file.readBigUInt64LE())))
  console.log('step', JSON.parse(header.__metadata__.densecl).position.globalStep)"`
    const { stdout } = spawnSync('unshare', ['-m', 'sh', '-c', script], { encoding: 'utf8' })
    assert.match(stdout, /the disk is full/)
    assert.match(stdout, /what was there before is untouched/)
    assert.match(stdout, /epoch_00001\.safetensors: cannot be written/)
    assert.match(stdout, /epoch 2\/2 step 5\/5/, 'it trained to the end')
    assert.match(stdout, /code 1/)
    assert.not.match(stdout, /mistake in densecl/)
    assert.match(stdout, /step 0/)
  })
})

testWhere(
  canMount,
  'a small disk needs root and mount namespaces',
  test,
  'a disk that is full for a while costs rows of metrics only',
  async () => {
    await withFolder((folder) => {
      const [disk, kept] = [join(folder, 'disk'), join(folder, 'kept')]
      for (const made of [disk, kept]) mkdirSync(made)
      const log = join(kept, 'log')
      const settings = flags({ epochs: 60, checkpointEvery: 60, knnEvery: 0 }).join(' ')
      const command = `${process.execPath} ${cli} pretrain --out ${disk}/run ${settings}`
      const until = (text: string): string => `until grep -q '${text}' ${log} || ! kill -0 $run; do sleep 0.02; done`
      const script = `mount -t tmpfs -o size=8m none ${disk}; ${command} > ${log} 2>&1 & run=$!
      ${until('step 2/')}; cat /dev/zero > ${disk}/filler 2>/dev/null
      ${until('rows of metrics')}; ${until('events are')}; rm ${disk}/filler; wait $run; echo code $?; cp -r ${disk}/run ${kept}`
      const { stdout } = spawnSync('unshare', ['-m', 'sh', '-c', script], { encoding: 'utf8' })
      const said = readFileSync(log, 'utf8')
      assert.match(stdout, 'code 0', said)
      assert.is(said.split('rows of metrics are left out').length, 2, 'it warns once')
      const out = join(kept, 'run')
      const lines = readFileSync(join(out, 'metrics.jsonl'), 'utf8').trimEnd().split('\n')
      assert.ok(lines.length < 302, 'rows are missing')
      assert.is(readMetrics(join(out, 'metrics.jsonl')).length, lines.length, 'those that are there are whole')
      assert.is(readMetrics(join(out, 'metrics.jsonl')).at(-1)!.globalStep, 300)
      assert.ok(eventRecords(out) > 2)
      assert.is(position(out).globalStep, 300)
    })
  },
)

test('the learning rate: cosine by epoch as published, by step, with warm-up', () => {
  const base = { lr: 0.3, schedule: 'cosine', scheduleBy: 'epoch', warmupSteps: 0, epochs: 800 } as const
  // The rates that the authors' log prints for COCO at epochs 794 and 800 (counted from 1).
  assert.ok(Math.abs(learningRate(base, 793 * 462, 462) - 5.667e-5) < 1e-8)
  assert.ok(Math.abs(learningRate(base, 799 * 462 + 461, 462) - 1.157e-6) < 1e-9)
  assert.is(learningRate(base, 461, 462), 0.3)
  assert.ok(learningRate({ ...base, scheduleBy: 'step' }, 461, 462) < 0.3)
  assert.is(learningRate({ ...base, warmupSteps: 10 }, 4, 462), 0.15)
  assert.is(learningRate({ ...base, schedule: 'constant' }, 700 * 462, 462), 0.3)
})

test.run()
