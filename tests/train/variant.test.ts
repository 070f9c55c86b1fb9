/** Runs of what is not the published method, and what a run says of itself. */
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'

import * as assert from 'uvu/assert'

import type { Method, StepResult } from '../../src/methods/method.js'
import { resolveConfig } from '../../src/methods/index.js'
import { readMetrics } from '../../src/run/runLog.js'
import type { Tensor } from '../../src/tensor/tensor.js'
import { Monitor } from '../../src/train/monitor.js'
import { dryRun, pretrain } from '../../src/train/pretrain.js'
import { planWarnings } from '../../src/train/progress.js'
import type { Run } from '../../src/train/run.js'
import { readSafetensors } from '../../src/weights/safetensors.js'
import { rejectsError, runCli, suite, withFolder } from '../support/suite.js'

const test = suite('variant')

const settings = {
  data: 'scenes:40',
  knnData: 'scenes:20',
  imageSize: 32,
  batchSize: 8,
  epochs: 2,
  depth: 18,
  baseChannels: 4,
  strides: [1, 2, 1, 1],
  featDim: 8,
  queueLength: 20,
  denseQueueLength: 24,
  denseMatch: 'geometry',
  denseNegatives: 'local',
  denseInImage: 0.5,
  denseTemperature: 0.3,
  keyCropScale: [0.5, 1],
  normGroups: 2,
  lr: 0.05,
  logEvery: 1,
  workers: 1,
}
const config = (more: Record<string, unknown> = {}) =>
  resolveConfig(Object.entries({ ...settings, ...more }).map(([key, value]) => ({ key, value, from: 'test' })))

test('a run with partners by the crops says what it is, resumes to the bit, and its weights know their strides', async () => {
  await withFolder(async (folder) => {
    const [whole, cut] = [join(folder, 'whole'), join(folder, 'cut')]
    await pretrain({ config: config(), out: whole, quiet: true, pictures: false })
    let steps = 0
    const first = await pretrain({ config: config(), out: cut, quiet: true, pictures: false, interrupted: () => (steps += 1) > 7 })
    assert.ok(first.interrupted)
    await pretrain({ config: config(), out: cut, quiet: true, pictures: false, resume: true })
    const weights = (out: string) => readSafetensors(join(out, 'backbone.safetensors'))
    assert.equal(weights(cut).tensors, weights(whole).tensors)

    const { metadata } = weights(whole)
    assert.match(
      metadata.method!,
      /densecl, not as published: dense-match geometry, dense-negatives local of 4 keys, dense-in-image 0.5, .*key-crop-scale 0.5,1/,
    )
    assert.equal(JSON.parse(metadata.backbone!), { kind: 'resnet', options: { depth: 18, baseChannels: 4, strides: [1, 2, 1, 1] } })
    const rows = readMetrics(join(whole, 'metrics.jsonl')).filter((row) => row.loss !== undefined)
    assert.is(rows.length, 10)
    for (const row of rows) {
      assert.is(row.rightMatches, 1)
      assert.is(row.samePosition, row.sameExpected)
      assert.ok(row.lossInImage! > 0 && row.lossInImage! < row.lossDense!)
      assert.ok(row.place! >= 0 && row.place! <= 1 && row.image! >= 0 && row.image! <= 1)
    }
  })
})

test('--dense-every looks before, on the way and at the end, and a finished run that is resumed doubles nothing', async () => {
  await withFolder(async (folder) => {
    const out = join(folder, 'run')
    const looked = () => readMetrics(join(out, 'metrics.jsonl')).filter((row) => row.correspondence !== undefined)
    const epochs = (): number[] => looked().map(({ epoch }) => epoch!)
    await pretrain({ config: config({ denseEvery: 1 }), out, quiet: true, pictures: false })
    assert.equal(epochs(), [0, 1, 2])
    const [first] = looked()
    for (const { correspondence, correspondenceNear, correspondenceSamePlace } of looked()) {
      assert.ok(correspondence! >= 0 && correspondence! <= correspondenceNear! && correspondenceNear! <= 1)
      // The views are the same each time: so is what positions alone score.
      assert.is(correspondenceSamePlace, first!.correspondenceSamePlace)
    }
    await pretrain({ config: config({ denseEvery: 1 }), out, quiet: true, pictures: false, resume: true })
    assert.equal(epochs(), [0, 1, 2])
  })
})

test('MoCo v2 is no variant, whatever the dense options are, and has no dense embeddings to speak of', async () => {
  await withFolder(async (folder) => {
    const out = join(folder, 'run')
    await pretrain({ config: config({ denseWeight: 0, epochs: 1, keyCropScale: null }), out, quiet: true, pictures: false })
    assert.is(readSafetensors(join(out, 'backbone.safetensors')).metadata.method, undefined)
    const rows = readMetrics(join(out, 'metrics.jsonl')).filter(({ loss }) => loss !== undefined)
    assert.ok(rows.length > 0 && rows.every(({ loss, lossGlobal, lossDense }) => loss === lossGlobal && lossDense === 0))
    const dense = ['place', 'image', 'accuracyDense', 'samePosition', 'rightMatches']
    assert.equal(
      dense.filter((key) => rows.some((row) => key in row)),
      [],
    )
  })
})

