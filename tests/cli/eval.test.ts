/** The commands that measure and show, as a user types them, on small data of every layout - and on inputs that are wrong. */
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

import sharp from 'sharp'
import * as assert from 'uvu/assert'

import { runProgram } from '../../src/cli/program.js'
import { disposeState } from '../../src/nn/module.js'
import { Random } from '../../src/tensor/random.js'
import { ResNet } from '../../src/nn/resnet.js'
import { writeBackbone } from '../../src/weights/export.js'
import { encodeSafetensors, readSafetensors } from '../../src/weights/safetensors.js'
import { rejectsError, runCli, suite, withFolder } from '../support/suite.js'
import { writeVocTree } from '../support/vocTree.js'

const test = suite('cli of evaluation')

function writeWeights(path: string): string {
  const backbone = new ResNet({ random: new Random(1), dtype: 'f32' }, { depth: 18, baseChannels: 4 })
  writeBackbone(path, backbone, 'torchvision')
  disposeState(backbone.state())
  return path
}

/** Weights, a VOC tree and class folders with a grey picture among them. */
async function withData(
  body: (data: { folder: string; weights: string; voc: string; classes: string }) => Promise<void> | void,
): Promise<void> {
  await withFolder(async (folder) => {
    const [voc, classes] = [join(folder, 'voc'), join(folder, 'classes')]
    writeVocTree(voc, { train: 12, val: 6 })
    for (const split of ['train', 'val']) {
      for (const [c, colour] of [
        ['a', '#d33'],
        ['b', '#3d3'],
      ] as const) {
        mkdirSync(join(classes, split, c), { recursive: true })
        for (let i = 0; i < 4; ++i) {
          const picture = sharp({ create: { width: 40, height: 36, channels: 3, background: colour } })
          await (i === 0 ? picture.greyscale() : picture).jpeg().toFile(join(classes, split, c, `${i}.jpg`))
        }
      }
    }
    await body({ folder, weights: writeWeights(join(folder, 'weights.safetensors')), voc, classes })
  })
}

interface Printed {
  table: { title: string; columns: string[]; rows: (string | number)[][]; notes: string[] }
  file: string
}

function printed(args: string[]): Printed & Record<string, unknown> {
  const { code, out, err } = runCli([...args, '--json'])
  assert.is(code, 0, err)
  return JSON.parse(out) as Printed & Record<string, unknown>
}

test('kNN and linear on class folders with grey pictures; what deviates from the protocol is said', () =>
  withData(({ folder, weights, classes }) => {
    const shared = [
      '--train',
      join(classes, 'train'),
      '--val',
      join(classes, 'val'),
      '--image-size',
      '32',
      '--workers',
      '1',
      '--out',
      join(folder, 'out'),
    ]
    const knn = printed(['eval', 'knn', weights, ...shared, '--k', '1,3'])
    assert.equal(
      knn.table.rows.map(([k]) => k),
      [1, 3, 'chance', 'most frequent'],
    )
    const linear = printed(['eval', 'linear', weights, ...shared, '--epochs', '2', '--protocol', 'imagenet-features', '--batch-size', '4'])
    assert.equal(
      linear.table.rows.map(([head]) => head),
      ['feature1', 'feature2', 'feature3', 'feature4', 'feature5', 'chance', 'most frequent'],
    )
    // Of two classes there are no five likeliest; what is published stands in brackets beside a run that deviates.
    assert.not(linear.table.columns.includes('top-5'))
    assert.ok(linear.table.rows[3]!.includes('(64.06)'), linear.table.rows[3]!.join())
    assert.ok(
      linear.table.notes.some((note) => /deviates.*epochs 2 \(published 90\).*batch size 4 \(published 256\)/.test(note)),
      linear.table.notes.join(),
    )
    assert.ok(linear.table.notes.some((note) => note.includes('ResNet-18 of 4 base channels')))
    assert.is(
      runCli(['eval', 'linear', weights, ...shared, '--epochs', '2', '--protocol', 'imagenet-features', '--batch-size', '4']).code,
      1,
      'an evaluation is not replaced unasked',
    )
    // Within what --max-broken of pretrain allows nothing stops, but it is said.
    writeFileSync(
      join(folder, 'list.txt'),
      Array.from({ length: 150 }, (_, i) => `${i === 9 ? 'none' : `classes/train/a/${i % 4}`}.jpg ${i % 2}\n`).join(''),
    )
    const broken = printed([
      'eval',
      'knn',
      weights,
      ...shared.slice(4),
      '--train',
      join(folder, 'list.txt'),
      '--val',
      join(folder, 'list.txt'),
      '--k',
      '1',
    ])
    assert.ok(
      broken.table.notes.some((note) => note.includes('1 images could not be read and count as black ones: none.jpg')),
      broken.table.notes.join(),
    )
    // People get the table and where it is.
    const { out } = runCli(['eval', 'knn', weights, ...shared, '--k', '1'])
    assert.match(out, /top-1/)
    assert.match(out, /knn\.json/)
  }))

