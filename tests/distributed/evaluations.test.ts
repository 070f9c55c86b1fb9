/** Evaluations that train find with several processes what they find with one. */
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'

import * as assert from 'uvu/assert'

import { makeFolder } from '../../src/files/atomic.js'
import { ResNet } from '../../src/nn/resnet.js'
import { hostLimit } from '../../src/run/memory.js'
import { evaluationLock, statePath } from '../../src/run/results.js'
import { type Metrics, readMetrics } from '../../src/run/runLog.js'
import { Random } from '../../src/tensor/random.js'
import { writeBackbone } from '../../src/weights/export.js'
import { writeBoxTree } from '../support/boxTree.js'
import { launch, type Launched, ranksOf, start, until } from '../support/launch.js'
import { leaveLock } from '../support/locks.js'
import { beside, hasMpi, noMpi, runMpi } from '../support/mpi.js'
import { runCli, suite, testWhere, withFolder } from '../support/suite.js'
import { writeVocTree } from '../support/vocTree.js'

const test = suite('evaluations of several processes')

/** What an evaluation comes to. */
interface Outcome {
  found: unknown
  /** Its logs. */
  rows: Metrics[][]
}

/** The outcomes of some evaluations, one after the other in the same processes. */
async function outcomesOf(folder: string, processes: number, kinds: readonly string[]): Promise<Record<string, Outcome>> {
  const { code, out, err } = await runMpi(processes, beside(import.meta.url, 'evaluationsProgram'), [folder, ...kinds])
  assert.is(code, 0, out + err)
  return JSON.parse(readFileSync(join(folder, `found-${processes}.json`), 'utf8')) as Record<string, Outcome>
}

const [timed, loose] = [new Set(['imagesPerSecond', 'waitShare']), 1e-5]

/** Throws where numbers of two values are further apart than rounding takes them, or anything else differs. */
function expectClose(one: unknown, other: unknown, path: string): void {
  if (typeof one === 'number' && typeof other === 'number')
    assert.ok(Math.abs(one - other) <= loose * Math.max(1, Math.abs(other)), `${path}: ${one} and ${other}`)
  else if (typeof one === 'object' && one !== null && typeof other === 'object' && other !== null) {
    assert.equal(Object.keys(one), Object.keys(other), path)
    for (const [key, value] of Object.entries(one))
      if (!timed.has(key)) expectClose(value, (other as Record<string, unknown>)[key], `${path}.${key}`)
  } else assert.is(one, other, path)
}

testWhere(
  hasMpi,
  noMpi,
  test,
  'losses and scores of two or three processes are those of one, of every evaluation that trains',
  async () => {
    await withFolder(async (folder) => {
      writeVocTree(join(folder, 'voc'), { train: 13, val: 5 })
      writeBoxTree(join(folder, 'boxes'), 14)
      // Three processes have unequal shares; the parts of a batch are of eight and of four images, which two can share.
      for (const [processes, ...kinds] of [
        [3, 'segmentation', 'detection', 'finetune', 'linear'],
        [2, 'detectionInParts'],
      ] as const) {
        const alone = await outcomesOf(folder, 1, kinds)
        for (const [kind, { rows }] of Object.entries(alone))
          assert.ok(
            rows.every((log) => log.some(({ loss }) => loss !== undefined)),
            kind,
          )
        expectClose(await outcomesOf(folder, processes, kinds), alone, `${processes} processes`)
        for (const kind of kinds) assert.not.ok(existsSync(join(folder, `${kind}-${processes}`, 'eval.lock')))
      }
    })
  },
)

testWhere(hasMpi, noMpi, test, 'a fine-tuning in bf16 by several processes has the losses of one, to the rounding of activations', () =>
  withFolder(async (folder) => {
    // Of the settings that are tried: which is taken afterwards may hang on an image.
    const lossesOf = async (processes: number): Promise<number[]> =>
      (await outcomesOf(folder, processes, ['finetuneInBf16'])).finetuneInBf16!.rows[0]!.flatMap(({ choiceLoss }) => choiceLoss ?? [])
    const alone = await lossesOf(1)
    assert.ok(alone.length > 8, `${alone.length} steps`)
    // 18 layers round what is summed in another order, to 8 bits.
    const bound = Math.sqrt(18) * 2 ** -9
    // Of unequal shares.
    for (const [step, loss] of (await lossesOf(3)).entries())
      assert.ok(Math.abs(loss / alone[step]! - 1) < bound, `step ${step}: ${loss} ${alone[step]}`)
  }),
)

/** Weights of a small network, for a command to evaluate. */
function writeWeights(path: string): void {
  const backbone = new ResNet({ random: new Random(1), dtype: 'f32' }, { depth: 18, baseChannels: 4 })
  writeBackbone(path, backbone, 'torchvision')
  backbone.dispose()
}

/** What all of the following commands fine-tune, on `train`. */
const finetuneOf = (weights: string, train: string, out: string, ...more: string[]): string[] => [
  ...['eval', 'finetune', weights, '--train', train, '--val', 'scenes:6', '--out', out, '--head-multiplier', '1'],
  ...['--image-size', '32', '--log-every', '1', '--workers', '1', ...more],
]
const byTwo = (command: readonly string[]): Launched => launch(['--processes', '2', '--cpu', '--', ...command])

