import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

import * as assert from 'uvu/assert'

import { Loader } from '../../src/data/loader.js'
import { evenBatches, evenStepsPerEpoch, mostOfEvenBatch } from '../../src/data/sampler.js'
import type { Item } from '../../src/data/source.js'
import { openSource } from '../../src/data/sources.js'
import { blindAccuracies, ClassificationScores, rankOf } from '../../src/eval/classificationScores.js'
import { holdsClassifier, importClassifier, writeClassifier } from '../../src/eval/classifierFile.js'
import { classifyImages } from '../../src/eval/classify.js'
import { classifierPath, finetune } from '../../src/eval/finetune.js'
import { checkFinetuneMemory, estimateFinetuneMemory } from '../../src/eval/finetuneMemory.js'
import type { FinetuneOptions } from '../../src/eval/finetuneOptions.js'
import { batchSizeFor, finetuneDecay, finetuneOfLength, finetuneProtocols, protocolOfPercent } from '../../src/eval/finetuneProtocols.js'
import { buildFinetuned, disposeFinetuned, updateClassifier } from '../../src/eval/finetuneTraining.js'
import { balancedShare, holdOut, listedItems } from '../../src/eval/labelledImages.js'
import { allTensors } from '../../src/nn/module.js'
import { ResNet } from '../../src/nn/resnet.js'
import { imageSizeOfRun } from '../../src/run/results.js'
import { readMetrics } from '../../src/run/runLog.js'
import { Random } from '../../src/tensor/random.js'
import { type FloatDType, scope, Tensor } from '../../src/tensor/tensor.js'
import { writeBackbone } from '../../src/weights/export.js'
import { importBackbone } from '../../src/weights/import.js'
import { hasTorch, noTorch, runPython } from '../support/python.js'
import { rejectsError, suite, testWhere, throwsError, withFolder } from '../support/suite.js'

const test = suite('fine-tuning')
const network = (seed = 1, baseChannels = 4, compute: FloatDType = 'f32'): ResNet =>
  new ResNet({ random: new Random(seed), dtype: 'f32', compute }, { depth: 18, baseChannels })

const items = (labels: readonly number[]): Item[] =>
  labels.map((label, i) => ({ kind: 'file', name: `c${label}/${i}.jpg`, path: '', label }))
const labelCounts = (chosen: readonly Item[], classes: number): number[] =>
  Array.from({ length: classes }, (_, c) => chosen.filter(({ label }) => label === c).length)

test('a share of the labels has as many of each class as can be, and differs by seed', () => {
  const uneven = items(Array.from({ length: 400 }, (_, i) => (i < 300 ? 0 : i < 390 ? 1 : 2)))
  // 10 % are 40: the third class has but 10, what it lacks the others give.
  assert.equal(labelCounts(balancedShare(uneven, 3, 10, 0), 3).sort(), [10, 15, 15])
  const [one, again, other] = [0, 0, 1].map((seed) => balancedShare(uneven, 3, 10, seed).map(({ name }) => name))
  assert.equal(one, again)
  assert.not.equal(one, other)
  assert.equal(balancedShare(uneven, 3, 100, 0), uneven)
  throwsError(() => balancedShare(items(Array.from({ length: 30 }, (_, i) => i % 10)), 10, 1, 0), 'CONFIG', /at least 33\.3/, /is 0/)
})

test('a list names images by the ends of their paths; names of none and of several are errors', () =>
  withFolder(async (folder) => {
    const path = join(folder, 'labelled.txt')
    const all = items([0, 0, 1])
    writeFileSync(path, 'c1/2.jpg 1\n0.jpg 0\n')
    assert.equal(await listedItems(path, all), [all[0], all[2]])
    writeFileSync(path, '9.jpg\n')
    await rejectsError(() => listedItems(path, all), 'DATA', /9\.jpg/, /none/)
    await rejectsError(() => listedItems(join(folder, 'absent.txt'), all), 'DATA', /absent/)
  }))

test('what is held out is a fifth of each class and no part of the rest', () => {
  const all = items(Array.from({ length: 41 }, (_, i) => (i < 30 ? 0 : i < 40 ? 1 : 2)))
  const { rest, heldOut } = holdOut(all, 3, 5)
  assert.equal(labelCounts(heldOut, 3), [6, 2, 0])
  assert.equal([...rest, ...heldOut].map(({ name }) => name).sort(), all.map(({ name }) => name).sort())
  throwsError(() => holdOut(items([0, 1, 2]), 3, 0), 'DATA', /no class has two/)
})