test('a classifier is fine-tuned, predicts, and is exported; images that are broken are named and the others done', () =>
  withData(async ({ folder, weights, classes }) => {
    const out = join(folder, 'out')
    const [train, val] = [join(classes, 'train'), join(classes, 'val')]
    const data = ['--train', train, '--val', val, '--image-size', '32', '--workers', '1', '--out', out]
    const one = ['--epochs', '6', '--lr', '0.02', '--head-multiplier', '1']
    const tuned = printed(['eval', 'finetune', weights, ...data, ...one])
    assert.equal(
      tuned.table.rows.map(([name]) => name),
      ['top-1'],
    )
    assert.equal(
      (tuned.byClass as { class: string; images: number }[]).map((row) => [row.class, row.images]),
      [
        ['a', 4],
        ['b', 4],
      ],
    )
    const classifier = tuned.classifier as string
    const broken = join(folder, 'broken.jpg')
    writeFileSync(broken, 'no image')
    const { code, out: text, err } = runCli(['predict', broken, val, '--weights', classifier, '--json'])
    assert.is(code, 1)
    assert.match(err, /1 of 9 images could not be read/)
    const { images } = JSON.parse(text) as { images: { image: string; guesses: { class: string }[]; error?: string }[] }
    assert.equal(
      images.map(({ guesses, error }) => [guesses.length, error === undefined]),
      [[0, false], ...Array.from({ length: 8 }, () => [2, true])],
    )
    const right = images.slice(1).filter(({ image, guesses }) => image.includes(`/${guesses[0]!.class}/`)).length
    assert.is((100 * right) / 8, Number(tuned.table.rows[0]![1]))

    const refused = async (args: string[], errorCode: string, ...words: RegExp[]): Promise<void> =>
      rejectsError(() => runProgram(args), errorCode, ...words)
    await refused(['detect', broken, '--weights', classifier], 'FORMAT', /is a classifier.*densecl predict takes it/)
    await refused(['predict', broken, '--weights', weights], 'FORMAT', /is no classifier/)
    const finetune = ['eval', 'finetune', weights, ...data]
    for (const percent of ['0', '101', 'x']) await refused([...finetune, '--percent', percent], 'CONFIG', /--percent is/)
    await refused([...finetune, '--percent', '1'], 'CONFIG', /--percent is 1: expected at least 25\.0/)
    await refused([...finetune, '--choose-by', 'luck'], 'CONFIG', /held-out, val/)
    await refused(['eval', 'finetune', weights, ...data, '--val', join(val, 'a')], 'DATA', /has no labels/)
    mkdirSync(join(val, 'c'))
    cpSync(join(val, 'a', '1.jpg'), join(val, 'c', '1.jpg'))
    await refused(finetune, 'DATA', /classes differ.*c only in --val/)
    writeFileSync(join(folder, 'one.txt'), 'classes/train/a/1.jpg 0\nclasses/train/a/2.jpg 0\n')
    const list = join(folder, 'one.txt')
    await refused(['eval', 'finetune', weights, ...data, '--train', list, '--val', list], 'DATA', /has one class/)
    const exported = join(folder, 'c.safetensors')
    assert.is(await runProgram(['export', classifier, '--out', exported]), 0)
    assert.ok(readSafetensors(exported).tensors.has('fc.weight'))
  }))

test('SVM, low-shot and segmentation on a VOC tree; k beyond the positives is said', () =>
  withData(({ folder, weights, voc }) => {
    const shared = ['--data', voc, '--image-size', '32', '--workers', '1', '--out', join(folder, 'out')]
    const svm = printed(['eval', 'svm', weights, ...shared, '--train-split', 'train', '--test-split', 'val'])
    assert.equal(
      svm.table.rows.map(([name]) => name),
      ['blue', 'green', 'red', 'mean'],
    )
    const low = printed([
      'eval',
      'low-shot',
      weights,
      ...shared,
      '--train-split',
      'train',
      '--test-split',
      'val',
      '--k',
      '1,64',
      '--samples',
      '2',
      '--costs',
      '1',
    ])
    assert.ok(low.table.notes.some((note) => note.startsWith('optimistic')))
    assert.ok(low.table.notes.some((note) => /k 64: all positives taken.*red/.test(note)))
    const args = [
      'eval',
      'segmentation',
      weights,
      '--data',
      voc,
      '--iterations',
      '2',
      '--batch-size',
      '2',
      '--crop',
      '32',
      '--scale',
      '48,40',
      '--workers',
      '1',
      '--out',
      join(folder, 'out'),
    ]
    const segmentation = printed(args)
    assert.equal(
      segmentation.table.rows.map(([name]) => name),
      [
        ...['background', 'red', 'green', 'blue', 'mean', 'all pixels'],
        ...['position alone', 'most frequent class'].flatMap((how) => [`${how}: mean`, `${how}: all pixels`]),
      ],
    )
    assert.ok(existsSync(join(folder, 'out', 'segmentation-voc12aug', 'samples.png')))
    const random = printed([...args, '--init', 'random'])
    assert.match(random.file, /segmentation-voc12aug-random\.json/)
  }))

