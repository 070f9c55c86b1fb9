import { join } from 'node:path'

import { Option } from 'commander'

import type { Group } from '../distributed/group.js'
import { blindAccuracies } from '../eval/classificationScores.js'
import { labelsOf } from '../eval/features.js'
import { batchSizeFor } from '../eval/finetuneProtocols.js'
import { canHoldOut } from '../eval/labelledImages.js'
import { needsRate, type TriedRate, tryLinearRates } from '../eval/linearRate.js'
import { evaluateLinear } from '../eval/linear.js'
import { linearProtocols, stretched } from '../eval/linearProtocols.js'
import { checkLinearMemory } from '../eval/linearMemory.js'
import { checkClaimable, percent } from '../run/results.js'
import { fail } from '../tensor/errors.js'
import { entryOf } from '../run/options.js'
import { examples, heedingSignals, interruptedCode, isQuiet, nameSettings, numberFlag } from './command.js'
import {
  type AddEvaluation,
  amongProcesses,
  checkMemory,
  conclude,
  deviations,
  evaluation,
  forceFlag,
  imageSizeHelp,
  imageSizeOf,
  keepingUnlessFailed,
  openInitial,
  resultFolder,
  type SharedEvaluation,
  type SharedFlags,
  unreadable,
  withInit,
  workersOf,
} from './evalShared.js'
import { namesOfLabelled, openLabelled } from './evalLabels.js'
import { dataDeviations, publishedColumns } from './evalPublished.js'

interface Flags extends SharedFlags {
  train: string
  val: string
  protocol: string
  epochs?: string
  batchSize?: string
  lr?: string
  augmentation: string
  imageSize?: string
  seed: string
  cacheGigabytes: string
  resume?: boolean
  overwrite?: boolean
  force?: boolean
}

/** The side of the crops that is published. */
const protocolSize = 224