/** Shows a Monitor so many steps with this number, and gives the warnings that it wrote. */
function warned(values: readonly number[]): string[] {
  const warnings: string[] = []
  const method = { cautions: [{ key: 'x', most: 0.9, means: 'x is large', remedy: 'less of it' }] } as unknown as Method
  const position = { epoch: 0, step: 0, globalStep: 0, images: 1 }
  const log = { warn: (text: string) => warnings.push(text), progress: () => undefined, metrics: () => undefined }
  let at = 0
  const built = { backbone: { device: 'cpu' }, describe: () => ({ loss: 1, x: values[at - 1]! }) }
  const run = { config: config(), method, built, position, steps: 1e9, log } as unknown as Run
  const monitor = new Monitor(run, () => ({ images: 1, onGpu: 0, decoding: 0, rendering: 0, uploading: 0 }))
  const result = { startRead: () => result, readings: {} } as unknown as StepResult
  for (at = 1; at <= values.length; ++at) {
    position.globalStep += 1
    monitor.stepTaken({ result, foundInf: { startRead: () => () => [0] } as unknown as Tensor, lr: 0.1, waited: 0 })
  }
  return warnings
}

test('a number that stays above its bound for 50 steps is warned of, once', () => {
  const of = (value: number, steps: number): number[] => Array.from({ length: steps }, () => value)
  assert.equal(warned(of(0.95, 49)), [])
  assert.equal(warned(of(0.95, 200)), ['step 50: x is large; try less of it'])
  assert.equal(warned([...of(0.95, 49), 0.5, ...of(0.95, 49)]), [])
  assert.equal(warned([...of(0.95, 60), 0.5, ...of(0.95, 90)]).length, 1)
  assert.equal(warned(of(NaN, 80)), [])
})

test('too few steps and a warm-up of most of a run are told with what to change', () => {
  const plan = (steps: number, more: Record<string, unknown>): string[] => planWarnings({ config: config(more), steps, resumed: false })
  assert.equal(plan(100, { epochs: 10, warmupSteps: 100 }), [])
  const [few, ...none] = plan(5, { epochs: 20 })
  assert.match(few!, /100 steps in all.*--epochs 40/)
  assert.equal(none, [])
  assert.match(plan(100, { epochs: 10, warmupSteps: 501 })[0]!, /warm-up of 501 steps.*1000.*--warmup-steps 50/)
  assert.equal(planWarnings({ config: config({ epochs: 1 }), steps: 5, resumed: true }), [])
})

test('a finished run is extended, with a constant rate to the bits of a longer one, and never shortened', async () => {
  await withFolder(async (folder) => {
    const [whole, grown] = [join(folder, 'whole'), join(folder, 'grown')]
    const constant = { schedule: 'constant', epochs: 1 }
    await pretrain({ config: config({ ...constant, epochs: 2 }), out: whole, quiet: true, pictures: false })
    await pretrain({ config: config(constant), out: grown, quiet: true, pictures: false })
    const { code, out } = runCli(['pretrain', '--out', grown, '--resume', '--epochs', '2'])
    assert.is(code, 0)
    assert.match(out, /resume {2}at epoch 1, step 0\n {8}extended from 1 to 2 epochs: .* run of 2, at 0\.0500\n/)
    const weights = (of: string) => readSafetensors(join(of, 'backbone.safetensors')).tensors
    assert.equal(weights(grown), weights(whole))
    // What is continued next time has the new length.
    assert.match(readFileSync(join(grown, 'config.yaml'), 'utf8'), /epochs: 2\n/)
    await rejectsError(
      () => pretrain({ config: config(constant), out: grown, quiet: true, pictures: false, resume: true }),
      'CONFIG',
      /epochs was 2 and is now 1/,
    )
  })
})

test('a dry run says what a run would be, and leaves no trace', async () => {
  await withFolder(async (folder) => {
    const out = join(folder, 'run')
    const { lines, steps, secondsPerStep, seconds } = await dryRun({ config: config({ epochs: 7, warmupSteps: 10, threads: 3 }) })
    assert.is(steps, 35)
    assert.ok(secondsPerStep > 0)
    assert.is(seconds, steps * secondsPerStep)
    const text = lines.join('\n')
    for (const word of [
      /40 images/,
      /variant /,
      /memory {2}about/,
      /rate {4}0\.05 by sgd.*warm-up: 0\.00500 at step 0/,
      /35 steps of/,
      /3 threads/,
    ])
      assert.match(text, word)
    await rejectsError(() => dryRun({ config: config({ batchSize: 64, normGroups: 2 }) }), 'CONFIG', /batchSize is 64/, /40 images/)

    const settings = [
      'data=scenes:40',
      'imageSize=32',
      'batchSize=8',
      'epochs=2',
      'depth=18',
      'baseChannels=4',
      'queueLength=20',
      'workers=1',
    ]
    const { code, out: printed } = runCli(['pretrain', '--out', out, '--dry-run', '--json', ...settings])
    assert.is(code, 0)
    assert.is((JSON.parse(printed) as { steps: number }).steps, 10)
    assert.equal(readdirSync(folder), [])
  })
})

test.run()