test('a result lands in the run that the weights belong to', () =>
  withData(({ folder, weights, voc }) => {
    const run = join(folder, 'run')
    mkdirSync(join(run, 'checkpoints'), { recursive: true })
    writeFileSync(join(run, 'config.yaml'), 'epochs: 1\n')
    cpSync(weights, join(run, 'checkpoints', 'last.safetensors'))
    const { file } = printed([
      'eval',
      'svm',
      join(run, 'checkpoints', 'last.safetensors'),
      '--data',
      voc,
      '--train-split',
      'train',
      '--test-split',
      'val',
      '--image-size',
      '32',
      '--workers',
      '1',
      '--costs',
      '1',
    ])
    assert.is(file, join(run, 'eval', 'svm.json'))
    assert.match(readFileSync((JSON.parse(runCli(['report', run, '--json']).out) as { file: string }).file, 'utf8'), 'VOC07 SVM')
  }))

test('two images, a heat map, and points that are none', () =>
  withData(({ folder, weights, classes }) => {
    const [a, b] = ['a', 'b'].map((c) => join(classes, 'train', c, '1.jpg')) as [string, string]
    const matched = JSON.parse(runCli(['match', a, b, '--weights', weights, '--size', '64', '--out', join(folder, 'm'), '--json']).out) as {
      grids: number[][]
      matches: { similarity: number }[]
    }
    assert.equal(matched.grids, [
      [2, 3],
      [2, 3],
    ])
    assert.ok(matched.matches.length > 0)
    const heat = JSON.parse(
      runCli(['match', a, a, '--weights', weights, '--size', '64', '--point', '0.9,0.1', '--out', join(folder, 'h'), '--json']).out,
    ) as { best: { query: number; key: number; similarity: number } }
    // An image's own position is its best match.
    assert.equal([heat.best.query, heat.best.key], [2, 2])
    assert.ok(Math.abs(heat.best.similarity - 1) < 1e-4)
    assert.ok(existsSync(join(folder, 'h.png')))
    for (const point of ['2,0', '0.5', 'x,y', '0,0,0'])
      assert.match(runCli(['match', a, '--weights', weights, '--point', point]).err, new RegExp(`--point is ${point}`))
  }))