export const addLinear: AddEvaluation = (parent, done) => {
  const names = Object.entries(linearProtocols)
    .map(([name, { describe }]) => `\n  ${name.padEnd(18)} ${describe}`)
    .join('')
  const command = nameSettings(evaluation(parent, 'linear', 'train linear classifiers on frozen features'), {
    pipeline: '--augmentation',
    ...namesOfLabelled,
  })
    .requiredOption('--train <data>', 'labelled images: class folders, a list with labels (Places205), iNaturalist .json')
    .requiredOption('--val <data>', 'labelled images to test on')
    .option('--protocol <name>', 'see below', 'imagenet-avgpool')
    .option('--epochs <count>', 'another number; the steps of the learning rate keep their places in it')
    .option('--batch-size <images>', 'another batch size; default: the published one, or a 16th of fewer than 16 of it, at least 8')
    .option('--lr <rate>', 'another learning rate; default: the published one, on few images tried on some that are held out')
    .option('--augmentation <kind>', 'protocol, or none: features are then computed once and kept on the disk', 'protocol')
    .option('--image-size <pixels>', `side of the crops; default: ${imageSizeHelp}`)
  withInit(command, 'the classifiers and the order of images')
    .option('--cache-gigabytes <size>', 'of validation features kept on the disk; more are computed every epoch', '4')
    .addOption(new Option('--resume', 'continue after the last whole epoch').conflicts('overwrite'))
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
          'densecl eval linear runs/photos/backbone.safetensors --train photos/train --val photos/val --epochs 20 --augmentation none',
          'minutes on a CPU',
        ],
      ])}`,
    )
    .action(
      heedingSignals(done, async (weights: string, flags: Flags) => {
        const { interrupted } = await amongProcesses(flags, {
          prepare: (own) => prepare(weights, own),
          identityOf: ({ backbone: { compute }, planned: { protocol, val, imageSize, seed }, bank }) => [
            [protocol, bank.length, val.length],
            [imageSize, seed, compute],
          ],
          evaluate,
          conclude: (result, prepared, own) => report(weights, own, prepared, result),
          dispose: ({ backbone }) => backbone.dispose(),
        })
        done(interrupted ? interruptedCode() : 0)
      }),
    )
}

type Prepared = Awaited<ReturnType<typeof prepare>>

/** What is evaluated, and where. */
async function prepare(weights: string, flags: Flags) {
  const published = entryOf('--protocol', flags.protocol, linearProtocols)
  if (flags.augmentation !== 'protocol' && flags.augmentation !== 'none')
    fail('CONFIG', `--augmentation is ${flags.augmentation}: expected protocol or none`)
  const number = (
    name: 'epochs' | 'batchSize' | 'lr',
    flag: string,
    otherwise: number,
    limits: { least: number; whole?: boolean },
  ): number => (flags[name] === undefined ? otherwise : numberFlag(flag, flags[name], limits))
  const asked = {
    ...stretched(published, number('epochs', 'epochs', published.epochs, { least: 1, whole: true })),
    lr: number('lr', 'lr', published.lr, { least: 1e-12 }),
    ...(flags.augmentation === 'none' ? { pipeline: 'centre' as const } : {}),
  }
  const { imageSize, note: images } = imageSizeOf(flags.imageSize, weights, protocolSize, 32)
  const { bank, queries, classes } = await openLabelled('eval linear', flags.train, flags.val)
  const batchSize = number('batchSize', 'batch-size', batchSizeFor(published, bank.length), { least: 2, whole: true })
  const { backbone, compute, note, suffix, seed } = await openInitial(weights, flags)
  return keepingUnlessFailed(backbone, async () => {
    const folder = resultFolder(weights, flags)
    const broken = new Map<string, string>()
    const name = `linear-${flags.protocol}${suffix}`
    const planned = {
      protocol: { ...asked, batchSize },
      val: queries,
      classes: classes.length,
      imageSize,
      seed,
      workers: workersOf(flags),
      cacheBytes: numberFlag('cache-gigabytes', flags.cacheGigabytes, { least: 0 }) * 2 ** 30,
      compute,
    }
    await checkMemory(flags, backbone, (limits) => checkLinearMemory(backbone, planned, limits))
    return { backbone, compute, note, images, bank, queries, classes, published, planned, broken, name, folder }
  })
}

/** The rates that are tried, the best first, by rank 0 for all; none where the published one stays. */
async function ratesOf({ backbone, compute, bank, classes, planned }: Prepared, flags: Flags, group: Group): Promise<TriedRate[]> {
  // Of one image a class none can be held out: the published rate stays.
  if (flags.lr !== undefined || !needsRate(planned.protocol, bank.length) || !canHoldOut(bank, classes.length)) return []
  const { protocol, seed, imageSize, workers } = planned
  const tried =
    group.rank === 0
      ? await tryLinearRates(backbone, { protocol, train: bank, classes: classes.length, seed }, { imageSize, workers, compute })
      : []
  return group.size === 1 ? tried : (JSON.parse(group.said(JSON.stringify(tried)), (_, value: unknown) => value ?? NaN) as TriedRate[])
}

async function evaluate(prepared: Prepared, shared: SharedEvaluation, flags: Flags) {
  const { bank, planned, broken, name, folder } = prepared
  if (shared.group.rank === 0) checkClaimable(join(folder, name), flags)
  const tried = await ratesOf(prepared, flags, shared.group)
  const protocol = { ...planned.protocol, lr: tried[0]?.lr ?? planned.protocol.lr }
  if (tried.length > 0 && !isQuiet(flags))
    console.log(`rate    ${protocol.lr} of ${tried.map(({ lr }) => lr).join(', ')}: the best on a fifth of the training images, held out`)
  const result = await evaluateLinear(prepared.backbone, {
    ...planned,
    ...shared,
    protocol,
    train: bank,
    out: join(folder, name),
    resume: flags.resume ?? false,
    overwrite: flags.overwrite ?? false,
    quiet: isQuiet(flags),
    broken,
  })
  return { ...result, tried, protocol }
}

/** Writes and prints what was found. */
function report(
  weights: string,
  flags: Flags,
  { backbone, note, images, bank, queries, classes, published, planned, broken, name, folder }: Prepared,
  { tried, protocol, ...result }: Awaited<ReturnType<typeof evaluate>>,
): void {
  if (result.interrupted) {
    console.error(`interrupted in epoch ${result.epochs + 1}; continue with --resume`)
    return
  }
  const { imageSize } = planned
  const changed = deviations([
    ['backbone', backbone.name, 'ResNet-50'],
    ...dataDeviations(flags.protocol, bank.length, queries.length, classes.length),
    ['epochs', protocol.epochs, published.epochs],
    ['batch size', protocol.batchSize, published.batchSize],
    ['learning rate', protocol.lr, published.lr],
    ['image size', imageSize, protocolSize],
    ['training views', protocol.pipeline, published.pipeline],
  ])
  const others = publishedColumns(flags.protocol, changed.length > 0)
  const blind = blindAccuracies(labelsOf(bank, 'linear'), labelsOf(queries, 'linear'), classes.length)
  const five = (share: number): string[] => (classes.length > 5 ? [percent(share)] : [])
  const table = {
    title: `Linear classification (${flags.protocol}), accuracy in %: ${queries.length} images, ${classes.length} classes`,
    columns: ['feature', 'top-1', ...(classes.length > 5 ? ['top-5'] : []), 'best top-1', 'in epoch', ...others.columns],
    rows: [
      ...result.heads.map(({ head, top1, top5, best, bestEpoch }) => [
        head,
        percent(top1),
        ...five(top5),
        percent(best),
        bestEpoch,
        ...others.cells(head),
      ]),
      ...(
        [
          ['chance', blind.chance],
          ['most frequent', blind.majority],
        ] as const
      ).map(([what, { top1, top5 }]) => [what, percent(top1), ...five(top5), '', '', ...others.cells()]),
    ],
    notes: [
      ...(tried.length === 0
        ? []
        : [`learning rate ${protocol.lr}: the best of ${tried.length} on a fifth of the training images that was held out`]),
      ...changed,
      images,
      ...others.notes,
      ...unreadable(broken, '(in training others took their places, in tests they count as black)'),
      note,
    ],
  }
  conclude(flags, folder, name, table, { weights, init: flags.init, protocol: { ...protocol }, imageSize, tried, ...blind, ...result })
}