testWhere(hasMpi, noMpi, test, 'a command under launch has one voice, one folder and one result', async () => {
  await withFolder(async (folder) => {
    const weights = join(folder, 'weights.safetensors')
    writeWeights(weights)
    const finetune = (train: string, ...more: string[]) =>
      byTwo(finetuneOf(weights, train, join(folder, 'eval'), '--epochs', '2', '--lr', '0.01', ...more)).ended
    const { code, out, err } = await finetune('scenes:16')
    assert.is(code, 0, out + err)
    assert.is(out.match(/^Fine-tuning \(/gm)?.length, 1, out)
    // A line at the end of the training, of rank 0.
    assert.is(out.match(/epoch \d\/2 /g)?.length, 1, out)
    // Each has half of the machine's memory.
    const [, limit] = /^memory {2}about .* of the ([\d.]+) GiB of this machine.*, of each of the 2 processes here$/m.exec(out) ?? []
    assert.ok(Math.abs(Number(limit) * 2 ** 31 - hostLimit()) < 0.01 * hostLimit(), out)
    const kept = join(folder, 'eval', 'finetune-imagenet-full')
    for (const path of [`${kept}.json`, join(kept, 'classifier.safetensors'), join(kept, 'state.safetensors')])
      assert.ok(existsSync(path), path)

    const again = await finetune('scenes:16')
    assert.is(again.code, 1, again.out + again.err)
    assert.is(again.err.match(/holds an evaluation already/g)?.length, 1, again.err)
    const nowhere = await finetune('/nonexistent/images', '--overwrite')
    assert.is(nowhere.err.match(/\/nonexistent\/images/g)?.length, 1, nowhere.err)
  })
})

testWhere(hasMpi, noMpi, test, 'parts of a batch that two processes cannot share are refused by the name of their flag', async () => {
  await withFolder(async (folder) => {
    const [weights, data] = [join(folder, 'weights.safetensors'), join(folder, 'boxes')]
    writeWeights(weights)
    writeBoxTree(data, 8)
    const sizes = '--batch-size 8 --scales 48 --test-scale 48 --longest 64 --anchors 16,24 --workers 1'.split(' ')
    const { code, err } = await byTwo(['eval', 'detection', weights, '--data', data, ...sizes, '--images-at-once', '6']).ended
    assert.is(code, 2, err)
    const said = /parts of the batch are of 6 images but there are 2 processes: expected a multiple of 4 \(--images-at-once\), as 2 images/g
    assert.is(err.match(said)?.length, 1, err)
  })
})

testWhere(hasMpi, noMpi, test, 'what two processes were told to end goes on in one, or the other way, to the result of one', async () => {
  await withFolder(async (folder) => {
    const weights = join(folder, 'weights.safetensors')
    writeWeights(weights)
    const command = (out: string, ...more: string[]): string[] =>
      finetuneOf(weights, 'scenes:64', join(folder, out), '--epochs', '8', '--batch-size', '16', '--lr', '0.0001', ...more)
    const kept = (out: string): string => join(folder, out, 'finetune-imagenet-full')
    const lossesOf = (out: string): number[] =>
      readMetrics(join(kept(out), 'metrics.jsonl')).flatMap(({ loss }) => (loss === undefined ? [] : [loss]))
    const scoresOf = (out: string): unknown =>
      (JSON.parse(readFileSync(`${kept(out)}.json`, 'utf8')) as { table: { rows: unknown } }).table.rows
    const whole = await start(command('whole')).ended
    assert.is(whole.code, 0, whole.out + whole.err)

    for (const [out, first, then] of [
      ['fewer', byTwo, start],
      ['more', start, byTwo],
    ] as const) {
      const { child, ended } = first(command(out))
      await until(() => existsSync(join(kept(out), 'metrics.jsonl')) && lossesOf(out).length > 2, 120, 'a third step')
      child.kill('SIGTERM')
      const { code, out: said, err } = await ended
      assert.is(code, 143, said + err)
      assert.ok(lossesOf(out).length < lossesOf('whole').length, 'it was at its end already')
      const resumed = await then(command(out, '--resume')).ended
      assert.is(resumed.code, 0, resumed.out + resumed.err)
      expectClose(lossesOf(out), lossesOf('whole'), out)
      expectClose(scoresOf(out), scoresOf('whole'), out)
    }
  })
})

testWhere(hasMpi, noMpi, test, 'a signal while rank 0 waits for the lock of what was killed elsewhere ends both as one', async () => {
  await withFolder(async (folder) => {
    const [weights, out] = [join(folder, 'weights.safetensors'), join(folder, 'eval')]
    writeWeights(weights)
    const kept = join(out, 'finetune-imagenet-full')
    makeFolder(kept)
    leaveLock(evaluationLock(kept), 60, 'elsewhere')
    const launched = byTwo(finetuneOf(weights, 'scenes:16', out))
    let said = ''
    launched.child.stderr!.on('data', (data: Buffer) => (said += data.toString()))
    await until(() => said.includes('waits for a sign of life of process'), 60, 'the wait')
    process.kill(ranksOf(launched, 'finetune')[0]!, 'SIGTERM')
    const { code, out: text, err } = await launched.ended
    assert.is(code, 143, text + err)
    assert.is(err.match(/^densecl: interrupted$/gm)?.length, 1, err)
    assert.not.match(err, /is not that of the others/)
    assert.not.ok(existsSync(statePath(kept)))
  })
})

test('what is of one process is not done by several', () => {
  const env = { RANK: '0', WORLD_SIZE: '2', LOCAL_RANK: '0', LOCAL_WORLD_SIZE: '2' }
  for (const command of [
    ['eval', 'knn', 'x', '--train', 'y', '--val', 'z'],
    ['study', '--images', 'y'],
    ['eval', 'segmentation', 'x', '--data', 'y', '--frozen'],
  ]) {
    const { code, err } = runCli(command, { env })
    assert.is(code, 2, err)
    assert.match(err, /is work of one process: expected it without torchrun, which started 2 of them/)
  }
})

test.run()