test('inputs that are wrong are named, with what was expected', () =>
  withData(({ folder, weights, voc, classes }) => {
    const refuse = (args: string[], code: number, ...words: RegExp[]): void => {
      const result = runCli(args)
      assert.is(result.code, code, `${args.join(' ')}: ${result.err}`)
      for (const word of words) assert.match(result.err, word)
      assert.not.match(result.err, /\n {4}at /)
    }
    const [train, val] = [join(classes, 'train'), join(classes, 'val')]
    const small = ['--image-size', '32', '--workers', '1', '--out', join(folder, 'out')]
    // One class is no label; other classes are not the same.
    refuse(
      ['eval', 'knn', weights, '--train', join(train, 'a'), '--val', val, ...small],
      1,
      /train.a \(--train\) has no labels/,
      /two class folders/,
    )
    cpSync(join(train, 'a'), join(folder, 'one', 'a'), { recursive: true })
    refuse(['eval', 'linear', weights, '--train', join(folder, 'one'), '--val', val, ...small], 1, /one \(--train\) has no labels/)
    cpSync(join(val, 'b'), join(folder, 'other', 'c'), { recursive: true })
    cpSync(join(val, 'a'), join(folder, 'other', 'a'), { recursive: true })
    refuse(
      ['eval', 'linear', weights, '--train', train, '--val', join(folder, 'other'), ...small],
      1,
      /b only in --train and c only in --val/,
    )
    refuse(
      ['eval', 'linear', weights, '--train', train, '--val', val, '--protocol', 'imagenet', ...small],
      2,
      /--protocol is imagenet/,
      /did you mean imagenet-avgpool/,
    )
    refuse(['eval', 'svm', weights, '--data', voc, ...small], 1, /trainval\.txt does not exist/, /train, val/)
    refuse(['eval', 'svm', weights, '--data', classes, ...small], 1, /no VOC tree/)
    refuse(
      ['eval', 'svm', weights, '--data', voc, '--train-split', 'train', '--test-split', 'val', '--feature', 'feature6', ...small],
      2,
      /--feature is feature6: expected one of pooled, feature1/,
    )
    refuse(['eval', 'segmentation', weights, '--data', voc, '--scale', '10', '--out', join(folder, 'out')], 2, /--scale is 10/)
    refuse(['eval', 'segmentation', weights, '--data', classes, '--out', join(folder, 'out')], 1, /no VOC tree/)
    rmSync(join(voc, 'SegmentationClass', 'val_3.png'))
    refuse(
      ['eval', 'segmentation', weights, '--data', voc, '--out', join(folder, 'out')],
      1,
      /1 of 6 images have no mask, such as val_3\.png/,
    )
    refuse(['report', folder], 1, /holds no run/)
    refuse(['watch', folder, '--port', 'x'], 2, /--port is x/)
    refuse(['study', '--images', classes, '--voc-splits', 'a'], 2, /--voc-splits is a/)
    refuse(['study', '--images', classes, '--size', 'huge'], 2, /--size is huge/)
    refuse(['study', '--images', classes, '--arms', 'mocov3'], 2, /--arms is mocov3: expected one of random, mocov2/)
    refuse(['study', '--images', classes, '--voc', voc], 2, /--voc is read for --also svm/)
    refuse(['study', '--images', classes, '--also', 'segmentation'], 2, /expected a tree with masks with --segmentation/)
    // A network of another depth: the error says which blocks it has.
    const { tensors } = readSafetensors(weights)
    const shallow = new Map([...tensors].filter(([name]) => !name.startsWith('layer4.1')))
    const odd = join(folder, 'odd.safetensors')
    writeFileSync(odd, Buffer.concat(encodeSafetensors({ tensors: shallow, metadata: {} })))
    refuse(
      ['eval', 'knn', odd, '--train', train, '--val', val, ...small],
      1,
      /expected a ResNet-18, 34, 50, 101, 152/,
      /basic blocks 2, 2, 2, 1/,
    )
  }))

test('a study in small: one table, one picture, and the second time nothing is computed again', () =>
  withData(({ folder, voc, classes }) => {
    const args = [
      'study',
      ...['--images', classes, '--voc', voc, '--voc-splits', 'train,val', '--segmentation', voc, '--also', 'svm,linear,segmentation'],
      ...['--size', 'cpu', '--arms', 'densecl,mocov2', '--seeds', '1'],
      '--segmentation-iterations',
      '1',
      '--linear-epochs',
      '1',
      '--out',
      join(folder, 'study'),
    ]
    const settings = [
      'depth=18',
      'baseChannels=2',
      'imageSize=32',
      'batchSize=4',
      'normGroups=1',
      'queueLength=8',
      'epochs=1',
      'workers=1',
      'warmupSteps=0',
    ]
    const first = printed([...args, ...settings])
    const [means, differences] = first.tables as (typeof first.table)[]
    const primary = ['correspondence (primary)', 'object AUC, voc (primary)']
    assert.equal(
      means!.rows.map(([name]) => name).sort(),
      [
        ...['correspondence, near', 'kNN', 'linear feature4', 'linear feature5', 'SVM mAP', 'segmentation mIoU, voc', 'ms a step, median'],
        ...primary,
      ].sort(),
    )
    assert.is((first.rows as unknown[]).length, 2)
    for (const { notes, rows } of [means!, differences!]) assert.not.match(JSON.stringify([notes, rows]), 'NaN')
    assert.ok(means!.notes.includes('DenseCL: of one seed, which shows nothing'))
    for (const made of ['study.png', 'study.json', 'study-differences.json', 'plan.yaml', 'pretrain/densecl-seed0/report.json'])
      assert.ok(existsSync(join(folder, 'study', made)), made)
    const made = (): number[] =>
      readdirSync(join(folder, 'study', 'pretrain'), { recursive: true, encoding: 'utf8' }).map(
        (file) => statSync(join(folder, 'study', 'pretrain', file)).mtimeMs,
      )
    const before = made()
    assert.equal(printed([...args, ...settings]).rows, first.rows)
    assert.equal(made(), before)
    const changed = runCli([...args, ...settings, 'lr=0.5'])
    assert.is(changed.code, 2)
    assert.match(changed.err, /plan\.yaml: settings was .* and is now .*lr=0\.5/)
  }))

test.run()
