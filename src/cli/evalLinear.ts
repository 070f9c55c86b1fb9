import { join } from 'node:path'

import { evaluateLinear } from '../eval/linear.js'
import { linearProtocols, stretched } from '../eval/linearProtocols.js'
import { checkLinearMemory } from '../eval/linearMemory.js'
import { percent } from '../run/results.js'
import { fail } from '../tensor/errors.js'
import { entryOf } from '../run/options.js'
import { examples, heedingSignals, interruptedCode, numberFlag } from './command.js'
import {
  type AddEvaluation,
  checkMemory,
  conclude,
  deviations,
  evaluation,
  forceFlag,
  openBackbone,
  resultFolder,
  type SharedFlags,
  unreadable,
  workersOf,
} from './evalShared.js'
import { openLabelled } from './evalLabels.js'

interface Flags extends SharedFlags {
  train: string
  val: string
  protocol: string
  epochs?: string
  batchSize?: string
  lr?: string
  augmentation: string
  imageSize: string
  seed: string
  cacheGigabytes: string
  resume?: boolean
  overwrite?: boolean
  force?: boolean
}

export const addLinear: AddEvaluation = (parent, done) => {
  const names = Object.entries(linearProtocols)
    .map(([name, { describe }]) => `\n  ${name.padEnd(18)} ${describe}`)
    .join('')
  evaluation(parent, 'linear', 'train linear classifiers on frozen features')
    .requiredOption('--train <data>', 'labelled images: class folders, a list with labels (Places205), iNaturalist .json')
    .requiredOption('--val <data>', 'labelled images to test on')
    .option('--protocol <name>', 'see below', 'imagenet-avgpool')
    .option('--epochs <count>', 'another number; the steps of the learning rate keep their places in it')
    .option('--batch-size <images>', 'another batch size')
    .option('--lr <rate>', 'another learning rate')
    .option('--augmentation <kind>', 'protocol, or none: features are then computed once and kept on the disk', 'protocol')
    .option('--image-size <pixels>', 'side of the crops', '224')
    .option('--seed <number>', 'of the classifiers and the order of images', '0')
    .option('--cache-gigabytes <size>', 'of validation features kept on the disk; more are computed every epoch', '4')
    .option('--resume', 'continue after the last whole epoch')
    .option('--overwrite', 'replace an evaluation')
    .option(...forceFlag)
    .addHelpText(
      'after',
      `\nProtocols:${names}\n${examples([
        [
          'densecl eval linear runs/r50/backbone.safetensors --train imagenet/train --val imagenet/val --device cuda',
          'the AvgPool protocol',
        ],
        [
          'densecl eval linear runs/photos/backbone.safetensors --train photos/train --val photos/val --image-size 64 ' +
            '--epochs 20 --augmentation none',
          'minutes on a CPU',
        ],
      ])}`,
    )
    .action(
      heedingSignals(done, async (weights: string, flags: Flags) => {
        const published = entryOf('--protocol', flags.protocol, linearProtocols)
        if (flags.augmentation !== 'protocol' && flags.augmentation !== 'none')
          fail('CONFIG', `--augmentation is ${flags.augmentation}: expected protocol or none`)
        const number = (
          name: 'epochs' | 'batchSize' | 'lr',
          flag: string,
          otherwise: number,
          limits: { least: number; whole?: boolean },
        ): number => (flags[name] === undefined ? otherwise : numberFlag(flag, flags[name], limits))
        const protocol = {
          ...stretched(published, number('epochs', 'epochs', published.epochs, { least: 1, whole: true })),
          batchSize: number('batchSize', 'batch-size', published.batchSize, { least: 2, whole: true }),
          lr: number('lr', 'lr', published.lr, { least: 1e-12 }),
          ...(flags.augmentation === 'none' ? { pipeline: 'centre' as const } : {}),
        }
        const imageSize = numberFlag('image-size', flags.imageSize, { least: 32, whole: true })
        const { bank, queries, classes } = await openLabelled('eval linear', flags.train, flags.val)
        const { backbone, compute, note } = await openBackbone(weights, flags)
        try {
          const folder = resultFolder(weights, flags)
          const broken = new Map<string, string>()
          const planned = {
            protocol,
            val: queries,
            classes: classes.length,
            imageSize,
            seed: numberFlag('seed', flags.seed, { least: 0, whole: true }),
            workers: workersOf(flags),
            cacheBytes: numberFlag('cache-gigabytes', flags.cacheGigabytes, { least: 0 }) * 2 ** 30,
            compute,
          }
          await checkMemory(flags, () => checkLinearMemory(backbone, planned))
          const result = await evaluateLinear(backbone, {
            ...planned,
            weights,
            train: bank,
            out: join(folder, `linear-${flags.protocol}`),
            resume: flags.resume ?? false,
            overwrite: flags.overwrite ?? false,
            quiet: flags.json ?? false,
            broken,
          })
          if (result.interrupted) {
            console.error(`interrupted in epoch ${result.epochs + 1}; continue with --resume`)
            done(interruptedCode())
            return
          }
          const table = {
            title: `Linear classification (${flags.protocol}), accuracy in %: ${queries.length} images, ${classes.length} classes`,
            columns: ['feature', 'top-1', 'top-5', 'best top-1', 'in epoch'],
            rows: result.heads.map(({ head, top1, top5, best, bestEpoch }) => [
              head,
              percent(top1),
              percent(top5),
              percent(best),
              bestEpoch,
            ]),
            notes: [
              ...deviations([
                ['epochs', protocol.epochs, published.epochs],
                ['batch size', protocol.batchSize, published.batchSize],
                ['learning rate', protocol.lr, published.lr],
                ['image size', imageSize, 224],
                ['training views', protocol.pipeline, published.pipeline],
              ]),
              ...unreadable(broken, '(in training others took their places, in tests they count as black)'),
              note,
            ],
          }
          conclude(flags, folder, `linear-${flags.protocol}`, table, { weights, protocol: { ...protocol }, imageSize, ...result })
          done(0)
        } finally {
          backbone.dispose()
        }
      }),
    )
}
