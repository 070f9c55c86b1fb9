import { join } from 'node:path'

import { type Command, Option } from 'commander'

import { identity } from '../distributed/launcher.js'
import { blindAccuracies } from '../eval/classificationScores.js'
import { labelsOf } from '../eval/features.js'
import { classifierPath, finetune } from '../eval/finetune.js'
import { checkFinetuneMemory } from '../eval/finetuneMemory.js'
import type { FinetuneResult } from '../eval/finetuneOptions.js'
import { batchSizeFor, finetuneOfLength, type FinetuneProtocol, finetuneProtocols, protocolOfPercent } from '../eval/finetuneProtocols.js'
import { type ChoiceOfSetting, choicesOfSetting } from '../eval/finetuneStages.js'
import { balancedShare, listedItems } from '../eval/labelledImages.js'
import type { Item } from '../data/source.js'
import { checkChannels } from '../run/backbone.js'
import { entryOf } from '../run/options.js'
import { type EvaluationTable, percent } from '../run/results.js'
import { fail } from '../tensor/errors.js'
import { largest, smallest } from '../tensor/numbers.js'
import { examples, heedingSignals, interruptedCode, isQuiet, nameSettings, numberFlag } from './command.js'
import { namesOfLabelled, openLabelled } from './evalLabels.js'
import { dataDeviations, publishedColumns } from './evalPublished.js'
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
  type SharedFlags,
  unreadable,
  withInit,
  workersOf,
} from './evalShared.js'

interface Flags extends SharedFlags {
  train: string
  val: string
  percent: string
  labelled?: string
  protocol?: string
  epochs?: string
  batchSize?: string
  lr?: string
  headMultiplier?: string
  chooseBy: string
  imageSize?: string
  seed: string
  testEvery: string
  logEvery: string
  saveEvery: string
  resume?: boolean
  overwrite?: boolean
  force?: boolean
}

export const addFinetune: AddEvaluation = (parent, done) =>
  void command(parent).action(
    heedingSignals(done, async (weights: string, flags: Flags) => {
      const { interrupted } = await amongProcesses(flags, {
        prepare: (own) => prepare(weights, own),
        identityOf: ({ backbone: { compute }, planned: { protocol, train, imageSize }, queries, seed }) => [
          protocol,
          train.length,
          queries.length,
          imageSize,
          seed,
          compute,
        ],
        evaluate: ({ backbone, planned, queries, chooseBy, out, seed, broken, name }, shared, own) =>
          finetune(backbone, {
            ...planned,
            ...shared,
            val: queries,
            chooseBy,
            out,
            seed,
            broken,
            describe: `densecl eval finetune, ${name}, ${planned.train.length} labelled images`,
            resume: own.resume ?? false,
            overwrite: own.overwrite ?? false,
            quiet: isQuiet(own),
            logEvery: whole('log-every', own.logEvery),
            saveEvery: whole('save-every', own.saveEvery),
            testEvery: whole('test-every', own.testEvery, 0),
          }),
        conclude: (found, prepared, own) => report(weights, own, prepared, found),
        dispose: ({ backbone }) => backbone.dispose(),
      })
      done(interrupted ? interruptedCode() : 0)
    }),
  )

const whole = (flag: string, text: string, least = 1): number => numberFlag(flag, text, { least, whole: true })

/** What is evaluated, and where. */
async function prepare(weights: string, flags: Flags) {
  const { name, published, protocol: asked, share, chooseBy } = settingsOf(flags)
  const batchSize = flags.batchSize === undefined ? undefined : numberFlag('batch-size', flags.batchSize, { least: 2, whole: true })
  const { imageSize, note: images } = imageSizeOf(flags.imageSize, weights, 224, 32)
  const { backbone, compute, note, suffix, seed } = await openInitial(weights, flags)
  return keepingUnlessFailed(backbone, async () => {
    checkChannels(backbone, 'eval finetune')
    const { bank, queries, classes } = await openLabelled('eval finetune', flags.train, flags.val)
    if (classes.length < 2) fail('DATA', `eval finetune: ${flags.train} has one class: expected two or more`)
    const train = flags.labelled === undefined ? balancedShare(bank, classes.length, share, seed) : await listedItems(flags.labelled, bank)
    const protocol = { ...asked, batchSize: batchSize ?? batchSizeFor(published, train.length) }
    const kept = flags.labelled === undefined ? `${share}percent` : 'listed'
    const folder = resultFolder(weights, flags)
    const result = `finetune-${name}${share === published.percent ? '' : `-${kept}`}${suffix}`
    const out = join(folder, result)
    const broken = new Map<string, string>()
    const planned = { protocol, train, classes, imageSize, workers: workersOf(flags), compute }
    const ofProcess = { ...planned, processes: identity().size }
    await checkMemory(flags, backbone, (limits) => checkFinetuneMemory(backbone, ofProcess, limits))
    if (!isQuiet(flags))
      for (const line of [labelledLine(train, bank, classes), `images  ${images}`].filter((each) => each !== '')) console.log(line)
    return { backbone, note, images, seed, bank, queries, classes, share, chooseBy, published, planned, broken, name, folder, result, out }
  })
}

