import { join } from 'node:path'

import { Option } from 'commander'

import { defaultSplits, openSegmentation } from '../data/segmentationSources.js'
import { identity } from '../distributed/launcher.js'
import { checkChannels } from '../run/backbone.js'
import { percent } from '../run/results.js'
import { blindScores } from '../eval/blindSegmentation.js'
import type { SegmentationScores } from '../eval/meanIou.js'
import { evaluateSegmentation, type SegmentationResult } from '../eval/segmentation.js'
import { checkSegmentationMemory } from '../eval/segmentationMemory.js'
import { segmentationProtocols } from '../eval/segmentationProtocols.js'
import { segmentationPicture } from '../report/segmentation.js'
import { writePicture } from '../report/svg.js'
import { fail } from '../tensor/errors.js'
import { entryOf, kebabCase } from '../run/options.js'
import { examples, heedingSignals, interruptedCode, nameSettings, numberFlag } from './command.js'
import { evaluateFrozen, type FrozenFlags } from './evalFrozen.js'
import { dataDeviations, publishedColumns } from './evalPublished.js'
import {
  type AddEvaluation,
  amongProcesses,
  checkMemory,
  conclude,
  deviations,
  evaluation,
  forceFlag,
  keepingUnlessFailed,
  openInitial,
  resultFolder,
  withInit,
  workersOf,
  resumableOptions,
  wholeFlag,
} from './evalShared.js'

interface Flags extends FrozenFlags {
  frozen?: boolean
  data: string
  protocol: string
  trainSplit?: string
  valSplit: string
  iterations?: string
  batchSize?: string
  lr?: string
  crop?: string
  scale?: string
  init: string
  seed: string
  testEvery: string
  logEvery: string
  saveEvery: string
  resume?: boolean
  overwrite?: boolean
  force?: boolean
}

/** The stride of the published networks' last map. */
const outputStride = 8

/** Flags of the training, and those of --frozen, which trains nothing of the network. */
const ofTraining = [
  'protocol',
  'iterations',
  'batchSize',
  'lr',
  'crop',
  'testEvery',
  'logEvery',
  'saveEvery',
  'resume',
  'overwrite',
  'force',
]
const ofFrozen = ['window', 'windows']

/** Throws CONFIG for a flag that would do nothing. */
function checkFlags({ frozen }: Flags, sourceOf: (key: string) => string | undefined): void {
  const idle = (frozen === true ? ofTraining : ofFrozen).find((key) => sourceOf(key) === 'cli')
  if (idle === undefined) return
  const flag = `--${kebabCase(idle)}`
  fail('CONFIG', frozen === true ? `${flag} is of the training, which --frozen has not` : `${flag} is of --frozen: expected that with it`)
}

export const addSegmentation: AddEvaluation = (parent, done) => {
  const names = Object.entries(segmentationProtocols)
    .map(([name, { describe }]) => `\n  ${name.padEnd(12)} ${describe}`)
    .join('')
  const describe = 'fine-tune a fully convolutional network (FCN, stride 8) on the backbone and test it'
  const command = nameSettings(evaluation(parent, 'segmentation', describe), {
    alignCorners: '--protocol',
    slide: '--protocol',
    train: 'images of --data',
    classes: 'classes of --data',
  })
    .requiredOption(
      '--data <folder>',
      'a VOC tree (JPEGImages, SegmentationClass, ImageSets/Segmentation, perhaps classes.txt) or Cityscapes',
    )
    .option('--protocol <name>', 'see below; default: by the layout of the data')
    .option('--train-split <list>', 'lists to train on; default: train, with aug where there is such a list')
    .option('--val-split <list>', 'lists to test on', 'val')
    .option('--iterations <count>', 'another length')
    .option('--batch-size <images>', 'another batch size')
    .option('--lr <rate>', 'another learning rate')
    .option('--crop <pixels>', 'another side of the crops')
    .option('--scale <long,short>', 'another size that images are scaled to fit into')
    .option('--frozen', 'train nothing but a linear classifier of the cells of the last two maps, in random windows; seconds or minutes')
    .option('--window <pixels>', 'side of the windows of --frozen', '128')
    .option('--windows <count>', 'windows of an image of --frozen', '4')
  withInit(command, 'heads, order and crops')
    .option('--test-every <iterations>', '0 tests at the end', '0')
    .option('--log-every <iterations>', 'between two lines', '50')
    .option('--save-every <iterations>', 'between two states', '1000')
    .addOption(new Option('--resume', 'continue after the last state').conflicts('overwrite'))
    .option('--overwrite', 'replace an evaluation')
    .option(...forceFlag)
    .addHelpText(
      'after',
      `\nProtocols:${names}\n${examples([
        [
          'densecl eval segmentation runs/r50/backbone.safetensors --data VOCdevkit/VOC2012 --device cuda',
          'the published protocol, with the additional list when aug.txt is there',
        ],
        [
          'densecl eval segmentation runs/photos/backbone.safetensors --data camvid --iterations 400 --batch-size 8 ' +
            '--crop 160 --scale 480,180',
          'a short run on a CPU',
        ],
      ])}`,
    )
    .action(
      heedingSignals(done, async (weights: string, flags: Flags) => {
        checkFlags(flags, (key) => command.getOptionValueSource(key))
        if (flags.frozen === true) {
          await evaluateFrozen(weights, flags)
          done(0)
          return
        }
        const { interrupted } = await amongProcesses(flags, {
          prepare: (own) => prepare(weights, own),
          identityOf: ({ backbone: { compute }, protocol, train, val, seed }) => [
            protocol,
            train.items.length,
            val.items.length,
            seed,
            compute,
          ],
          evaluate: ({ backbone, planned, out }, shared, own) =>
            evaluateSegmentation(backbone, { ...planned, ...shared, ...resumableOptions(own, { logEvery: 50, saveEvery: 1000 }), out }),
          conclude: (result, prepared, own) => report(weights, own, prepared, result),
          dispose: ({ backbone }) => backbone.dispose(),
        })
        done(interrupted ? interruptedCode() : 0)
      }),
    )
}