test('batches of an epoch hold every image once, in sizes that differ by one', () => {
  const batches = [...evenBatches({ seed: 3, count: 43, batchSize: 10, from: 0, until: 10 })]
  for (const epoch of [0, 1]) {
    const own = batches.filter((batch) => batch.epoch === epoch).map(({ indices }) => [...indices])
    assert.equal(
      own.flat().sort((a, b) => a - b),
      Array.from({ length: 43 }, (_, i) => i),
    )
    assert.equal(new Set(own.map(({ length }) => length)), new Set([8, 9]))
  }
  assert.equal([...evenBatches({ seed: 3, count: 43, batchSize: 10, from: 7, until: 10 })], batches.slice(7))
})

test('batches of two images or more join the one image that would be left to another', () => {
  for (const count of [1, 2, 3, 21, 40, 43])
    for (const batchSize of [1, 2, 3, 10]) {
      const range = { seed: 3, count, batchSize, from: 0, until: evenStepsPerEpoch(count, batchSize, 2) }
      const sizes = [...evenBatches({ ...range, least: 2 })].map(({ indices }) => indices.length)
      assert.is(
        sizes.reduce((sum, size) => sum + size, 0),
        count,
      )
      assert.ok(Math.min(...sizes) >= Math.min(2, count), `${count} by ${batchSize}: ${sizes.join(' ')}`)
      assert.ok(Math.max(...sizes) <= mostOfEvenBatch(count, batchSize, 2))
      // Where no batch would have one image all is as it is without that.
      if (batchSize > 2) assert.equal([...evenBatches({ ...range, least: 2 })], [...evenBatches(range)])
    }
})

test('what stands in for a broken image brings its own label', async () => {
  const { items: scenes } = await openSource('scenes:6')
  const broken: Item = { kind: 'file', name: 'broken.jpg', path: '/nowhere/broken.jpg', label: 9 }
  const mixed = [...scenes.map((item, label): Item => ({ ...item, label })), broken]
  const loader = new Loader({ items: mixed, imageSize: 16, batchSize: 7, views: 'crop', workers: 2, maxBroken: 0.5 })
  for await (const { indices, labels } of loader.batches(evenBatches({ seed: 1, count: 7, batchSize: 7, from: 0, until: 3 })))
    indices.forEach((index, i) => assert.ok(index === 6 ? labels[i]! < 6 : labels[i] === index, `${index} ${labels[i]!}`))
  assert.equal([...loader.broken.keys()], ['broken.jpg'])
  await loader.close()
})

test('the image size of weights is that of the run which made them', () =>
  withFolder((folder) => {
    const weights = join(folder, 'checkpoints', 'last.safetensors')
    assert.is(imageSizeOfRun(weights), undefined)
    writeFileSync(join(folder, 'config.yaml'), 'imageSize: 96\nepochs: 3\n')
    assert.equal([weights, join(folder, 'backbone.safetensors')].map(imageSizeOfRun), [96, 96])
  }))

test('scores: ties go to the earlier class, what is not a number is wrong, blind guesses are counted', () => {
  assert.equal([rankOf([1, 1, 0], 1), rankOf([1, 1, 0], 0), rankOf([NaN, NaN, NaN], 0)], [1, 0, 2])
  const scores = new ClassificationScores(3)
  scores.add(new Float32Array([2, 0, 0]), 0)
  scores.add(new Float32Array([2, 0, 0]), 1)
  const { top1, top5, byClass, loss } = scores.result()
  assert.equal([top1, top5], [0.5, 1])
  assert.equal(byClass.slice(0, 2), [
    { images: 1, top1: 1 },
    { images: 1, top1: 0 },
  ])
  const [right, wrong] = [2, 0].map((logit) => Math.log(Math.exp(2) + 2) - logit)
  assert.ok(Math.abs(loss - (right! + wrong!) / 2) < 1e-6)
  const { chance, majority } = blindAccuracies(Int32Array.of(1, 1, 0), Int32Array.of(1, 0, 0, 2), 10)
  assert.equal([chance.top1, chance.top5, majority.top1, majority.top5], [0.1, 0.5, 0.25, 1])
})

