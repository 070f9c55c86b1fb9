/** examples/simsiam, a method of one's own, trains, is continued, evaluated and reported like the package's. */
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

import * as assert from 'uvu/assert'

import simsiam, { similarity } from '../../examples/simsiam/method.js'
import { Tape } from '../../src/autograd/tape.js'
import { densecl } from '../../src/methods/densecl/method.js'
import { configure, resolveConfig } from '../../src/methods/index.js'
import { resnet } from '../../src/nn/resnet.js'
import { pageBody } from '../../src/report/page.js'
import { viewRun } from '../../src/report/runView.js'
import { watchRuns } from '../../src/report/watch.js'
import { loadBackboneKind } from '../../src/run/backbone.js'
import { settingsOf } from '../../src/run/options.js'
import { readMetrics } from '../../src/run/runLog.js'
import { packageRoot } from '../../src/tensor/addon.js'
import { Random } from '../../src/tensor/random.js'
import { scope, Tensor } from '../../src/tensor/tensor.js'
import { pretrain, type PretrainOptions } from '../../src/train/pretrain.js'
import { readSafetensors } from '../../src/weights/safetensors.js'
import { rejectsError, runCli, suite, withFolder } from '../support/suite.js'

const test = suite('simsiam')

const path = join(packageRoot, 'dist', 'examples', 'simsiam', 'method.js')
const settings = {
  method: path,
  data: 'scenes:48',
  knnData: 'scenes:16',
  imageSize: 32,
  batchSize: 16,
  epochs: 8,
  depth: 18,
  baseChannels: 4,
  projection: 16,
  predictorHidden: 8,
  lr: 0.1,
  logEvery: 1,
  workers: 1,
}
const run = async (out: string, more: Partial<PretrainOptions> = {}) =>
  pretrain({ ...(await configure(settingsOf(settings, 'test'))), out, quiet: true, pictures: false, ...more })

const lossesOf = (out: string): number[] =>
  readMetrics(join(out, 'metrics.jsonl')).flatMap(({ loss }) => (loss === undefined ? [] : [loss]))
const mean = (values: readonly number[]): number => values.reduce((sum, value) => sum + value, 0) / values.length

test('the similarity is the mean cosine, and its gradient stops at the embeddings', () => {
  scope(() => {
    const random = new Random(5)
    const [n, d] = [3, 4]
    const draw = (): Float32Array => Float32Array.from({ length: n * d }, () => random.normal())
    const [p, z] = [draw(), draw()].map((values) => Tensor.from(values, [n, d])) as [Tensor, Tensor]
    const tape = new Tape().watch([p, z])
    const value = tape.record(() => similarity(p, z))
    const [dp, dz] = tape.backward(value, [p, z]) as [Tensor, Tensor]
    assert.ok(dz.data().every((element) => element === 0))
    const row = (of: Tensor, i: number): number[] => Array.from(of.data()).slice(i * d, (i + 1) * d)
    const dot = (a: number[], b: number[]): number => a.reduce((sum, element, i) => sum + element * b[i]!, 0)
    let expected = 0
    for (let i = 0; i < n; ++i) {
      const [a, b] = [row(p, i), row(z, i)]
      const [length, cosine] = [Math.hypot(...a), dot(a, b) / Math.hypot(...a) / Math.hypot(...b)]
      expected += cosine / n
      // d cos / dp = (z / |z| - cos p / |p|) / |p|
      row(dp, i).forEach((element, c) => {
        const exact = (b[c]! / Math.hypot(...b) - (cosine * a[c]!) / length) / length / n
        assert.ok(Math.abs(element - exact) < 1e-5, `${element} and ${exact}`)
      })
    }
    assert.ok(Math.abs(value.item() - expected) < 1e-6)
  })
})

test('every parameter has a gradient, and the numbers of a step are in their ranges', () => {
  const config = resolveConfig(settingsOf({ projection: 16, predictorHidden: 8 }, 'test'), simsiam)
  const built = simsiam.build(config, { backbone: resnet({ depth: 18, baseChannels: 4 }), compute: 'f32' })
  scope(() => {
    const random = new Random(3)
    const view = Tensor.from(
      Float32Array.from({ length: 4 * 32 * 32 * 3 }, () => random.normal()),
      [4, 32, 32, 3],
    )
    const result = built.step([view, view])
    const names = [...built.trained().parameters.keys()]
    const largest = new Map(names.map((name, i) => [name, Math.max(...result.gradients[i]!.data().map(Math.abs))]))
    // Batch norm takes the mean away that a bias before it adds.
    for (const [name, value] of largest) {
      const cancelled = /(projector\.linears\.\d|predictor\.linears\.0)\.bias/.test(name)
      assert.ok(cancelled ? value < 1e-4 : value > 0, `${name} has a gradient of ${value}`)
    }
    const { loss, spread } = built.describe(result.readings, 1) as { loss: number; spread: number }
    assert.ok(loss >= -1 && loss <= 1 && spread > 0.1, `${loss}, ${spread}`)
    result.dispose()
  })
  built.dispose()
})