/** What is evaluated, and where. */
async function prepare(weights: string, flags: Flags) {
  const opened = await openInitial(weights, flags, { outputStride })
  const { backbone, compute, suffix, seed } = opened
  return keepingUnlessFailed(backbone, async () => {
    checkChannels(backbone, 'eval segmentation')
    const train = openSegmentation(flags.data, flags.trainSplit?.split(',') ?? defaultSplits(flags.data).train)
    const val = openSegmentation(flags.data, flags.valSplit.split(','))
    const protocolName = flags.protocol ?? (train.layout === 'cityscapes' ? 'cityscapes' : 'voc12aug')
    const published = entryOf('--protocol', protocolName, segmentationProtocols)
    const scale = flags.scale?.split(',').map((text) => numberFlag('scale', text, { least: 8, whole: true })) ?? published.scale
    if (scale.length !== 2 || scale[0] < scale[1]) fail('CONFIG', `--scale is ${flags.scale}: expected two sizes, long,short`)
    const protocol = {
      ...published,
      iterations: wholeFlag('iterations', flags.iterations, published.iterations),
      batchSize: wholeFlag('batch-size', flags.batchSize, published.batchSize),
      crop: wholeFlag('crop', flags.crop, published.crop, 16),
      scale: [scale[0], scale[1]] as const,
      lr: flags.lr === undefined ? published.lr : numberFlag('lr', flags.lr, { least: 1e-12 }),
    }
    const name = `segmentation-${protocolName}${suffix}`
    const folder = resultFolder(weights, flags)
    const planned = { protocol, train, val, seed, workers: workersOf(flags), compute }
    const ofProcess = { ...planned, processes: identity().size }
    await checkMemory(flags, backbone, (limits) => checkSegmentationMemory(backbone, ofProcess, limits))
    return { ...opened, train, val, protocolName, published, protocol, planned, name, folder, out: join(folder, name) }
  })
}

/** Writes and prints what was found. */
async function report(
  weights: string,
  flags: Flags,
  { backbone, train, val, protocolName, published, protocol, name, folder, note }: Awaited<ReturnType<typeof prepare>>,
  { interrupted, iterations, scores, samples }: SegmentationResult,
): Promise<void> {
  if (interrupted) {
    console.error(`interrupted at iteration ${iterations}; continue with --resume`)
    return
  }
  const picture =
    samples.length === 0 ? undefined : await writePicture(join(folder, name, 'samples'), segmentationPicture(samples, val.classes))
  const seen = protocol.slide === 0 ? 'whole images' : `windows of ${protocol.crop} at stride ${protocol.slide}`
  const changed = deviations([
    ['backbone', backbone.name, 'ResNet-50'],
    ...dataDeviations(protocolName, train.items.length, val.items.length, val.classes.length),
    ['output stride', backbone.stride, outputStride],
    ['iterations', protocol.iterations, published.iterations],
    ['batch size', protocol.batchSize, published.batchSize],
    ['learning rate', protocol.lr, published.lr],
    ['crop', protocol.crop, published.crop],
    ['scale', protocol.scale.join('x'), published.scale.join('x')],
  ])
  const others = publishedColumns(protocolName, changed.length > 0)
  const blind = await blindScores(train, val)
  const blindRow = (label: string, { meanIou, meanAccuracy, pixelAccuracy }: SegmentationScores): (string | number)[][] => [
    [`${label}: mean`, percent(meanIou), percent(meanAccuracy), ...others.cells()],
    [`${label}: all pixels`, '', percent(pixelAccuracy), ...others.cells()],
  ]
  const table = {
    title: `Segmentation (FCN, stride ${backbone.stride}, ${protocolName}) in %: ${val.items.length} images`,
    columns: ['class', 'IoU', 'accuracy', ...others.columns],
    rows: [
      ...val.classes.map((label, c) => [label, percent(scores!.iou[c]!), percent(scores!.accuracy[c]!), ...others.cells()]),
      ['mean', percent(scores!.meanIou), percent(scores!.meanAccuracy), ...others.cells('mean')],
      ['all pixels', '', percent(scores!.pixelAccuracy), ...others.cells()],
      ...blindRow('position alone', blind.position),
      ...blindRow('most frequent class', blind.majority),
    ],
    notes: [`${train.items.length} training images, ${seen} in the test, no flip, one scale`, ...changed, ...others.notes, note],
  }
  conclude(flags, folder, name, table, {
    weights,
    init: flags.init,
    protocol,
    scores: { ...scores! },
    blind: { position: blind.position.meanIou, majority: blind.majority.meanIou },
    ...(picture === undefined ? {} : { picture }),
  })
}
