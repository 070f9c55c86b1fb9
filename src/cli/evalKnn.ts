import { accuracy, extractFeatures, knnPredict } from '../eval/knn.js'
import { percent } from '../run/results.js'
import { examples, heedingSignals, numberFlag } from './command.js'
import {
  type AddEvaluation,
  conclude,
  evaluation,
  openBackbone,
  progressOf,
  resultFolder,
  type SharedFlags,
  unreadable,
  workersOf,
} from './evalShared.js'
import { openLabelled } from './evalLabels.js'
import { withCompute } from '../tensor/compute.js'

interface Flags extends SharedFlags {
  train: string
  val: string
  k: string
  temperature: string
  imageSize: string
}

export const addKnn: AddEvaluation = (parent, done) => {
  evaluation(parent, 'knn', 'classify images by their nearest neighbours among labelled ones, on frozen features')
    .requiredOption('--train <data>', 'labelled images to look neighbours up in')
    .requiredOption('--val <data>', 'labelled images to classify')
    .option('--k <list>', 'neighbours, one result each', '10,20,100,200')
    .option('--temperature <value>', 'of the votes exp(similarity / T)', '0.07')
    .option('--image-size <pixels>', 'side of the central crop', '224')
    .addHelpText(
      'after',
      examples([
        [
          'densecl eval knn runs/photos/backbone.safetensors --train photos/train --val photos/val --image-size 64',
          'class folders with the same classes',
        ],
      ]),
    )
    .action(
      heedingSignals(done, async (weights: string, flags: Flags) => {
        const ks = flags.k.split(',').map((text) => numberFlag('k', text, { least: 1, whole: true }))
        const temperature = numberFlag('temperature', flags.temperature, { least: 1e-6 })
        const imageSize = numberFlag('image-size', flags.imageSize, { least: 1, whole: true })
        const { bank, queries, classes } = await openLabelled('eval knn', flags.train, flags.val)
        const { backbone, compute, note } = await openBackbone(weights, flags)
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
          const table = {
            title: `kNN accuracy in %: ${queries.length} images against ${bank.length}, ${classes.length} classes`,
            columns: ['k', 'top-1'],
            rows: results.map(({ k, accuracy: share }) => [k, percent(share)]),
            notes: [`temperature ${temperature}, central crop of ${imageSize} px`, ...unreadable(broken), note],
          }
          conclude(flags, resultFolder(weights, flags), 'knn', table, {
            weights,
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