test('protocols are the published ones', () => {
  assert.equal([0.5, 1, 5, 10, 50, 100].map(protocolOfPercent), [
    'imagenet-1percent',
    'imagenet-1percent',
    'imagenet-10percent',
    'imagenet-10percent',
    'imagenet-full',
    'imagenet-full',
  ])
  const one = finetuneProtocols['imagenet-1percent']!
  assert.equal(
    [0, 11, 12, 15, 16, 19].map((epoch) => Number(finetuneDecay(one, epoch).toFixed(4))),
    [1, 1, 0.2, 0.2, 0.04, 0.04],
  )
  assert.equal(finetuneOfLength(one, 10).steps, [6, 8])
  assert.equal(
    [12_811, 1_281_167, 430, 43].map((images) => batchSizeFor(one, images)),
    [256, 256, 27, 8],
  )
})

const quick = { ...finetuneProtocols['imagenet-full']!, epochs: 2, steps: [1], batchSize: 12, lrs: [0.05], headMultipliers: [1] }

async function options(folder: string, name: string, more: Partial<FinetuneOptions> = {}): Promise<FinetuneOptions> {
  const [train, val] = [await openSource('scenes:30'), await openSource('scenes:20', { split: 'val' })]
  const own = { train: train.items, val: val.items, classes: train.classes!, imageSize: 32, out: join(folder, name) }
  return { protocol: quick, chooseBy: 'held-out', ...own, quiet: true, seed: 2, workers: 1, ...more }
}

const precisions = ['f32', 'bf16'] as const

for (const compute of precisions)
  test(`a network in ${compute} learns what it is shown, and its file classifies as it did`, () =>
    withFolder((folder) => learnsAndClassifies(folder, compute)))

test('an odd number of images in batches of two is trained on where their last map is one cell; one image is refused at once', () =>
  withFolder(async (folder) => {
    const odd = await options(folder, 'odd', { protocol: { ...quick, batchSize: 2 } })
    odd.train = odd.train.slice(0, 5)
    const backbone = network()
    const trained = await finetune(backbone, odd)
    assert.is(trained.iterations, 2 * 2)
    const larger = await finetune(backbone, { ...odd, out: join(folder, 'larger'), imageSize: 64 })
    assert.is(larger.iterations, 2 * 3)

    for (const [changes, code, words] of [
      [{ train: odd.train.slice(0, 1) }, 'DATA', /there is 1 training image: expected two or more, as the last map of an image of 32 px/],
      [{ protocol: { ...quick, batchSize: 1 } }, 'CONFIG', /the batch is of 1 image: expected two or more \(--batch-size\)/],
    ] as const) {
      const refused = { ...odd, ...changes, out: join(folder, 'refused') }
      await rejectsError(() => finetune(backbone, refused), code, words)
      throwsError(() => checkFinetuneMemory(backbone, refused), code, words)
    }
    assert.not(existsSync(join(folder, 'refused')))
    backbone.dispose()
  }))

async function learnsAndClassifies(folder: string, compute: FloatDType): Promise<void> {
  const backbone = network(4, 8, compute)
  const own = await options(folder, 'learns', { protocol: { ...quick, epochs: 40, steps: [30], batchSize: 10 } })
  // Tested on its own training images; chance is 10 %.
  const { test: result } = await finetune(backbone, { ...own, val: own.train })
  assert.ok(result!.top1 > 0.4, `${result!.top1}`)
  const { model, record } = importClassifier(classifierPath(own.out), undefined, compute)
  assert.equal([record.classes, record.imageSize, model.backbone.compute], [own.classes, 32, compute])
  const predictions = await classifyImages(model, record, own.train, { top: 3, workers: 1 })
  const right = predictions.filter(({ guesses }, i) => guesses[0]!.class === own.classes[own.train[i]!.label!]).length
  assert.is(right / own.train.length, result!.top1)
  for (const { guesses } of predictions) assert.ok(guesses.length === 3 && guesses[0]!.probability >= guesses[1]!.probability)
  model.dispose()
  model.backbone.dispose()
  backbone.dispose()
}

