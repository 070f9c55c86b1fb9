import type { Command } from 'commander'

import { openVocClassification } from '../data/voc.js'
import { featureNames } from '../eval/features.js'
import { percent } from '../run/results.js'
import { publishedData } from '../eval/published.js'
import { protocolCosts } from '../eval/svm.js'
import { evaluateLowShot, evaluateSvm, extractVoc, protocolShots, type VocFeatures } from '../eval/voc07.js'
import { fail } from '../tensor/errors.js'
import { type ComputeOptions, withCompute } from '../tensor/compute.js'
import { examples, heedingSignals, numberFlag } from './command.js'
import { publishedColumns } from './evalPublished.js'
import {
  type AddEvaluation,
  conclude,
  deviations,
  evaluation,
  imageSizeHelp,
  imageSizeOf,
  openInitial,
  progressOf,
  resultFolder,
  type SharedFlags,
  unreadable,
  withInit,
  workersOf,
} from './evalShared.js'

interface Flags extends SharedFlags {
  data: string
  trainSplit: string
  testSplit: string
  feature: string
  costs?: string
  imageSize?: string
  seed: string
}

function vocCommand(parent: Command, name: string, description: string, seed?: string): Command {
  const command = evaluation(parent, name, description)
    .requiredOption('--data <folder>', 'a VOC tree: JPEGImages, and ImageSets/Main with <class>_<split>.txt')
    .option('--train-split <name>', 'list to train on', 'trainval')
    .option('--test-split <name>', 'list to test on', 'test')
    .option('--feature <name>', `one of ${featureNames.join(', ')}`, 'feature5')
    .option('--costs <list>', 'of the classifier; default: 1, 10, 100 and 0.5^4 to 0.5^19')
    .option('--image-size <pixels>', `side that images are squeezed to; default: ${imageSizeHelp}`)
  return withInit(command, seed)
}

interface Extracted {
  voc: VocFeatures
  compute: ComputeOptions
  seed: number
  /** What goes behind the name of the result. */
  suffix: string
  deviates: boolean
  notes: string[]
}

/** The published side of the squeezed images. */
const protocolSize = 224

/** Features of both splits, and what the table must say of them. */
async function features(weights: string, flags: Flags): Promise<Extracted> {
  const feature =
    featureNames.find((name) => name === flags.feature) ??
    fail('CONFIG', `--feature is ${flags.feature}: expected one of ${featureNames.join(', ')}`)
  const costs = flags.costs?.split(',').map((text) => numberFlag('costs', text, { least: 1e-12 })) ?? protocolCosts
  const { imageSize, note: images } = imageSizeOf(flags.imageSize, weights, protocolSize, 32)
  const [train, test] = [flags.trainSplit, flags.testSplit].map((split) => openVocClassification(flags.data, split)) as [
    ReturnType<typeof openVocClassification>,
    ReturnType<typeof openVocClassification>,
  ]
  const { backbone, compute, note, suffix, seed } = await openInitial(weights, flags)
  try {
    const broken = new Map<string, string>()
    const voc = await extractVoc(
      backbone,
      train,
      test,
      feature,
      { imageSize, workers: workersOf(flags), broken, compute, progress: progressOf(flags, 'features of image') },
      costs,
    )
    const changed = deviations([
      ['backbone', backbone.name, 'ResNet-50'],
      ['training images', train.items.length, publishedData.voc07!.train],
      ['test images', test.items.length, publishedData.voc07!.val],
      ['training list', flags.trainSplit, 'trainval'],
      ['test list', flags.testSplit, 'test'],
      ['feature', feature, 'feature5'],
      ['image size', imageSize, protocolSize],
      ['costs', costs.join(' '), protocolCosts.join(' ')],
    ])
    return {
      voc,
      compute,
      seed,
      suffix,
      deviates: changed.length > 0,
      notes: [
        `${train.items.length} training and ${test.items.length} test images of ${flags.data}`,
        ...changed,
        images,
        ...unreadable(broken),
        note,
      ],
    }
  } finally {
    backbone.dispose()
  }
}