/** Writes and prints what was found. */
function report(
  weights: string,
  flags: Flags,
  {
    backbone,
    note,
    images,
    seed,
    bank,
    queries,
    classes,
    share,
    chooseBy,
    published,
    planned,
    broken,
    name,
    folder,
    result,
    out,
  }: Awaited<ReturnType<typeof prepare>>,
  found: FinetuneResult,
): void {
  if (found.interrupted) {
    console.error(`interrupted at iteration ${found.iterations}; continue with --resume`)
    return
  }
  const { protocol, train, imageSize } = planned
  const changed = deviations([
    ['backbone', backbone.name, 'ResNet-50'],
    ...dataDeviations(name, bank.length, queries.length, classes.length),
    ['labels in %', share, published.percent],
    ['epochs', protocol.epochs, published.epochs],
    ['batch size', protocol.batchSize, published.batchSize],
    ['learning rates', protocol.lrs.join(' '), published.lrs.join(' ')],
    ['multipliers', protocol.headMultipliers.join(' '), published.headMultipliers.join(' ')],
    ['image size', imageSize, 224],
    ...(published.lrs.length > 1 ? [['chosen by', chooseBy, 'val'] as [string, string, string]] : []),
  ])
  const own = tableOf(found, { name, train, val: queries, classes, deviates: changed.length > 0, protocol, chooseBy })
  const notes = [
    ...own.notes,
    ...labelledNotes(train, bank, classes, flags, seed),
    ...changed,
    images,
    ...unreadable(broken, '(in training others took their places, in tests they count as black)'),
    note,
    `densecl predict IMAGE --weights ${classifierPath(out)}`,
  ]
  const table = { ...own, notes }
  const byClass = found.test!.byClass.map((row, c) => ({ class: classes[c]!, ...row }))
  conclude(flags, folder, result, table, {
    weights,
    init: flags.init,
    protocol: { name, ...protocol },
    labelled: train.length,
    imageSize,
    setting: found.setting,
    tried: found.tried,
    top1: found.test!.top1,
    ...(classes.length > 5 ? { top5: found.test!.top5 } : {}),
    loss: found.test!.loss,
    byClass,
    classifier: classifierPath(out),
  })
}

function command(parent: Command): Command {
  const names = Object.entries(finetuneProtocols)
    .map(([name, { describe }]) => `\n  ${name.padEnd(19)} ${describe}`)
    .join('')
  const own = nameSettings(evaluation(parent, 'finetune', 'fine-tune a classifier, backbone and all, on all labels or a share of them'), {
    lrs: '--lr',
    headMultipliers: '--head-multiplier',
    ...namesOfLabelled,
  })
    .requiredOption('--train <data>', 'labelled images: class folders, a list with labels, shards with .cls, iNaturalist .json')
    .requiredOption('--val <data>', 'labelled images to test on')
    .option('--percent <share>', 'of the training images whose labels are used, as many of each class, drawn by --seed', '100')
    .option('--labelled <list>', 'a text file of the training images whose labels are used, instead of a share')
    .option('--protocol <name>', 'see below; default: by the share of labels')
    .option('--epochs <count>', 'another number; the steps of the learning rate keep their places in it')
    .option('--batch-size <images>', 'another batch size; default: the published one, or a 16th of fewer than 16 of it, at least 8')
    .option('--lr <rates>', 'other learning rates of the backbone; several are tried')
    .option('--head-multiplier <factors>', 'by what the learning rate of the last layer is multiplied; several are tried')
    .option('--choose-by <images>', 'held-out: a fifth of the labelled images; val: the validation images, as published', 'held-out')
    .option('--image-size <pixels>', `side of the crops; default: ${imageSizeHelp}`)
  return withInit(own, 'the last layer, the share of labels and the order of images')
    .option('--test-every <epochs>', 'tests on the way; 0: at the end alone', '0')
    .option('--log-every <iterations>', 'between two lines', '20')
    .option('--save-every <iterations>', 'between two states', '500')
    .addOption(new Option('--resume', 'continue after the last state').conflicts('overwrite'))
    .option('--overwrite', 'replace an evaluation')
    .option(...forceFlag)
    .addHelpText(
      'after',
      `\nProtocols:${names}\n${examples([
        [
          'densecl eval finetune runs/r50/backbone.safetensors --train imagenet/train --val imagenet/val --percent 1 ' +
            '--choose-by val --device cuda',
          'the published protocol',
        ],
        [
          'densecl eval finetune runs/photos/backbone.safetensors --train photos/train --val photos/val --percent 10 ' +
            '--lr 0.01 --head-multiplier 1',
          'minutes on a CPU',
        ],
      ])}`,
    )
}