test('a run continues to the bits of a whole one, its loss falls, and every command finds its method', async () => {
  await withFolder(async (folder) => {
    const [whole, broken] = [join(folder, 'whole'), join(folder, 'broken')]
    const { knnBefore, knnAfter, losses } = await run(whole)
    assert.ok(knnBefore! >= 0 && knnAfter! <= 1)
    let asked = 0
    assert.ok((await run(broken, { interrupted: () => (asked += 1) > 10 })).interrupted)
    await run(broken, { resume: true })
    const last = (out: string) => readSafetensors(join(out, 'checkpoints', 'last.safetensors'))
    assert.equal(last(broken).tensors, last(whole).tensors)
    assert.equal(lossesOf(broken), lossesOf(whole))

    const values = lossesOf(whole)
    assert.is(values.length, 24)
    assert.equal(losses, { total: values.at(-1) })
    assert.ok(mean(values.slice(-3)) < mean(values.slice(0, 3)) - 0.1, values.map((value) => value.toFixed(3)).join(' '))

    assert.match(readFileSync(join(whole, 'config.yaml'), 'utf8'), `method: ${path}`)
    await rejectsError(
      async () => run(whole, { resume: true, method: densecl, config: resolveConfig([]) }),
      'CONFIG',
      /the method of .* is simsiam and is now densecl/,
    )
    const resumed = runCli(['pretrain', '--out', whole, '--resume', '--projection', '8'])
    assert.is(resumed.code, 2)
    assert.match(resumed.err, /--projection was 16 and is now 8/)

    for (const weights of [join(whole, 'backbone.safetensors'), join(whole, 'checkpoints', 'last.safetensors')]) {
      const data = ['--train', 'scenes:16', '--val', 'scenes:8', '--image-size', '32', '--k', '1', '--workers', '1']
      const { code, err } = runCli(['eval', 'knn', weights, ...data])
      assert.is(code, 0, err)
    }
    const reported = runCli(['report', whole, '--json'])
    assert.is(reported.code, 0, reported.err)
    const { file } = JSON.parse(reported.out) as { file: string }
    const watch = await watchRuns([whole], 0)
    const live = await (await fetch(`${watch.url}body`)).text()
    await watch.close()
    for (const html of [readFileSync(file, 'utf8'), live]) {
      for (const part of ['simsiam, ', 'negative cosine', 'Spread of embeddings', 'kNN accuracy', 'Learning rate', 'projection'])
        assert.match(html, part)
      assert.not.match(html, /guessing|Queue/)
    }

    // Without the module a report says so, and shows what every run has.
    const config = join(whole, 'config.yaml')
    writeFileSync(config, readFileSync(config, 'utf8').replace(path, join(folder, 'moved.js')))
    const view = (await viewRun(whole))!
    assert.match(view.problems.join(), /moved\.js: .*no such file/)
    const html = pageBody([view], [], () => '')
    for (const part of ['curves of the method are missing', 'Loss', 'Learning rate']) assert.match(html, part)
    assert.not.match(html, 'Spread of embeddings')
  })
})

test('its options are options of the command, and wrong ones are answered like the common', async () => {
  const { code, out } = runCli(['pretrain', '--method', path, '--help'])
  assert.is(code, 0)
  for (const part of ['--projection', '--predictor-hidden', '--batch-size', 'simsiam-quick', '\n  small\n']) assert.match(out, part)
  assert.not.match(out, '--queue-length')
  const wrong = runCli(['pretrain', `method=${path}`, 'projecton=8'])
  assert.is(wrong.code, 2)
  assert.match(wrong.err, /unknown option projecton \(did you mean projection\?\)/)
  const mixed = settingsOf({ ...settings, queueLength: 8 }, 'test')
  await rejectsError(() => configure(mixed), 'CONFIG', /unknown option queueLength/)
  await rejectsError(() => configure(settingsOf({ method: 'simsiam' }, 'test')), 'CONFIG', /expected densecl, or the path/)
  await rejectsError(() => configure(settingsOf({ method: join(packageRoot, 'eslint.config.js') }, 'test')), 'CONFIG', /as a Method has/)
  await rejectsError(() => loadBackboneKind(path), 'CONFIG', /is a method, which is given as --method/)
})

test.run()