export const addSvm: AddEvaluation = (parent, done) => {
  vocCommand(parent, 'svm', 'VOC07 classification by linear SVMs on frozen features')
    .addHelpText(
      'after',
      examples([
        ['densecl eval svm runs/r50/backbone.safetensors --data VOCdevkit/VOC2007', 'the published protocol'],
        ['densecl eval svm runs/photos/backbone.safetensors --data mine --train-split train --test-split val', 'lists of your own'],
      ]),
    )
    .action(
      heedingSignals(done, async (weights: string, flags: Flags) => {
        const { voc, compute, suffix, deviates, notes } = await features(weights, flags)
        try {
          const report = withCompute(compute, () => evaluateSvm(voc, progressOf(flags, 'classifier')))
          const left = report.classes.filter((row) => row.left !== undefined)
          const published = publishedColumns('svm', deviates)
          const table = {
            title: 'VOC07 SVM: average precision in %',
            columns: ['class', 'AP', 'cost', 'positives', ...published.columns],
            rows: [
              ...report.classes.map(({ name, ap, cost, positives }) => [
                name,
                percent(ap),
                Number.isNaN(cost) ? '-' : String(Number(cost.toPrecision(3))),
                positives,
                ...published.cells(),
              ]),
              ['mean', percent(report.map), '', '', ...published.cells('mean')],
            ],
            notes: [
              'cost of each class by three folds on the training images; AP is the area under the interpolated curve; ' +
                'images with only difficult objects are negatives in training and left out of the test',
              ...(left.length === 0 ? [] : [`left out of the mean: ${left.map(({ name, left: why }) => `${name} (${why})`).join(', ')}`]),
              ...(report.unconverged === 0 ? [] : [`${report.unconverged} fits ended before their tolerance`]),
              ...notes,
              ...published.notes,
            ],
          }
          conclude(flags, resultFolder(weights, flags), `svm${suffix}`, table, { weights, init: flags.init, ...report })
          done(0)
        } finally {
          voc.dispose()
        }
      }),
    )
}

export const addLowShot: AddEvaluation = (parent, done) => {
  vocCommand(parent, 'low-shot', 'VOC07 classification by linear SVMs on a few images of each class', 'the draws')
    .option('--k <list>', 'positive images of a class; 19 times as many negatives', protocolShots.join(','))
    .option('--samples <count>', 'draws that are averaged', '5')
    .addHelpText(
      'after',
      examples([['densecl eval low-shot runs/r50/backbone.safetensors --data VOCdevkit/VOC2007', 'the published protocol']]),
    )
    .action(
      heedingSignals(done, async (weights: string, flags: Flags & { k: string; samples: string }) => {
        const ks = flags.k.split(',').map((text) => numberFlag('k', text, { least: 1, whole: true }))
        const samples = numberFlag('samples', flags.samples, { least: 1, whole: true })
        const { voc, compute, seed, suffix, deviates, notes } = await features(weights, flags)
        try {
          const report = withCompute(compute, () => evaluateLowShot(voc, { ks, samples, seed, progress: progressOf(flags, 'classifier') }))
          const short = report.rows.filter((row) => row.short.length > 0)
          const published = publishedColumns('low-shot', deviates)
          const table = {
            title: `VOC07 low-shot SVM: mean average precision in % over ${samples} samples`,
            columns: ['k', 'mean', 'min', 'max', 'std', 'cost', ...published.columns],
            rows: report.rows.map(({ k, mean, min, max, std, cost }) => [
              k,
              percent(mean),
              percent(min),
              percent(max),
              percent(std),
              String(Number(cost.toPrecision(3))),
              ...published.cells(String(k)),
            ]),
            notes: [
              'optimistic, as the protocol is: the cost is chosen by the test images themselves',
              `samples are drawn from seed ${seed}; the published ones were drawn without a seed, so theirs are others`,
              ...short.map(({ k, short: names }) => `k ${k}: all positives taken where there are fewer: ${names.join(', ')}`),
              ...(report.left.length === 0
                ? []
                : [`left out of the mean: ${report.left.map(({ name, reason }) => `${name} (${reason})`).join(', ')}`]),
              ...(report.unconverged === 0 ? [] : [`${report.unconverged} fits ended before their tolerance`]),
              ...notes,
              ...published.notes,
            ],
          }
          conclude(flags, resultFolder(weights, flags), `low-shot${suffix}`, table, { weights, init: flags.init, ...report })
          done(0)
        } finally {
          voc.dispose()
        }
      }),
    )
}