for (const compute of precisions)
  test(`in ${compute} settings are chosen by held-out or validation images; what is cut off anywhere ends with the same bytes`, () =>
    withFolder(async (folder) => {
      for (const chooseBy of ['held-out', 'val'] as const) {
        const protocol = { ...quick, lrs: [0.05, 0.01] }
        const run = async (name: string, more: Partial<FinetuneOptions> = {}) => {
          const backbone = network(4, 4, compute)
          try {
            return await finetune(backbone, await options(folder, `${chooseBy}-${name}`, { protocol, chooseBy, ...more }))
          } finally {
            backbone.dispose()
          }
        }
        const whole = await run('whole')
        assert.is(whole.tried.length, 2)
        const best = whole.tried.reduce((a, b) => (b.top1 > a.top1 || (b.top1 === a.top1 && b.loss < a.loss) ? b : a))
        assert.is(whole.setting!.lr, best.lr)
        if (chooseBy === 'val') assert.is(whole.test!.top1, best.top1)
        for (const steps of [4, 7]) {
          let asked = 0
          const name = `cut${steps}`
          assert.ok((await run(name, { interrupted: () => ++asked > steps })).interrupted)
          assert.equal(await run(name, { resume: true }), whole)
          for (const file of ['state.safetensors', 'classifier.safetensors'])
            assert.equal(
              readFileSync(join(folder, `${chooseBy}-${name}`, file)),
              readFileSync(join(folder, `${chooseBy}-whole`, file)),
              file,
            )
          const rows = (at: string) =>
            readMetrics(join(folder, `${chooseBy}-${at}`, 'metrics.jsonl')).map(({ globalStep, testLoss }) => [globalStep, testLoss])
          assert.equal(rows(name), rows('whole'))
        }
        // Finished, it is read again.
        assert.equal(await run('whole', { resume: true }), whole)
      }
    }))

test('a test on the way that was cut off after its state is made up for when the fine-tuning goes on', () =>
  withFolder(async (folder) => {
    const run = async (name: string, more: Partial<FinetuneOptions> = {}) => {
      const backbone = network()
      await finetune(backbone, await options(folder, name, { protocol: { ...quick, epochs: 3 }, testEvery: 1, ...more }))
      backbone.dispose()
      return readMetrics(join(folder, name, 'metrics.jsonl')).flatMap(({ globalStep, testLoss }) =>
        testLoss === undefined ? [] : [[globalStep!, testLoss] as const],
      )
    }
    const whole = await run('whole')
    assert.is(whole.length, 3)
    let asked = 0
    assert.equal(await run('cut', { interrupted: () => ++asked > whole[0]![0] }), whole.slice(0, 1))
    const log = join(folder, 'cut', 'metrics.jsonl')
    const lines = readFileSync(log, 'utf8').split('\n')
    writeFileSync(log, lines.filter((line) => !line.includes('testLoss')).join('\n'))
    assert.equal(await run('cut', { resume: true }), whole)
  }))

for (const compute of precisions)
  test(`each training in ${compute} begins from the given weights: the one that is kept is as if it were alone`, () =>
    withFolder(async (folder) => {
      const lossesOf = async (lrs: readonly number[]): Promise<(number | undefined)[]> => {
        const backbone = network(4, 4, compute)
        const name = lrs.join()
        await finetune(backbone, await options(folder, name, { protocol: { ...quick, lrs }, chooseBy: 'val' }))
        backbone.dispose()
        return readMetrics(join(folder, name, 'metrics.jsonl')).flatMap(({ testLoss }) => (testLoss === undefined ? [] : [testLoss]))
      }
      const [alone, after] = [await lossesOf([0.01]), await lossesOf([0.05, 0.01])]
      assert.is(after.length, 2)
      assert.is(after[1], alone[0])
      assert.not.equal(after[0], alone[0])
    }))

test('a setting that diverges is not tried further; one that has no other is an error', () =>
  withFolder(async (folder) => {
    const backbone = network(4)
    const { setting, tried } = await finetune(backbone, await options(folder, 'diverges', { protocol: { ...quick, lrs: [1e30, 0.01] } }))
    assert.is(setting!.lr, 0.01)
    assert.is(tried[0]!.loss, Infinity)
    await rejectsError(
      async () => finetune(backbone, await options(folder, 'alone', { protocol: { ...quick, lrs: [1e30] } })),
      'NAN',
      /learning rate 1e\+30/,
    )
    backbone.dispose()
  }))

test('the one that is kept is what it was when it was tested, whatever was tried after it', () =>
  withFolder(async (folder) => {
    for (const compute of precisions) {
      const backbone = network(4, 4, compute)
      const own = await options(folder, compute, { protocol: { ...quick, lrs: [0.01, 1e30] }, chooseBy: 'val' })
      const { setting, tried, test: kept } = await finetune(backbone, own)
      assert.is(setting!.lr, 0.01)
      assert.equal([kept!.top1, kept!.loss], [tried[0]!.top1, tried[0]!.loss])
      backbone.dispose()
    }
  }))

