import { blindAccuracies } from '../eval/classificationScores.js'
import { accuracy, extractFeatures, knnPredict } from '../eval/knn.js'
import { percent } from '../run/results.js'
import { examples, heedingSignals, numberFlag } from './command.js'
import { dataDeviations, publishedColumns } from './evalPublished.js'
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
import { openLabelled } from './evalLabels.js'
import { withCompute } from '../tensor/compute.js'

interface Flags extends SharedFlags {
  train: string
  val: string
  k: string
  temperature: string
  imageSize?: string
  seed: string
}

/** The side of the central crop that is published. */
const protocolSize = 224

export const addKnn: AddEvaluation = (parent, done) => {
  const command = evaluation(parent, 'knn', 'classify images by their nearest neighbours among labelled ones, on frozen features')
    .requiredOption('--train <data>', 'labelled images to look neighbours up in')
    .requiredOption('--val <data>', 'labelled images to classify')
    .option('--k <list>', 'neighbours, one result each', '10,20,100,200')
    .option('--temperature <value>', 'of the votes exp(similarity / T)', '0.07')
    .option('--image-size <pixels>', `side of the central crop; default: ${imageSizeHelp}`)
  withInit(command)
    .addHelpText(
      'after',
      examples([
        ['densecl eval knn runs/photos/backbone.safetensors --train photos/train --val photos/val', 'class folders with the same classes'],
      ]),
    )
    .action(
      heedingSignals(done, async (weights: string, flags: Flags) => {
        const ks = flags.k.split(',').map((text) => numberFlag('k', text, { least: 1, whole: true }))
        const temperature = numberFlag('temperature', flags.temperature, { least: 1e-6 })
        const { imageSize, note: images } = imageSizeOf(flags.imageSize, weights, protocolSize)
        const { bank, queries, classes } = await openLabelled('eval knn', flags.train, flags.val)
        const { backbone, compute, note, suffix } = await openInitial(weights, flags)
        const broken = new Map<string, string>()
        try {
          const extract = (items: typeof bank, what: string) =>
            extractFeatures(backbone, items, {
              imageSize,
              workers: workersOf(flags),
              broken,
              compute,
              progress: (count) => progressOf(flags, what)(count, items.length),
            })
          const known = await extract(bank, 'features of --train')
          const unknown = await extract(queries, 'features of --val')
          const results = withCompute(compute, () =>
            ks.map((k) => ({ k, accuracy: accuracy(knnPredict(known, unknown, { k, temperature }), unknown.labels) })),
          )
          const changed = deviations([
            ['backbone', backbone.name, 'ResNet-50'],
            ...dataDeviations('knn', bank.length, queries.length, classes.length),
            ['image size', imageSize, protocolSize],
            ['temperature', temperature, 0.07],
          ])
          const published = publishedColumns('knn', changed.length > 0)
          const blind = blindAccuracies(known.labels, unknown.labels, classes.length)
          const table = {
            title: `kNN accuracy in %: ${queries.length} images against ${bank.length}, ${classes.length} classes`,
            columns: ['k', 'top-1', ...published.columns],
            rows: [
              ...results.map(({ k, accuracy: share }) => [k, percent(share), ...published.cells(String(k))]),
              ['chance', percent(blind.chance.top1), ...published.cells()],
              ['most frequent', percent(blind.majority.top1), ...published.cells()],
            ],
            notes: [`temperature ${temperature}, central crop, ${images}`, ...changed, ...published.notes, ...unreadable(broken), note],
          }
          conclude(flags, resultFolder(weights, flags), `knn${suffix}`, table, {
            weights,
            init: flags.init,
            imageSize,
            ...blind,
            train: bank.length,
            val: queries.length,
            classes: classes.length,
            temperature,
            results,
          })
          done(0)
        } finally {
          backbone.dispose()
        }
      }),
    )
}