interface Settings {
  name: string
  published: FinetuneProtocol
  protocol: FinetuneProtocol
  share: number
  chooseBy: ChoiceOfSetting
}

function settingsOf(flags: Flags): Settings {
  const share = numberFlag('percent', flags.percent, { least: 0, most: 100 })
  if (share === 0) fail('CONFIG', `--percent is ${flags.percent}: expected a share of the labels above 0 and up to 100`)
  if (flags.labelled !== undefined && share !== 100)
    fail('CONFIG', '--labelled and --percent: expected one of them, as a list is a share of its own')
  const name = flags.protocol ?? protocolOfPercent(share)
  const published = entryOf('--protocol', name, finetuneProtocols)
  const chooseBy =
    choicesOfSetting.find((choice) => choice === flags.chooseBy) ??
    fail('CONFIG', `--choose-by is ${flags.chooseBy}: expected one of ${choicesOfSetting.join(', ')}`)
  const list = (flag: string, text: string | undefined, otherwise: readonly number[]): readonly number[] =>
    text === undefined ? otherwise : [...new Set(text.split(',').map((each) => numberFlag(flag, each, { least: 1e-12 })))]
  const whole = (flag: string, text: string | undefined, otherwise: number, least: number): number =>
    text === undefined ? otherwise : numberFlag(flag, text, { least, whole: true })
  const protocol = {
    ...finetuneOfLength(published, whole('epochs', flags.epochs, published.epochs, 1)),
    lrs: list('lr', flags.lr, published.lrs),
    headMultipliers: list('head-multiplier', flags.headMultiplier, published.headMultipliers),
  }
  return { name, published, protocol, share, chooseBy }
}

const mostNames = 5
const someOf = (names: readonly string[]): string =>
  `${names.slice(0, mostNames).join(', ')}${names.length > mostNames ? ` and ${names.length - mostNames} more` : ''}`

/** How many labelled images a class has, and which has none. */
function counts(train: readonly Item[], classes: readonly string[]): { least: number; most: number; none: string[] } {
  const own = classes.map(() => 0)
  for (const label of labelsOf(train, 'eval finetune')) own[label]! += 1
  const there = own.filter((count) => count > 0)
  return { least: smallest(there), most: largest(there), none: classes.filter((_, c) => own[c] === 0) }
}

function labelledLine(train: readonly Item[], bank: readonly Item[], classes: readonly string[]): string {
  const { least, most, none } = counts(train, classes)
  const missing = none.length === 0 ? '' : `; none of ${someOf(none)}`
  return `labels  ${train.length} of ${bank.length} training images, ${least === most ? least : `${least} to ${most}`} of a class${missing}`
}

function labelledNotes(train: readonly Item[], bank: readonly Item[], classes: readonly string[], flags: Flags, seed: number): string[] {
  const { least, most, none } = counts(train, classes)
  const how =
    flags.labelled !== undefined
      ? `those of ${flags.labelled}`
      : train.length === bank.length
        ? 'all'
        : `as many of each class as can be, drawn by seed ${seed}`
  return [
    `${train.length} labelled training images of ${bank.length} (${how}), ${least === most ? least : `${least} to ${most}`} of a class`,
    ...(none.length === 0 ? [] : [`no labelled image of ${someOf(none)}, which cannot be recognised`]),
  ]
}

/** Top-1 and top-5 beside chance, the most frequent class, and what is published. */
function tableOf(
  { test, tried, setting }: FinetuneResult,
  about: {
    name: string
    train: readonly Item[]
    val: readonly Item[]
    classes: readonly string[]
    deviates: boolean
    protocol: FinetuneProtocol
    chooseBy: ChoiceOfSetting
  },
): EvaluationTable {
  const { name, train, val, classes, deviates, protocol, chooseBy } = about
  const blind = blindAccuracies(labelsOf(train, 'eval'), labelsOf(val, 'eval'), classes.length)
  const { columns, cells, notes } = publishedColumns(name, deviates)
  const accuracies = [['top-1', 'top1'], ...(classes.length > 5 ? [['top-5', 'top5']] : [])] as [string, 'top1' | 'top5'][]
  const images = chooseBy === 'val' ? 'the validation images: optimistic, as published' : 'a fifth of the labelled images, held out'
  const choice =
    tried.length === 0
      ? []
      : [`learning rate ${setting!.lr} and multiplier ${setting!.headMultiplier} of ${tried.length} settings, chosen by ${images}`]
  return {
    title: `Fine-tuning (${name}), accuracy in %: ${val.length} images, ${classes.length} classes`,
    columns: ['', 'this run', 'chance', 'most frequent', ...columns],
    rows: accuracies.map(([label, key]) => [
      label,
      percent(test![key]),
      percent(blind.chance[key]),
      percent(blind.majority[key]),
      ...cells(label),
    ]),
    notes: [...choice, `${protocol.epochs} epochs, batch norm in training mode, tested with running statistics`, ...notes],
  }
}