/** Random images [count, 32, 32, 3], alike by each seed. */
function noise(count: number, seed: number): Tensor {
  const random = new Random(seed)
  return Tensor.from(
    Float32Array.from({ length: count * 32 * 32 * 3 }, () => random.normal()),
    [count, 32, 32, 3],
  )
}

test('a step in bf16 has the loss of f32, and moves f32 parameters whose copies follow, rounded', () => {
  const labels = Int32Array.of(0, 1, 2, 0, 1, 2)
  const losses = precisions.map((compute) => {
    const backbone = network(3, 8, compute)
    const trained = buildFinetuned(backbone, { classes: 3, weightDecay: 0, random: new Random(1) })
    // Many changes are too small for the 8 bits of a copy.
    const rates = { backbone: 1e-4, head: 1e-4 }
    const loss = scope(() => updateClassifier(trained, noise(6, 5), labels, rates))
    const { parameters, copies } = trained.model.state()
    assert.is(copies.size > 0, compute === 'bf16')
    assert.not(copies.has('fc.weight'))
    for (const [name, copy] of copies) {
      const parameter = parameters.get(name)!
      assert.equal(
        copy.data(),
        scope(() => parameter.to('bf16').data()),
      )
      assert.not.equal(copy.data(), parameter.data(), name)
    }
    const before = network(3, 8)
    for (const [name, was] of before.state().parameters) assert.not.equal(parameters.get(name)!.data(), was.data(), name)
    for (const each of [before, backbone]) each.dispose()
    disposeFinetuned(trained)
    return loss
  })
  // Activations and weights have 8 bits; 20 layers of them add up like independent errors.
  assert.ok(Math.abs(losses[1]! / losses[0]! - 1) < Math.sqrt(2 * 20) * 2 ** -9, losses.join(' '))
})

test('the last layer has a learning rate of its own, and batch norm is in training mode', () => {
  const backbone = network(3)
  const trained = buildFinetuned(backbone, { classes: 3, weightDecay: 0, random: new Random(1) })
  const values = (): Map<string, Float32Array> =>
    new Map([...allTensors(trained.model.state())].map(([name, tensor]) => [name, Float32Array.from(tensor.data())]))
  const before = values()
  scope(() => updateClassifier(trained, noise(6, 5), Int32Array.of(0, 1, 2, 0, 1, 2), { backbone: 0, head: 0.1 }))
  const after = values()
  const changed = [...before].filter(([name, own]) => own.some((value, i) => value !== after.get(name)![i])).map(([name]) => name)
  assert.ok(changed.includes('fc.weight') && changed.includes('bn1.running_mean') && !changed.includes('conv1.weight'), changed.join())
  disposeFinetuned(trained)
  backbone.dispose()
})

test('memory is estimated before an image is read, and refused with numbers', async () => {
  const backbone = network(3)
  const { items: train, classes } = await openSource('scenes:30')
  const planned = { protocol: quick, train, classes: classes!, imageSize: 64 }
  const bytes = (more: Partial<typeof planned>): number =>
    estimateFinetuneMemory(backbone, { ...planned, ...more }).host.reduce((sum, part) => sum + part.bytes, 0)
  assert.ok(bytes({ imageSize: 128 }) > bytes({}))
  assert.match(checkFinetuneMemory(backbone, planned), /^memory {2}about/)
  throwsError(
    () => checkFinetuneMemory(backbone, planned, { host: 1e6, device: 0 }),
    'CONFIG',
    /--batch-size \(12\)/,
    /--force/,
    /a step of 12 images/,
  )
  // Shares of 5 processes differ by one image at most; what can be changed is the batch of all.
  const [ofFive, largestShare] = [
    { ...planned, processes: 5 },
    { ...planned, protocol: { ...quick, batchSize: 3 } },
  ]
  assert.equal(estimateFinetuneMemory(backbone, ofFive), estimateFinetuneMemory(backbone, largestShare))
  throwsError(() => checkFinetuneMemory(backbone, ofFive, { host: 1e6, device: 0 }), 'CONFIG', /a step of 3 images/, /--batch-size \(12\)/)
  backbone.dispose()
})

test('in bf16 activations take half of the memory, and weights that of their copies more', async () => {
  const { items: train, classes } = await openSource('scenes:30')
  const [whole, half] = precisions.map((compute) => {
    const backbone = network(3, 16, compute)
    const { host } = estimateFinetuneMemory(backbone, { protocol: quick, train, classes: classes!, imageSize: 128 })
    backbone.dispose()
    return (start: string): number => host.find(({ what }) => what.startsWith(start))!.bytes
  }) as [(start: string) => number, (start: string) => number]
  // Gradients of weights stay f32.
  assert.ok(half('a step') < 0.75 * whole('a step'), `${half('a step')} ${whole('a step')}`)
  // Beside f32 weights and momenta copies of two bytes.
  assert.ok(Math.abs(half('weights') / whole('weights') - 10 / 8) < 0.02, `${half('weights')} ${whole('weights')}`)
})

test('a file of a classifier is a backbone too; a file that is none, or contradicts itself, is an error with its name', () =>
  withFolder((folder) => {
    const backbone = network(3)
    writeBackbone(join(folder, 'b.safetensors'), backbone, 'torchvision')
    assert.not(holdsClassifier(join(folder, 'b.safetensors')))
    throwsError(() => importClassifier(join(folder, 'b.safetensors')), 'FORMAT', /b\.safetensors: is no classifier/)
    const trained = buildFinetuned(backbone, { classes: 3, weightDecay: 0, random: new Random(1) })
    const record = {
      classes: ['a', 'b', 'c'],
      imageSize: 40,
      mean: [0.485, 0.456, 0.406],
      deviation: [0.229, 0.224, 0.225],
      protocol: 'x',
    } as const
    for (const [name, classes] of [
      ['c.safetensors', ['a', 'b', 'c']],
      ['wrong.safetensors', ['a', 'b']],
    ] as const)
      writeClassifier(join(folder, name), trained.model, {
        ...record,
        classes: [...classes],
        mean: [...record.mean],
        deviation: [...record.deviation],
      })
    throwsError(() => importClassifier(join(folder, 'wrong.safetensors')), 'FORMAT', /names 2 classes but its last layer has 3/)
    const { backbone: again, report } = importBackbone(join(folder, 'c.safetensors'))
    assert.equal(report.unexpected.sort(), ['fc.bias', 'fc.weight'])
    again.dispose()
    disposeFinetuned(trained)
    backbone.dispose()
  }))

testWhere(hasTorch, noTorch, test, 'torchvision loads a classifier strictly and has the same logits', () =>
  withFolder((folder) => {
    const backbone = network(7, 64)
    const trained = buildFinetuned(backbone, { classes: 5, weightDecay: 0, random: new Random(1) })
    const path = join(folder, 'c.pth')
    const size = 64
    const [mean, deviation] = [[0.485, 0.456, 0.406] as [0.485, 0.456, 0.406], [0.229, 0.224, 0.225] as [0.229, 0.224, 0.225]]
    writeClassifier(path, trained.model, { classes: ['a', 'b', 'c', 'd', 'e'], imageSize: size, mean, deviation, protocol: '' })
    const random = new Random(9)
    const pixels = Array.from({ length: 2 * size * size * 3 }, () => random.normal())
    const own = scope(() => [...trained.model.logits(Tensor.from(Float32Array.from(pixels), [2, size, size, 3]), { train: false }).data()])
    const theirs = JSON.parse(
      runPython(
        'import sys, json, torch, torchvision\n' +
          'net = torchvision.models.resnet18(num_classes=5)\n' +
          'net.load_state_dict(torch.load(sys.argv[1])); net.eval()\n' +
          `x = torch.tensor(json.load(sys.stdin)).reshape(2, ${size}, ${size}, 3).permute(0, 3, 1, 2)\n` +
          'print(json.dumps(net(x).detach().flatten().tolist()))',
        [path],
        JSON.stringify(pixels),
      ),
    ) as number[]
    const most = Math.max(...theirs.map(Math.abs))
    own.forEach((value, i) => assert.ok(Math.abs(value - theirs[i]!) < 1e-4 * most, `${value} ${theirs[i]!}`))
    // A state dictionary of others is a classifier whose classes are numbers.
    const { model, record, assumed } = importClassifier(path)
    assert.equal([assumed, record.imageSize, record.classes.length], [true, 224, 5])
    assert.ok(existsSync(path))
    model.dispose()
    model.backbone.dispose()
    disposeFinetuned(trained)
    backbone.dispose()
  }),
)

test.run()
